"""Outlines of the toy objects and their anti-aliased rasterisation.

An outline is a list of polygons in the unit box [-0.5, 0.5]² (x right, y down); the
second and later ones are holes in the first. Curves are polygons too, so that every
affine edit of an object is exact: it moves vertices, never pixels.
"""

import math

import numpy as np

LEVELS = 4096  # of coverage, so that rounding errors are no coverage at all

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
    """Share of each pixel that the outline covers, exact.

    Every edge is cut at the pixels' borders; a piece adds what lies to its right, so that
    the sum along a row is the covered area (as font rasterisers do it).

    Args:
        outline: polygons in the unit box.
        matrix: (2, 3) affine map from the unit box to pixels (pixel i spans [i, i+1]).
        height, width: size of the frame; what lies outside is cut off.

    Returns:
        float32 shares in [0, 1] of the pixels of a box around the outline, and that box
        as (rows, columns); an empty box when the outline lies outside the frame.
    """
    polygons = [polygon @ matrix[:, :2].T + matrix[:, 2] for polygon in outline]
    corners = np.concatenate(polygons)
    size = (width, height)
    left, top = (int(v) for v in np.clip(np.floor(corners.min(0)), 0, size))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(0)), 0, size))
    rows, columns = max(0, bottom - top), max(0, right - left)
    area = np.zeros((rows, columns + 1))
    if not area[:, :-1].size:
        polygons = []  # outside the frame
    for number, polygon in enumerate(polygons):
        x, y = polygon.T
        turn = np.sign(np.roll(x, -1) @ y - np.roll(y, -1) @ x)  # which way round, flips turn it
        area += turn * (-1 if number else 1) * _area_to_the_right(polygon - (left, top), rows, columns)
    shares = np.rint(area.cumsum(1)[:, :-1] * LEVELS) / LEVELS
    return shares.astype(np.float32), (slice(top, top + rows), slice(left, left + columns))


def _area_to_the_right(polygon: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns + 1) areas whose sum along a row is the signed area right of the edges."""
    points = _cut_at_pixels(polygon)
    following = np.roll(points, -1, axis=0)
    middle, height = (points + following) / 2, following[:, 1] - points[:, 1]
    seen = (middle[:, 1] >= 0) & (middle[:, 1] < rows) & (middle[:, 0] < columns)
    # what lies left of the box covers all of it
    middle, height = np.maximum(middle[seen], 0), height[seen]
    column, row = middle.astype(int).T
    pixel = row * (columns + 1) + column
    beyond = height * (middle[:, 0] - column)  # the pixel's own part left of the piece belongs to its neighbour's sum
    length = rows * (columns + 1)
    area = np.bincount(pixel, height - beyond, length) + np.bincount(pixel + 1, beyond, length)
    return area.reshape(rows, columns + 1)


def _cut_at_pixels(polygon: np.ndarray) -> np.ndarray:
    """The polygon with further corners wherever an edge crosses into another pixel."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    places = [np.arange(len(polygon), dtype=np.float64)]  # number of the edge, and how far along it
    for start, length in zip(polygon.T, edges.T, strict=True):
        first = np.floor(np.minimum(start, start + length)).astype(int) + 1
        count = np.maximum(np.ceil(np.maximum(start, start + length)).astype(int) - first, 0)
        edge = np.repeat(np.arange(len(polygon)), count)
        border = first[edge] + np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
        places.append(edge + (border - start[edge]) / length[edge])
    place = np.sort(np.concatenate(places))
    edge = np.minimum(place.astype(int), len(polygon) - 1)
    return polygon[edge] + (place - edge)[:, None] * edges[edge]
