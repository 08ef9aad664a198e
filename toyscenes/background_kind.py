"""Which kind of background a picture has, whatever its colours: the best fit of all kinds.

Every kind is drawn at many periods, angles and places, and each drawing is fitted to the
picture with two free colours. Objects are left out.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from scipy import ndimage

from ..masks.grid import to_grid
from .backgrounds import PALETTE, Background
from .scenes import COLOURS

CELLS = 48  # of the shorter side
FLAT = 0.01  # standard deviation below which a background has no pattern
FITS = 0.35  # share of the variance that a pattern has to explain
_PERIODS = 1 / np.linspace(1 / 0.19, 1 / 0.09, 16)  # even in frequency, so that drawings fit to the frame's rim


def object_labels(picture: np.ndarray) -> np.ndarray:
    """Which of COLOURS, by number, a pixel of a picture (H, W, 3) is nearest to, (H, W); -1: a background's.

    Patches that are thinner than 3 pixels, such as rims between other colours, are background.
    """
    names = np.array([*COLOURS.values(), *PALETTE.values()], np.float32) / 255
    labels = ((picture[..., None, :].astype(np.float32) - names) ** 2).sum(-1).argmin(-1)
    result = np.full(labels.shape, -1)
    for index in range(len(COLOURS)):
        result = np.where(ndimage.binary_opening(labels == index, np.ones((3, 3))), index, result)
    return result


def background_kind(picture: np.ndarray) -> str:
    """The kind, one of backgrounds.KINDS, of what lies behind the objects of a picture (H, W, 3) in [0, 1]."""
    kinds, drawings = _drawings(*_cells(*picture.shape[:2]))
    objects = ndimage.binary_dilation(object_labels(picture) >= 0, np.ones((3, 3)), iterations=2)
    planes = np.concatenate([picture, objects[..., None].astype(np.float32)], axis=2).transpose(2, 0, 1)
    *colours, hidden = to_grid(torch.from_numpy(np.ascontiguousarray(planes)), *_cells(*picture.shape[:2])).numpy()
    weights = (hidden < 0.02).ravel().astype(np.float32)
    pixels = np.stack([plane.ravel() for plane in colours], axis=1)
    if weights.sum() < 0.1 * len(weights):
        return "plain"
    weights /= weights.sum()
    pixels = pixels - weights @ pixels
    variance = weights @ pixels**2
    if math.sqrt(variance.max()) < FLAT:
        return "plain"
    # least squares of each channel on a drawing: what it explains is covariance squared over variance
    covariance = drawings @ (weights[:, None] * pixels)
    own = (drawings**2) @ weights - (drawings @ weights) ** 2
    explained = (covariance**2).sum(1) / np.maximum(own, 1e-4) / variance.sum()
    best = int(explained.argmax())
    return kinds[best] if explained[best] >= FITS else "plain"


def _cells(height: int, width: int) -> tuple[int, int]:
    return round(CELLS * height / min(height, width)), round(CELLS * width / min(height, width))


@lru_cache(maxsize=2)
def _drawings(rows: int, columns: int) -> tuple[list[str], np.ndarray]:
    """Kinds (N) and drawings (N, rows * columns), float32 in [0, 1]."""
    unit = min(rows, columns)
    x = ((np.arange(columns) + 0.5) / unit).astype(np.float32)[None, :]
    y = ((np.arange(rows) + 0.5) / unit).astype(np.float32)[:, None]
    kinds, drawn = [], []
    for background in _variants(columns / unit, rows / unit):
        kinds.append(background.kind)
        drawn.append(background.render(x, y, pixel=1 / unit)[..., 0].ravel())
    return kinds, np.stack(drawn)


def _variants(width: float, height: float) -> Iterator[Background]:
    """Backgrounds of every kind but plain, black and white."""

    def background(kind: str, period: float, angle: float, across: float = 0.0, along: float = 0.0) -> Background:
        # shifts from the frame's middle, so that the fit is best there
        c, s = math.cos(angle), math.sin(angle)
        x, y = width / 2 + across * c - along * s, height / 2 + across * s + along * c
        return Background(kind, (0, 0, 0), (255, 255, 255), period, angle, x, y)

    eighths, sixths = ([i / n for i in range(n)] for n in (8, 6))
    for period in _PERIODS.tolist():
        for angle, shift in product(range(12), eighths):
            yield background("striped", period, math.pi / 12 * angle, 2 * period * shift)
        for angle in (0.0, math.pi / 4):
            for a, b in product(eighths, eighths[:4]):
                yield background("checkered", period, angle, 2 * period * a, 2 * period * b)
            for kind, (a, b) in product(("dotted", "grid"), product(sixths, sixths)):
                yield background(kind, period, angle, period * a, period * b)
    for period, angle in product(_PERIODS[::4].tolist(), range(24)):
        yield background("gradient", period, math.pi / 12 * angle)
    for angle, level in product(np.linspace(-0.12, 0.12, 5).tolist(), np.linspace(-0.15, 0.2, 15).tolist()):
        yield background("horizon", 0.1, math.pi / 2 + angle, height * level)
