"""Change threshold: what a turn of editing has not really changed is given back, bit for bit.

Emu Edit (Sheynin et al. 2023), per-pixel threshold between turns: with the previous turn's
picture c_s and the new one c_{s+1}, d = ||c_{s+1} - c_s||_1 over the colours, d_bar = low-pass
of d, and a pixel of the previous turn is kept where d_bar < alpha. Every turn ends in a VAE's
decoder, which changes all pixels a little; without this the little adds up over the turns.

What the decoder alone changes is often more than alpha in fine detail. So the change can be
measured from a reference, the previous picture as the same VAE returns it, and then an
unedited pixel's d is 0 however much the VAE blurs.
"""

import math
from typing import NamedTuple

import torch
from scipy import ndimage
from torch import Tensor

from .grid import as_mask, check_batch
from .soft import blur

WHO = "Change Threshold"
ALPHA = 0.03  # the paper's

_LARGEST = 3.0  # d between black and white
# Colours of the change map, red, green and blue. Below alpha a step from night to light blue,
# from alpha on heat, so that the threshold shows as an edge.
_KEPT = ((0.02, 0.02, 0.08), (0.10, 0.22, 0.50), (0.40, 0.65, 0.95))
_CHANGED = ((0.45, 0.05, 0.10), (0.85, 0.20, 0.08), (1.00, 0.62, 0.10), (1.00, 0.95, 0.45), (1.00, 1.00, 1.00))


class Thresholded(NamedTuple):
    """A turn after the threshold.

    image     (B, H, W, 3) in the previous picture's precision, where that is
    mask      (B, H, W) float32, how much of each pixel is new: 0 is kept, 1 is new
    distance  d_bar (B, H, W) float32, 0 to 3
    """

    image: Tensor
    mask: Tensor
    distance: Tensor


def colour_distance(previous: Tensor, new: Tensor, low_pass: float) -> Tensor:
    """d_bar of two pictures (B, H, W, 3), batches of 1 repeated -> (B, H, W), float64, CPU.

    d is the sum of the absolute differences of red, green and blue; `low_pass` is the sigma of
    a Gaussian in pixels, 0 leaves d as it is.
    """
    before, after = (image.detach().to(device="cpu", dtype=torch.float64) for image in (previous, new))
    return blur((after - before).abs().sum(dim=-1), low_pass)


def soft_border(changed: Tensor, width: float) -> Tensor:
    """Share of the new picture, bool (B, H, W) -> (B, H, W) float64: 1 where changed, around it a falling border.

    It falls in a straight line with the distance to the nearest changed pixel, over the next
    `width` pixels, outwards, so that a thin change is not thinned further.
    """
    share = changed.double()
    if width == 0:
        return share
    for weight, area in zip(share, changed, strict=True):
        if bool(area.any()):  # else there is no distance to measure
            away = torch.from_numpy(ndimage.distance_transform_edt(~area.numpy()))
            weight.copy_((1 - away / (width + 1)).clamp_(min=0.0))
    return share


def threshold_changes(
    previous: Tensor,
    new: Tensor,
    *,
    alpha: float = ALPHA,
    low_pass: float = 2.0,
    soft_edge: float = 0.0,
    mask: Tensor | None = None,
    reference: Tensor | None = None,
) -> Thresholded:
    """Keep the previous turn's pixel where the new turn has not changed it (d_bar < alpha).

    Args:
        previous, new: IMAGE (B, H, W, 3), values in [0, 1]; either batch may be 1.
        alpha: threshold on d_bar, 0 to 3; 0 takes the new picture whole.
        low_pass: sigma of the Gaussian on d, in pixels.
        soft_edge: pixels around a change in which both pictures are mixed, 0 is a hard edge.
        mask: MASK (B or 1, H, W), 1 = may change; greys mix, outside it nothing changes.
        reference: IMAGE that the change is measured from, where that is not the previous one.

    Returns:
        The picture, in which pixels whose mask is 0 are the previous one's bit for bit (and new
        where it is 1), the mask, and d_bar. The previous picture's precision and device.

    Raises:
        ValueError: no RGB pictures, different sizes, batches that do not fit, values that are
            not numbers, a number out of range, an empty mask.
    """
    for name, value in {"alpha": alpha, "low_pass": low_pass, "soft_edge": soft_edge}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{WHO}: {name} is {value}; it must be 0 or more")
    allowed = None if mask is None else as_mask(mask, WHO)
    _check(previous, new, allowed)
    if reference is not None:
        _check_picture("reference", reference)
        _check(previous[:1], reference[:1], None, "reference")
        check_batch(reference, max(len(previous), len(new)), WHO, "reference")
    since = previous if reference is None else reference
    parts = []
    for n in range(max(len(previous), len(new))):  # one at a time: double precision takes much memory
        distance = colour_distance(_of(since, n), _of(new, n), low_pass)
        share = soft_border(distance >= alpha, soft_edge)
        if allowed is not None:
            share = share * _of(allowed, n)
        parts.append((_mixed(_of(previous, n), _of(new, n), share), share.float(), distance.float()))
    return Thresholded(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _of(batch: Tensor, index: int) -> Tensor:
    """One of a batch, as a batch; a batch of 1 is repeated."""
    return batch if len(batch) == 1 else batch[index : index + 1]


def _mixed(previous: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """Two pictures (1, H, W, 3) mixed by the share of the new one, in the previous one's precision and device."""
    weight = share.unsqueeze(-1).to(previous.device)
    before, after = previous.detach(), new.detach().to(previous)
    mixed = torch.lerp(before.double(), after.double(), weight).to(previous.dtype)
    # where nothing is mixed the pixels are copied: arithmetic would round them
    return torch.where(weight == 0, before, torch.where(weight == 1, after, mixed))


def change_picture(distance: Tensor, alpha: float = ALPHA) -> Tensor:
    """d_bar (B, H, W) as a heat picture, IMAGE (B, H, W, 3) float32 in [0, 1].

    Blue is kept, the lighter the nearer to alpha; from alpha on dark red, orange, yellow, white.
    The scale is the same for all pictures: white is black turned white, and the hot part grows
    with the square root, so that small changes are told apart too.
    """
    pictures = []
    for values in distance.detach().to(device="cpu").split(1):  # one at a time: double precision takes much memory
        values = values.double()
        kept = values / max(alpha, 1e-9)
        changed = ((values - alpha) / max(_LARGEST - alpha, 1e-9)).clamp_(0.0, 1.0).sqrt_()
        colours = torch.where((values < alpha)[..., None], _colours(kept, _KEPT), _colours(changed, _CHANGED))
        pictures.append(colours.float())
    return torch.cat(pictures)


def _colours(share: Tensor, stops: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Colours (..., 3) at shares in [0, 1] of the way along evenly spaced stops."""
    table = torch.tensor(stops, dtype=torch.float64)
    place = share.clamp(0.0, 1.0) * (len(table) - 1)
    first = place.floor().long().clamp_(max=len(table) - 2)
    return torch.lerp(table[first], table[first + 1], (place - first)[..., None])


def _check_picture(name: str, image: Tensor) -> None:
    """Raise ValueError where an input is no batch of RGB pictures."""
    if image.ndim != 4 or image.numel() == 0:
        raise ValueError(f"{WHO}: {name} has shape {tuple(image.shape)}; an IMAGE is (batch, height, width, 3)")
    if image.shape[-1] == 4:
        raise ValueError(f"{WHO}: {name} has 4 channels (RGBA); take the alpha off with Split Image with Alpha")
    if image.shape[-1] != 3:
        raise ValueError(f"{WHO}: {name} has {image.shape[-1]} channels; give an RGB picture, of 3")
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{WHO}: {name} has values that are not numbers; repair the node that makes it")


def _check(previous: Tensor, new: Tensor, mask: Tensor | None, called: str = "new") -> None:
    """Raise ValueError where two pictures and a mask cannot be of one thing."""
    for name, image in {"previous": previous, called: new}.items():
        _check_picture(name, image)
    size, other = previous.shape[1:3], new.shape[1:3]
    if size != other:
        raise ValueError(
            f"{WHO}: {called} is {other[1]}x{other[0]}, previous {size[1]}x{size[0]}; "
            "bring one to the other's size with Upscale Image (VAEs crop to whole multiples of 8)"
        )
    images = max(len(previous), len(new))
    if {len(previous), len(new)} - {1, images}:
        raise ValueError(
            f"{WHO}: {called} has a batch of {len(new)}, previous of {len(previous)}; "
            "give as many of both, or one of either"
        )
    if mask is None:
        return
    check_batch(mask, images, WHO)
    if mask.shape[1:] != size:
        raise ValueError(
            f"{WHO}: mask is {mask.shape[2]}x{mask.shape[1]}, the pictures {size[1]}x{size[0]}; "
            "give a mask of the picture itself"
        )
    for index, image in enumerate(mask):
        if not bool((image > 0).any()):
            which = "mask" if len(mask) == 1 else f"mask {index + 1} of {len(mask)}"
            raise ValueError(f"{WHO}: {which} is empty (all 0); paint the area that may change, or disconnect it")
