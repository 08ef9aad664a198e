"""Proximal guidance: of what a prompt asks for, only the strongest part is followed.

ProxEdit (Han et al. 2023, "Improving Tuning-Free Real Image Editing with Proximal Guidance"),
which DesignEdit uses in its inversion. With classifier-free guidance at scale w

    eps = eps_uncond + w * prox(eps_cond - eps_uncond)

where prox drops what lies below a quantile of its own magnitudes. What is left unguided
follows eps_uncond: with the prompt that the picture was inverted with as the negative, that is
the source's own direction, which is why the sum starts from there and not from eps_cond. In a
CFG without prox small differences of the two predictions are multiplied by w everywhere, so
that a real picture is lost also where the prompt says nothing about it.

The host's predictions are denoised pictures, x - sigma * eps: a difference of two of them is
the difference of the eps times -sigma. Thresholds are quantiles of the difference itself, so
the factor cancels.
"""

import math

import torch
from torch import Tensor

from ..masks.grid import dilate

MODES = ("l0", "l1", "none")


def magnitude_quantile(delta: Tensor, quantile: float) -> Tensor:
    """The quantile of |delta| of each picture, delta (B, C, H, W) -> (B, 1, 1, 1) float32.

    The value at the nearest rank. torch.quantile takes 16 million values at the most.
    """
    magnitudes = delta.abs().flatten(1).float()
    rank = 1 + round(quantile * (magnitudes.shape[1] - 1))
    return magnitudes.kthvalue(rank, dim=1).values.view(-1, 1, 1, 1)


def proximal(delta: Tensor, threshold: Tensor, mode: str) -> Tensor:
    """prox(delta), (B, C, H, W) as `delta`: "l0" keeps what exceeds the threshold, "l1" shrinks by it.

    Receives `threshold` (B, 1, 1, 1) float32, at least 0.
    "none" keeps everything. Raises ValueError for other modes.
    """
    if mode == "none":
        return delta
    if mode == "l0":
        return torch.where(delta.abs().float() > threshold, delta, torch.zeros_like(delta))
    if mode == "l1":
        return (delta.float() - delta.float().clamp(-threshold, threshold)).to(delta.dtype)
    raise ValueError(f"proximal: mode is {mode!r}; it must be one of {', '.join(MODES)}")


def edited_region(delta: Tensor, threshold: Tensor, radius: int) -> Tensor:
    """M_edit, 0 or 1, (B, C, H, W) as `delta`: where it exceeds the threshold, grown by `radius` latent cells.

    Each channel has a region of its own, as it has guidance of its own.
    """
    above = (delta.abs().float() > threshold).to(delta.dtype)
    return dilate(above.flatten(0, 1), radius).view_as(delta)


def reconstruct(x: Tensor, source: Tensor, edited: Tensor, strength: float) -> Tensor:
    """Reconstruction guidance: x - strength * (x - x_src) * (1 - M_edit), all (B, C, H, W)."""
    return torch.lerp(x, source.expand_as(x), strength * (1 - edited))


def check_settings(quantile: float, radius: int, strength: float, start: float, mode: str, where: str) -> None:
    """Raise ValueError for settings out of range, `where` names the node."""
    if mode not in MODES:
        raise ValueError(f"{where}: mode is {mode!r}; choose one of {', '.join(MODES)}")
    shares = {"quantile": quantile, "recon_strength": strength, "recon_start": start}
    for name, share in shares.items():
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise ValueError(f"{where}: {name} is {share:g}; it is a share, from 0 to 1")
    if radius < 0:
        raise ValueError(f"{where}: dilation is {radius}; it is a number of latent cells, 0 or more")
