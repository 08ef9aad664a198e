"""Layer: one piece of a picture, and what an edit does with it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE, LARGEST_SCALE = 0.05, 20.0

Move = tuple[float, float]


@dataclass(frozen=True)
class Layer:
    """A piece of the source picture, or of another one, and where it goes. Immutable.

    Attributes:
        name: what plans, previews and errors call it.
        mask: MASK (1, H, W), float32, at the size of the picture that the layer is cut from.
        image: IMAGE (1, H, W, 3) of another picture; None: the source.
        scale_x, scale_y: size, as a factor, about the mask's centroid.
        rotation: degrees clockwise about the centroid.
        flip_x, flip_y: mirrored left-right, top-bottom.
        moves: places that it appears at, each (right, down) in pixels of the source from
            where it was; several are duplicates, none at all: it is removed.
        order: layers of higher order lie in front; equal ones as listed, later in front.
        occluder: MASK (1, H, W) of what hides part of it where it is now, or None.
    """

    name: str
    mask: Tensor
    image: Tensor | None = None
    scale_x: float = 1.0
    scale_y: float = 1.0
    rotation: float = 0.0
    flip_x: bool = False
    flip_y: bool = False
    moves: tuple[Move, ...] = ((0.0, 0.0),)
    order: int = 0
    occluder: Tensor | None = None

    @property
    def transforms(self) -> bool:
        """Whether the layer is resampled at all, apart from its moves."""
        turned = math.fmod(self.rotation, 360) != 0
        return (self.scale_x, self.scale_y) != (1, 1) or turned or self.flip_x or self.flip_y

    @property
    def stays(self) -> bool:
        """Whether the layer also remains where and as it was, so that nothing has to be filled behind it."""
        return self.image is None and not self.transforms and (0.0, 0.0) in self.moves


def painted_box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom), the last two exclusive, of a MASK (1, H, W) above half its maximum; None if empty."""
    rows, columns = torch.nonzero(mask[0] > 0.5 * mask.max(), as_tuple=True)
    if not len(rows):
        return None
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def in_order(layers: Sequence[Layer]) -> list[Layer]:
    """Layers back to front."""
    return sorted(layers, key=lambda layer: layer.order)


def parse_moves(text: str, width: int, height: int, where: str) -> tuple[Move, ...]:
    """Moves from text such as "120, 0" or "10%, -5%; -40, 25": pairs (right, down), one per place.

    Percents are of the picture's width and height, plain numbers are pixels. An empty text is one move by
    nothing. Raises ValueError for what is no pair of numbers; `where` names node and input.
    """
    moves = []
    for part in re.split(r"[;\uff1b\n]", text):
        if not part.strip():
            continue
        values = [value for value in re.split(r"[,\uff0c\s]+", part.strip()) if value]
        if len(values) != 2:
            raise ValueError(f"{where}: {part.strip()!r} is not a move; write right, down, e.g. 120, -40 or 10%, 0")
        pair = [_pixels(value, size, where) for value, size in zip(values, (width, height), strict=True)]
        moves.append((pair[0], pair[1]))
    return tuple(moves) or ((0.0, 0.0),)


def _pixels(value: str, size: int, where: str) -> float:
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{where}: {value!r} is not a number; write pixels (120) or percents (10%)") from None
    number = number * size / 100 if value.endswith("%") else number
    if not math.isfinite(number):
        raise ValueError(f"{where}: {value!r} is not a finite number; write pixels (120) or percents (10%)")
    return number
