"""Outlines of the toy objects and their anti-aliased rasterisation.

An outline is a list of polygons in the unit box [-0.5, 0.5]² (x right, y down); where
polygons overlap, the later one cuts a hole (even-odd). Curves are polygons too, so
that every affine edit of an object is exact: it moves vertices, never pixels.
"""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SUPERSAMPLING = 8  # Pillow rounds corners to whole pixels: to 1/8 of ours

Outline = list[np.ndarray]


def _regular(points: int, radius: float = 0.5, phase: float = -math.pi / 2) -> np.ndarray:
    angles = phase + np.arange(points) * (2 * math.pi / points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    star = _regular(10)
    star[1::2] *= 0.45
    return star


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 34, (y - 2.5) / 30], axis=1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


_BAR = 0.15  # half the width of a cross's arm
_PEN = 0.24  # width of a letter's stroke
_THIRD = 0.16

OUTLINES: dict[str, Outline] = {
    "circle": [_regular(64)],
    "ring": [_regular(64), _regular(64, 0.29)],
    "square": [0.88 * _polygon((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))],
    "triangle": [_polygon((0, -0.5), (0.5, 0.42), (-0.5, 0.42))],
    "star": [1.08 * _star()],
    "cross": [
        _polygon(
            (-_BAR, -0.5), (_BAR, -0.5), (_BAR, -_BAR), (0.5, -_BAR), (0.5, _BAR), (_BAR, _BAR),
            (_BAR, 0.5), (-_BAR, 0.5), (-_BAR, _BAR), (-0.5, _BAR), (-0.5, -_BAR), (-_BAR, -_BAR),
        )
    ],
    "heart": [_heart()],
    "letter E": [
        _polygon(
            (-0.4, -0.5), (0.4, -0.5), (0.4, -0.5 + _PEN * 0.9), (-0.4 + _PEN, -0.5 + _PEN * 0.9),
            (-0.4 + _PEN, -0.1), (0.3, -0.1), (0.3, 0.1), (-0.4 + _PEN, 0.1),
            (-0.4 + _PEN, 0.5 - _PEN * 0.9), (0.4, 0.5 - _PEN * 0.9), (0.4, 0.5), (-0.4, 0.5),
        )
    ],
    "letter H": [
        _polygon(
            (-0.42, -0.5), (-_THIRD, -0.5), (-_THIRD, -0.12), (_THIRD, -0.12), (_THIRD, -0.5), (0.42, -0.5),
            (0.42, 0.5), (_THIRD, 0.5), (_THIRD, 0.12), (-_THIRD, 0.12), (-_THIRD, 0.5), (-0.42, 0.5),
        )
    ],
    "letter L": [
        _polygon(
            (-0.4, -0.5), (-0.4 + _PEN, -0.5), (-0.4 + _PEN, 0.5 - _PEN), (0.4, 0.5 - _PEN), (0.4, 0.5), (-0.4, 0.5),
        )
    ],
    "letter T": [
        _polygon(
            (-0.5, -0.5), (0.5, -0.5), (0.5, -0.5 + _PEN), (_PEN / 2, -0.5 + _PEN),
            (_PEN / 2, 0.5), (-_PEN / 2, 0.5), (-_PEN / 2, -0.5 + _PEN), (-0.5, -0.5 + _PEN),
        )
    ],
}  # fmt: skip


def coverage(outline: Outline, matrix: np.ndarray, height: int, width: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Share of each pixel that the outline covers.

    Args:
        outline: polygons in the unit box.
        matrix: (2, 3) affine map from the unit box to pixels (pixel i spans [i, i+1]).
        height, width: size of the frame; what lies outside is cut off.

    Returns:
        float32 shares in [0, 1] of the pixels of a box around the outline, and that box
        as (rows, columns); an empty box when the outline lies outside the frame.
    """
    polygons = [polygon @ matrix[:, :2].T + matrix[:, 2] for polygon in outline]
    everything = np.concatenate(polygons)
    size = (width, height)
    left, top = (int(v) for v in np.clip(np.floor(everything.min(0)), 0, size))
    right, bottom = (int(v) for v in np.clip(np.ceil(everything.max(0)), 0, size))
    box = slice(top, max(top, bottom)), slice(left, max(left, right))
    columns, rows = (right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING
    if columns <= 0 or rows <= 0:
        return np.zeros((box[0].stop - top, box[1].stop - left), dtype=np.float32), box
    fine = Image.new("1", (columns, rows))
    for polygon in polygons:
        layer = Image.new("1", fine.size)
        points = (polygon - (left, top)) * SUPERSAMPLING
        ImageDraw.Draw(layer).polygon([tuple(p) for p in points], fill=1)
        fine = ImageChops.logical_xor(fine, layer)
    return np.asarray(fine.convert("L").reduce(SUPERSAMPLING), dtype=np.float32) / 255, box
