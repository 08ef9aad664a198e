"""Where layers go: whole-latent shifts, and transforms of a layer's pixels about its centroid.

A move has two parts. Whole latent cells are shifted exactly, without resampling
(DesignEdit, equation 3); what remains below a cell, and every change of size, angle or
side, is done to the layer's pixels before they are encoded: latents that are resampled
lose detail (the paper's ablation).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from .layers import Layer, Move

CELL = 8  # pixels per latent cell of every SD 1.x and SDXL autoencoder
REST = 1 / 64  # pixels; what remains of a move below this is no reason to resample
SOLID = 0.999  # of a mask: here the layer covers a pixel whole
EDGE = 2.0  # pixels at a mask's rim whose colour is taken from inside, as it is mixed with what lay behind

Cells = tuple[int, int]


def shifted(x: Tensor, right: int, down: int) -> Tensor:
    """Shift the last two dimensions of x (…, H, W) by whole cells; what enters is 0 (Move of equation 3)."""
    height, width = x.shape[-2:]
    out = torch.zeros_like(x)
    if abs(right) >= width or abs(down) >= height:
        return out
    to_rows, from_rows = _overlap(down, height)
    to_columns, from_columns = _overlap(right, width)
    out[..., to_rows, to_columns] = x[..., from_rows, from_columns]
    return out


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Where a line of `size` cells and its shifted self overlap: slices of target and origin."""
    return slice(max(shift, 0), min(size, size + shift)), slice(max(-shift, 0), min(size, size - shift))


def split_move(move: Move, cell: int = CELL) -> tuple[Cells, Move]:
    """A move in pixels as whole cells (right, down) and the remainder in pixels, at most half a cell."""
    cells = (round(move[0] / cell), round(move[1] / cell))
    rest = (move[0] - cells[0] * cell, move[1] - cells[1] * cell)
    return cells, (0.0 if abs(rest[0]) < REST else rest[0], 0.0 if abs(rest[1]) < REST else rest[1])


def centroid(mask: Tensor) -> tuple[float, float]:
    """Centre of gravity (x, y) in pixels of a MASK (1, H, W) that is not empty; pixel i spans [i, i+1]."""
    weights = mask[0].double()
    total = weights.sum()
    x = (weights.sum(0) * (torch.arange(weights.shape[1], dtype=torch.float64) + 0.5)).sum() / total
    y = (weights.sum(1) * (torch.arange(weights.shape[0], dtype=torch.float64) + 0.5)).sum() / total
    return float(x), float(y)


@dataclass(frozen=True)
class Affine:
    """p' = linear · p + offset in pixels, of points (x, y)."""

    linear: np.ndarray  # (2, 2)
    offset: np.ndarray  # (2,)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points (N, 2)."""
        return points @ self.linear.T + self.offset


def fit_into(size: Sequence[int], canvas: Sequence[int]) -> tuple[float, np.ndarray]:
    """Factor, and margin (right, down) in pixels, that bring a picture (height, width) into a canvas.

    It is centred there, its aspect kept.
    """
    height, width = size
    fit = min(canvas[0] / height, canvas[1] / width)
    return fit, np.array([(canvas[1] - fit * width) / 2, (canvas[0] - fit * height) / 2])


def layer_affine(layer: Layer, canvas: Sequence[int], move: Move = (0.0, 0.0)) -> Affine:
    """The map of a layer's pixels to the canvas, about the centroid of its mask.

    Flips come first, then scale, rotation, and the move. A layer of a picture of another
    size is first fitted into the canvas (height, width), centred, its aspect kept.
    """
    fit, margin = fit_into(layer.mask.shape[-2:], canvas)
    c, s = math.cos(math.radians(layer.rotation)), math.sin(math.radians(layer.rotation))
    sides = [layer.scale_x * (-1) ** layer.flip_x, layer.scale_y * (-1) ** layer.flip_y]
    linear = np.array([[c, -s], [s, c]]) @ np.diag(sides) * fit
    centre = np.array(centroid(layer.mask))
    return Affine(linear, centre * fit + margin + np.array(move) - linear @ centre)


def inward(layer: Layer, canvas: Sequence[int], move: Move, cell: int = CELL) -> Cells:
    """Whole cells (right, down) by which the transformed layer has to be shifted so that the canvas holds it.

    A layer that grows at the border would lose what leaves the frame, although its move
    brings that back; so it is made elsewhere, and moved from there. Of a layer that does not
    fit whole, or that its picture's frame cuts, the canvas holds what the move shows in the end.
    """
    last, rest = split_move(move, cell)
    height, width = layer.mask.shape[-2:]
    rows, columns = torch.nonzero(layer.mask[0] > 0, as_tuple=True)
    low = np.array([float(columns.min()), float(rows.min())])
    high = np.array([float(columns.max()), float(rows.max())]) + 1
    cut = bool((low <= 0).any() or (high >= (width, height)).any())
    # linear interpolation spreads a mask by half a pixel
    low, high = np.maximum(low - 0.5, 0), np.minimum(high + 0.5, (width, height))
    corners = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
    box = layer_affine(layer, canvas, rest)(corners)
    cells = []
    for least, most, size, final in zip(box.min(0), box.max(0), (canvas[1], canvas[0]), last, strict=True):
        if cut or math.ceil(-least / cell) > math.floor((size - most) / cell):
            least, most = max(least, -final * cell), min(most, size - final * cell)
        cells.append(min(max(0, math.ceil(-least / cell)), math.floor((size - most) / cell)))
    return cells[0], cells[1]


@dataclass(frozen=True)
class Placement:
    """A layer brought onto a canvas; shifted by `cells` it is where its move takes it."""

    picture: Tensor  # IMAGE (1, H, W, 3): the layer on a copy of the source, or the source itself
    mask: Tensor  # MASK (1, H, W)
    hidden: Tensor | None  # MASK (1, H, W) of what hid part of the layer, carried along with it
    cells: Cells  # (right, down) that remain to be moved


def transform_layer(source: Tensor, layer: Layer, move: Move = (0.0, 0.0), cell: int = CELL) -> Placement:
    """A layer's picture and masks on the source's canvas, and the whole cells that remain to be moved.

    Receives the source IMAGE (1, H, W, 3) and a move in pixels.
    A layer of the source that is neither resampled nor moved by parts of a cell is given
    back as it came, the same tensors, so that it needs no inversion of its own.
    """
    cells, rest = split_move(move, cell)
    if layer.image is None and not layer.transforms and rest == (0.0, 0.0):
        return Placement(source, layer.mask, layer.occluder, cells)
    picture = source if layer.image is None else layer.image
    height, width = source.shape[1:3]
    aside = inward(layer, (height, width), move, cell)
    affine = layer_affine(layer, (height, width), (rest[0] + aside[0] * cell, rest[1] + aside[1] * cell))
    mask, hidden = (
        None
        if given is None
        else warp(given[0].unsqueeze(-1), affine, height, width, order=1)[..., 0][None].clamp(0, 1)
        for given in (layer.mask, layer.occluder)
    )
    assert mask is not None
    placed = source.float().clone()
    rows, columns = (_extent(mask[0].amax(axis)) for axis in (1, 0))
    if rows.stop > rows.start:
        there = Affine(affine.linear, affine.offset - (columns.start, rows.start))
        clean = clean_rim(picture[0], layer.mask[0])
        pixels = warp(clean, there, rows.stop - rows.start, columns.stop - columns.start, order=3).clamp(0, 1)
        box = placed[:, rows, columns]
        box.copy_(torch.lerp(box, pixels.expand_as(box), mask[:, rows, columns].unsqueeze(-1)))
    return Placement(placed, mask, hidden, (cells[0] - aside[0], cells[1] - aside[1]))


def _extent(line: Tensor, more: int = 0) -> slice:
    """From the first to the last value (N) above 0, and so many `more` on either side; empty if there is none."""
    found = torch.nonzero(line > 0)
    return slice(max(0, int(found.min()) - more), int(found.max()) + 1 + more) if len(found) else slice(0, 0)


def lay_on(canvas: Tensor, placement: Placement, moves: Sequence[Cells], cell: int = CELL) -> Tensor:
    """A picture (1, H, W, 3) with a transformed layer laid on it in pixels, at every place."""
    canvas = canvas.to(placement.picture)  # of the fill, as the VAE hands it out
    layer = clean_rim(placement.picture[0], placement.mask[0]).movedim(2, 0)
    for right, down in moves:
        alpha = shifted(placement.mask, right * cell, down * cell)
        pixels = shifted(layer, right * cell, down * cell).movedim(0, 2)
        canvas = torch.lerp(canvas, pixels, alpha.unsqueeze(-1))
    return canvas


def clean_rim(picture: Tensor, mask: Tensor) -> Tensor:
    """The picture (H, W, 3) with the colours of a mask's rim taken from the nearest pixel well inside.

    Pixels that the mask covers in part show what lies behind as well; carried along, that
    would be a fringe at the new place.
    """
    inside = mask >= SOLID
    if not inside.any():
        return picture
    box = tuple(_extent(inside.amax(axis), math.ceil(EDGE)) for axis in (1, 0))
    found = ndimage.distance_transform_edt(~inside[box].numpy(), return_indices=True)
    distance, (rows, columns) = found[0], found[1]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    rim = torch.from_numpy((distance > 0) & (distance <= EDGE))
    clean = picture.clone()
    clean[box] = torch.where(rim.unsqueeze(-1), picture[box][rows, columns], picture[box])
    return clean


def warp(pixels: Tensor, affine: Affine, height: int, width: int, order: int) -> Tensor:
    """Resample (h, w, C) through an affine map onto (height, width, C), float32.

    Linear (order 1), 0 outside, or cubic (3), borders repeated outside. What gets smaller is
    first reduced with antialiasing by torch, so that no detail is skipped.
    """
    linear, offset = affine.linear, affine.offset
    rows, columns = pixels.shape[:2]
    # lengths of the images of a step right and a step down
    factors = np.linalg.norm(linear, axis=0)
    size = [max(1, round(n * min(1.0, f))) for n, f in zip((rows, columns), factors[::-1], strict=True)]
    if size != [rows, columns]:
        planes = pixels.movedim(2, 0)[None].float()
        pixels = F.interpolate(planes, size=size, mode="bicubic", antialias=True)[0].movedim(0, 2)
        linear = linear @ np.diag([columns / size[1], rows / size[0]])
    back = np.linalg.inv(linear)
    # scipy has (row, column) and pixel centres at whole numbers; ours are (x, y) and at halves
    matrix = back[::-1, ::-1]
    start: Any = (back @ (0.5 - offset))[::-1] - 0.5  # scipy's types know only a number
    planes = [
        ndimage.affine_transform(
            plane, matrix, start, (height, width), np.float32, order, mode="grid-constant" if order == 1 else "nearest"
        )
        for plane in pixels.movedim(2, 0).numpy()
    ]
    return torch.from_numpy(np.stack(planes, axis=2))
