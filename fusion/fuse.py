"""Fusion of trajectories: a layer's noisy latents laid over a canvas's (DesignEdit, equation 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inversion.trajectory import Trajectory
from ..masks.grid import check_aspect, cover, to_grid
from .geometry import CELL, Cells, shifted

WHO = "Fuse Layer"


def fuse(
    canvas: Trajectory,
    layer: Trajectory,
    mask: Tensor,
    moves: Sequence[Cells],
    placed: Tensor | None = None,
    where: str = WHO,
) -> tuple[Trajectory, Tensor]:
    """Lay a layer over a canvas at every σ that both have: x ← x·(1−M) + Move(x_layer)·M for every move.

    Receives the layer's mask (B, H, W) at image size, B 1 or the batch, soft edges kept, and
    moves in whole latent cells (right, down). What a move takes out of the frame is gone;
    what enters behind it is not part of the layer.

    `placed` (B, C, h, w), in the trajectories' units: the clean latent of the canvas with
    the layer laid on it in pixels. A cell at the layer's rim shows what lies behind, too;
    with it that is the new background, and of the layer's own trajectory only the noise
    is moved: x_layer = placed + Move(x(σ) − x(0)).

    Returns the fused trajectory and the mask (B, H, W) of all places.
    Raises ValueError for trajectories of different models, sizes or schedules, and when
    nothing of the layer is left in the frame.
    """
    _check(canvas, layer, mask, moves, placed, where)
    grid = _on_grid(mask, placed is not None, *canvas.size)
    shares = [shifted(grid, right, down) for right, down in moves]
    if not any(bool((share > 0).any()) for share in shares):
        raise ValueError(f"{where}: every move takes the whole layer out of the frame; use smaller moves")
    levels = [sigma for sigma in canvas.sigmas.tolist() if layer.index(sigma) is not None]
    fused = []
    for sigma in levels:
        x, own = canvas.at(sigma), layer.at(sigma)
        if placed is not None:
            own = own - layer.clean
        for share, (right, down) in zip(shares, moves, strict=True):
            there = shifted(own, right, down)
            x = torch.lerp(x, there if placed is None else placed + there, share)
        fused.append(x)
    result = Trajectory(levels, fused, canvas.family, canvas.latent_format)
    across, along = (_pixels_per_cell(mask.shape[axis], canvas.size[axis]) for axis in (-1, -2))
    return result, moved_mask(mask, moves, (across, along))


def _on_grid(mask: Tensor, placed: bool, height: int, width: int) -> Tensor:
    """A mask (B, H, W) on the latent grid (B, 1, height, width).

    Cells that the layer only touches are taken whole when they show the right background;
    else as much as they show of the layer, twice over: at half they are the layer's
    (measured: 29.0 dB over moved objects against 26.1 dB for the plain average).
    """
    most = cover(mask, height, width)[:, None]
    if placed:
        return most
    share = to_grid(mask, height, width)[:, None]
    return torch.minimum(2 * share, most)


def moved_mask(mask: Tensor, moves: Sequence[Cells], cell: tuple[float, float] = (CELL, CELL)) -> Tensor:
    """Mask (B, H, W) of everywhere that moves by whole cells (right, down) take a layer.

    `cell` is the width and height of a latent cell in the mask's pixels.
    """
    places = [shifted(mask, round(right * cell[0]), round(down * cell[1])) for right, down in moves]
    return torch.stack(places).amax(0)


def _pixels_per_cell(pixels: int, cells: int) -> float:
    """Of a mask's side; a mask of the picture itself has less than a cell that is cropped when encoded."""
    return CELL if 0 <= pixels - cells * CELL < CELL else pixels / cells


def _check(
    canvas: Trajectory, layer: Trajectory, mask: Tensor, moves: Sequence[Cells], placed: Tensor | None, where: str
) -> None:
    if not moves:
        raise ValueError(f"{where}: there is no move; write at least one, 0, 0 to leave the layer where it is")
    if layer.family is not None:
        canvas.check_model(layer.family, f"{where}: layer")
    if layer.batch not in (1, canvas.batch):
        raise ValueError(
            f"{where}: layer has a batch of {layer.batch}, the canvas of {canvas.batch}; "
            "invert one picture for the layer, or as many as the canvas has"
        )
    if layer.shape[1:] != canvas.shape[1:]:
        raise ValueError(
            f"{where}: the layer's latents are {_size(layer)}, the canvas's {_size(canvas)}; "
            "put the layer's picture on the canvas with Transform Layer first"
        )
    if placed is not None and (placed.shape[1:] != canvas.shape[1:] or len(placed) not in (1, canvas.batch)):
        raise ValueError(
            f"{where}: placed has shape {tuple(placed.shape)}, the canvas's latents {tuple(canvas.shape)}; "
            "encode the picture from Transform Layer with the same VAE"
        )
    if placed is not None and layer.sigmas[-1] > 0:
        raise ValueError(
            f"{where}: with placed, the layer's trajectory must reach its clean picture; take Invert's own"
        )
    if len(mask) not in (1, canvas.batch):
        raise ValueError(
            f"{where}: mask has a batch of {len(mask)} for {canvas.batch} picture(s); give 1 mask or {canvas.batch}"
        )
    check_aspect(mask, canvas.size, where)
    if not bool((mask > 0).any()):
        raise ValueError(f"{where}: mask is empty (all 0); paint the layer, or move it less far")
    if all(layer.index(sigma) is None for sigma in canvas.sigmas.tolist()):
        raise ValueError(
            f"{where}: canvas and layer have no noise level in common ({canvas!r} and {layer!r}); "
            "make both with the same scheduler and steps, the layer at least up to where the canvas ends"
        )


def _size(trajectory: Trajectory) -> str:
    _, channels, height, width = trajectory.shape
    return f"{width}×{height} with {channels} channels"
