"""Backgrounds whose structure goes on behind objects and beyond the frame.

Each kind is a function of continuous world coordinates, so that the same background can
be seen through any window. Edges are anti-aliased by their distance in pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KINDS = ("plain", "gradient", "striped", "checkered", "dotted", "horizon", "grid")

# Muted, so that no background is mistaken for one of the objects' colours.
PALETTE = {
    "sand": (214, 198, 170),
    "mist": (196, 208, 216),
    "steel": (134, 154, 176),
    "sage": (168, 188, 160),
    "rose": (214, 174, 178),
    "slate": (100, 112, 128),
    "clay": (176, 142, 126),
    "lilac": (184, 174, 204),
    "moss": (120, 134, 108),
    "stone": (152, 150, 146),
}


@dataclass(frozen=True)
class Background:
    """One background. Lengths are shares of the frame's shorter side, angles are radians."""

    kind: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    period: float = 0.15
    angle: float = 0.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    def render(self, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
        """Colours at world points.

        Args:
            x, y: coordinates that broadcast to (H, W), as shares of the frame's shorter side.
            pixel: width of a pixel in the same unit.

        Returns:
            float32 (H, W, 3) in [0, 1].
        """
        across = (x - self.offset_x) * math.cos(self.angle) + (y - self.offset_y) * math.sin(self.angle)
        along = (y - self.offset_y) * math.cos(self.angle) - (x - self.offset_x) * math.sin(self.angle)
        share = np.clip(_SHARES[self.kind](across, along, self.period, pixel), 0, 1, dtype=np.float32)
        mix = np.stack([1 - share, share], axis=-1)
        return mix @ np.array([self.first, self.second], dtype=np.float32) / 255


def _edge(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Coverage of the half-plane `distance` > 0."""
    return np.clip(distance / pixel + 0.5, 0, 1)


def _wave(position: np.ndarray, period: float) -> np.ndarray:
    """Signed distance to the edges of a square wave, positive in its second half."""
    phase = (position / period - 0.25) % 1.0
    return period * (0.25 - np.abs(phase - 0.5))


def _checkered(across: np.ndarray, along: np.ndarray, period: float, pixel: float) -> np.ndarray:
    a, b = _edge(_wave(across, 2 * period), pixel), _edge(_wave(along, 2 * period), pixel)
    return a + b - 2 * a * b


def _dotted(across: np.ndarray, along: np.ndarray, period: float, pixel: float) -> np.ndarray:
    dx, dy = (np.abs(c / period % 1.0 - 0.5) * period for c in (across, along))
    return _edge(0.28 * period - np.hypot(dx, dy), pixel)


def _grid(across: np.ndarray, along: np.ndarray, period: float, pixel: float) -> np.ndarray:
    lines = [_edge(0.11 * period - np.abs(c / period % 1.0 - 0.5) * period, pixel) for c in (across, along)]
    return np.maximum(*lines)


def _horizon(across: np.ndarray, along: np.ndarray, period: float, pixel: float) -> np.ndarray:
    # the sky brightens towards the horizon, the ground is plain
    sky = np.clip(0.35 + 0.5 * across, 0, 0.35)
    return sky + (1 - sky) * _edge(across, pixel)


_SHARES: dict[str, Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]] = {
    "plain": lambda across, along, period, pixel: np.zeros_like(across),
    "gradient": lambda across, along, period, pixel: 0.5 + across / (8 * period),
    "striped": lambda across, along, period, pixel: _edge(_wave(across, 2 * period), pixel),
    "checkered": _checkered,
    "dotted": _dotted,
    "horizon": _horizon,
    "grid": _grid,
}


def random_background(rng: np.random.Generator, aspect: float = 1.0) -> Background:
    """Draw a background; `aspect` is the frame's (width, height) over its shorter side, as width / height."""
    kind = KINDS[rng.integers(len(KINDS))]
    first, second = rng.choice(list(PALETTE.values()), 2, replace=False)
    if kind in ("striped", "gradient"):
        angle = math.pi / 12 * int(rng.integers(24))
    elif kind == "horizon":
        angle = math.pi / 2 + rng.uniform(-0.12, 0.12)
    else:
        angle = math.pi / 4 * int(rng.integers(2))
    width, height = max(1.0, aspect), max(1.0, 1 / aspect)
    centre = kind in ("gradient", "horizon")
    return Background(
        kind,
        (int(first[0]), int(first[1]), int(first[2])),
        (int(second[0]), int(second[1]), int(second[2])),
        period=float(rng.uniform(0.09, 0.19)),
        angle=float(angle),
        offset_x=float(width * (0.5 if centre else rng.uniform())),
        offset_y=float(height * (rng.uniform(0.35, 0.7) if centre else rng.uniform())),
    )
