"""Measurements on pixels: similarity to the truth, and which objects a picture shows."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from .backgrounds import PALETTE
from .scenes import COLOURS, SHAPES, Scene, SceneObject
from .shapes import OUTLINES, coverage

SMALLEST = 0.004  # share of the frame below which a patch of colour is no object
ALIKE = 0.72  # overlap (intersection over union) from which a patch has a shape


def psnr(picture: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], 100 at most.

    Args:
        picture, truth: (H, W, 3).
        mask: (H, W) in [0, 1], weight of each pixel; everything when missing.

    Raises:
        ValueError: the mask is 0 everywhere.
    """
    error = (np.asarray(picture, np.float64) - truth) ** 2
    weights = np.ones(error.shape[:2]) if mask is None else np.asarray(mask, np.float64)
    if not weights.any():
        raise ValueError("psnr: the mask is 0 everywhere; nothing is left to compare")
    mean = (error.mean(2) * weights).sum() / weights.sum()
    return -10 * math.log10(max(mean, 1e-10))


@dataclass(frozen=True)
class Found:
    """A connected patch of one of the objects' colours, and the shape it has (None when it has none)."""

    colour: str
    shape: str | None
    x: float  # centroid in pixels
    y: float
    area: float  # pixels
    overlap: float  # with the best-fitting shape


def find_objects(picture: np.ndarray) -> list[Found]:
    """Objects in a picture, by colour, then by the outline that fits best.

    Args:
        picture: (H, W, 3) in [0, 1].

    Each pixel takes the nearest of all named colours; patches of an object's colour that
    are large enough are compared with every outline, placed at the patch's centroid with
    its area, at angles from -20 to 20 degrees; the three likeliest are then fitted in
    place, size and angle. Pixels of other patches are left out of the comparison, since
    they may hide part of the object.
    """
    labels = _nearest_colour(picture)
    opened = {c: ndimage.binary_opening(labels == i, np.ones((3, 3))) for i, c in enumerate(COLOURS)}
    anything = np.logical_or.reduce(list(opened.values()))
    found = []
    for colour, mask in opened.items():
        patches = np.zeros(mask.shape, dtype=np.int32)
        count: Any = ndimage.label(mask, output=patches)
        for number in range(1, count + 1):
            patch = patches == number
            if patch.sum() >= SMALLEST * patch.size:
                found.append(_describe(colour, patch, anything & ~patch))
    return found


def follows_caption(scene: Scene, picture: np.ndarray) -> bool:
    """Whether `picture` shows every named colour and shape of the scene's caption exactly as often as named."""
    found = find_objects(picture)
    named = {(o.colour, o.shape) for o in scene.objects}
    return all(
        sum((f.colour, f.shape) == key for f in found) == sum((o.colour, o.shape) == key for o in scene.objects)
        for key in named
    ) and (bool(named) or not found)


def colour_centroid(picture: np.ndarray, colour: str, near: np.ndarray) -> tuple[float, float] | None:
    """Centre of gravity (x, y) in pixels of an object's colour within an area, None where it is not seen.

    Args:
        picture: (H, W, 3) in [0, 1].
        colour: one of COLOURS.
        near: bool (H, W), where to look.
    """
    rows, columns = np.nonzero((_nearest_colour(picture) == list(COLOURS).index(colour)) & near)
    return (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5) if len(rows) else None


def _nearest_colour(picture: np.ndarray) -> np.ndarray:
    names = np.array([*COLOURS.values(), *PALETTE.values()], dtype=np.float32) / 255
    distances = ((picture[..., None, :].astype(np.float32) - names) ** 2).sum(-1)
    return distances.argmin(-1)


def _describe(colour: str, patch: np.ndarray, hidden: np.ndarray) -> Found:
    rows, columns = np.nonzero(patch)
    x, y, area = columns.mean() + 0.5, rows.mean() + 0.5, float(len(rows))
    top, left = max(rows.min() - 24, 0), max(columns.min() - 24, 0)
    near = slice(top, rows.max() + 24), slice(left, columns.max() + 24)
    patch, hidden = patch[near], hidden[near]
    candidates = []
    for name in SHAPES:
        centre, unit_area = _CENTRES[name]
        placed = [
            Placement(name, x - left, y - top, math.sqrt(area / unit_area), angle) for angle in range(-20, 21, 10)
        ]
        candidates.append(max((p.overlap(patch, hidden), p) for p in placed))
    best, placement = max(_fitted(p, patch, hidden) for _, p in sorted(candidates)[-3:])
    return Found(colour, placement.name if best >= ALIKE else None, x, y, area, best)


@dataclass(frozen=True, order=True)
class Placement:
    """An outline whose centre of gravity lies at (x, y), in pixels; degrees clockwise."""

    name: str
    x: float
    y: float
    size: float
    angle: float

    def overlap(self, patch: np.ndarray, hidden: np.ndarray) -> float:
        """Intersection over union with a patch, hidden pixels left out."""
        matrix = SceneObject(self.name, "red", 0, 0, self.size, rotation=self.angle).matrix()
        matrix[:, 2] = np.array([self.x, self.y]) - matrix[:, :2] @ _CENTRES[self.name][0]
        shares, box = coverage(OUTLINES[self.name], matrix, *patch.shape)
        covered = (shares > 0.5) & ~hidden[box]
        both = (covered & patch[box]).sum()
        return float(both / max(1, covered.sum() + patch.sum() - both))


def _fitted(start: Placement, patch: np.ndarray, hidden: np.ndarray) -> tuple[float, Placement]:
    """The best placement near `start` by a pattern search with shrinking steps."""
    best = (start.overlap(patch, hidden), start)
    for step in (8.0, 4.0, 2.0):
        improved = True
        while improved:
            here = best[1]
            moves = [(step, 0, 0, 0), (0, step, 0, 0), (0, 0, 1.5 * step, 0), (0, 0, 0, 2 * step)]
            around = [
                Placement(
                    here.name, here.x + s * dx, here.y + s * dy, max(8.0, here.size + s * ds), here.angle + s * da
                )
                for dx, dy, ds, da in moves
                for s in (1, -1)
            ]
            found = max((p.overlap(patch, hidden), p) for p in around if abs(p.angle) <= 24)
            improved = found[0] > best[0] + 1e-3
            best = max(best, found)
    return best


def _centre_and_area(name: str) -> tuple[np.ndarray, float]:
    """Centre of gravity and area of an outline, in units of its box."""
    size = 200
    shares, (rows, columns) = coverage(OUTLINES[name], np.array([[size, 0, size], [0, size, size]]), 2 * size, 2 * size)
    y, x = np.mgrid[rows, columns] + 0.5
    centre = np.array([(x * shares).sum(), (y * shares).sum()]) / shares.sum() / size - 1
    return centre, float(shares.sum()) / size**2


_CENTRES = {name: _centre_and_area(name) for name in SHAPES}
