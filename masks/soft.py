"""Soft masks: how strongly each pixel is edited, from a precise mask.

Emu Edit (Sheynin et al. 2023), mask construction: M = w_p * precise + w_s * blur(dilate(precise))
+ w_b * bbox(precise), with weights that sum to 1. M is 1 where all three are, falls off
around the object, and is exactly 0 from a certain distance on, so that what reads M as
"0 is kept" keeps it bit for bit.

Lengths below 1 are shares of the picture's width, from 1 on they are pixels, as in `dilate`.
"""

import math

import torch
from scipy import ndimage
from torch import Tensor

from .grid import as_mask, dilate

WHO = "Soft Mask"

# A Gaussian is cut off here, in sigmas: what is left out weighs 6e-5, and zeros stay exact beyond.
_REACH = 4.0


def in_pixels(length: float, width: int) -> float:
    """A length as pixels: below 1 it is a share of `width`."""
    return length * width if length < 1 else length


def blur(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian low-pass of pictures (B, H, W), sigma in pixels -> (B, H, W), float64, CPU.

    Borders reflect (the border pixel is repeated first), so that a constant stays what it is
    and nothing is lost at the frame. 0 changes nothing. The kernel ends at 4 sigma.
    """
    values = pixels.detach().to(device="cpu", dtype=torch.float64)
    if sigma == 0:
        return values
    smooth = ndimage.gaussian_filter(values.numpy(), (0, sigma, sigma), mode="reflect", truncate=_REACH)
    return torch.from_numpy(smooth)


def bounding_boxes(mask: Tensor, padding: int = 0) -> Tensor:
    """The box around each mask (B, H, W), filled with ones -> (B, H, W) of the mask's dtype.

    A box holds the pixels above 0.5; of a mask that nowhere reaches that, those above 0. It
    grows by `padding` pixels on every side, within the picture. An empty mask has no box.
    """
    boxes = torch.zeros_like(mask)
    for box, image in zip(boxes, mask, strict=True):
        painted = image > 0.5
        rows, columns = torch.nonzero(painted if bool(painted.any()) else image > 0, as_tuple=True)
        if len(rows):
            top, left = (max(int(line.min()) - padding, 0) for line in (rows, columns))
            bottom, right = (int(line.max()) + 1 + padding for line in (rows, columns))
            box[top:bottom, left:right] = 1
    return boxes


def soft_mask(
    mask: Tensor,
    *,
    precise_weight: float = 0.0,
    spread_weight: float = 1.0,
    box_weight: float = 0.0,
    radius: float = 0.06,
    blur_sigma: float = 0.02,
    padding: float = 0.0,
) -> Tensor:
    """Emu Edit's soft mask, M = w_p * precise + w_s * blur(dilate(precise)) + w_b * bbox(precise).

    Args:
        mask: MASK (B, H, W) or a form that the host takes as one, in [0, 1]; greys stay greys
            in the first two terms. Each mask of a batch is taken by itself.
        precise_weight, spread_weight, box_weight: w_p, w_s, w_b, 0 or more; only their
            proportions count.
        radius: how far `dilate` grows the mask, by a square.
        blur_sigma: sigma of the Gaussian. With a radius of 3 sigma or more the object itself
            stays at 0.99 or above.
        padding: how far the box reaches beyond the object.

    Lengths below 1 are shares of the width, from 1 on pixels.

    Returns:
        M (B, H, W), float32 on the CPU, in [0, 1].

    Raises:
        ValueError: a mask is empty or no MASK, a number is negative or not finite, all weights
            are 0.
    """
    weights = {"precise_weight": precise_weight, "spread_weight": spread_weight, "box_weight": box_weight}
    for name, value in {**weights, "radius": radius, "blur": blur_sigma, "padding": padding}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{WHO}: {name} is {value}; it must be 0 or more")
    total = sum(weights.values())
    if total == 0:
        raise ValueError(f"{WHO}: {', '.join(weights)} are all 0; give at least one of them a weight")
    precise = as_mask(mask, WHO)
    for index, image in enumerate(precise):
        if not bool((image > 0).any()):
            which = "mask" if len(precise) == 1 else f"mask {index + 1} of {len(precise)}"
            raise ValueError(f"{WHO}: {which} is empty (all 0); paint the area to edit")
    width = precise.shape[-1]
    mixed = torch.zeros(precise.shape, dtype=torch.float64)
    if precise_weight:
        mixed += precise_weight / total * precise
    if spread_weight:
        mixed += spread_weight / total * blur(dilate(precise, radius), in_pixels(blur_sigma, width))
    if box_weight:
        mixed += box_weight / total * bounding_boxes(precise, round(in_pixels(padding, width)))
    return mixed.clamp_(0.0, 1.0).float()
