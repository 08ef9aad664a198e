"""Plan: layer-wise edits that a language model, or a user, writes as JSON; their vocabulary, and what they do.

`plan_prompt` asks for a plan, `plan_reading` takes it out of the answer and checks it.

Source: DesignEdit (Jia et al., 2024), section 3.1, layer-wise editing instruction planning: "move" by direction and
ratio, "resize" by height and width ratio, and the order in which the layers are pasted. Rotation, mirroring, removal
and several places per layer are added, as a layer knows them too.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .layers import Layer, Move

DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "upper-left": (-1, -1),
    "upper-right": (1, -1),
    "lower-left": (-1, 1),
    "lower-right": (1, 1),
}
FLIPS = {"horizontal": (True, False), "vertical": (False, True), "both": (True, True), "none": (False, False)}
LARGEST_ANGLE, LARGEST_ORDER = 360, 1000

# The fields of a plan, of a layer in it, of a resize and of a step, each as one may be written.
PLAN_FIELDS = {"layers": '"layers": [{"name": "cat", "remove": true}]', "order": '"order": ["dog", "cat"]'}
LAYER_FIELDS = {
    "name": '"name": "cat"',
    "move": '"move": [{"direction": "left", "ratio": 0.25}]',
    "moves": '"moves": [[], [{"direction": "left", "ratio": 0.25}]]',
    "resize": '"resize": {"height": 1.5, "width": 1.5}',
    "rotate": '"rotate": 30',
    "flip": '"flip": "horizontal"',
    "remove": '"remove": true',
    "order": '"order": 1',
}
RESIZE_FIELDS = {"height": '"height": 1.5', "width": '"width": 1.5'}
STEP_FIELDS = {"direction": '"direction": "left"', "ratio": '"ratio": 0.25'}


@dataclass(frozen=True)
class Step:
    """A part of a move: towards one of DIRECTIONS, by a share (0 to 1) of the canvas's width, height, or both."""

    direction: str
    ratio: float


Place = tuple[Step, ...]


@dataclass(frozen=True)
class LayerPlan:
    """What a plan says of one layer. What is None stays as it was.

    Attributes:
        name: of the layer.
        places: where it appears, each the steps from where it was; none at all: it is removed.
        resize: factors of (height, width).
        rotate: degrees clockwise.
        flip: one of FLIPS.
        order: layers of higher order lie in front.
    """

    name: str
    places: tuple[Place, ...] | None = None
    resize: tuple[float, float] | None = None
    rotate: float | None = None
    flip: str | None = None
    order: int | None = None


@dataclass(frozen=True)
class Plan:
    """A checked plan: edits of some layers, and the names of all that stay, back to front (empty: as they were)."""

    layers: tuple[LayerPlan, ...] = ()
    order: tuple[str, ...] = ()


def pretty(plan: Plan) -> str:
    """The plan as JSON, a field per line, always the same for the same plan; reading it gives the plan again."""
    entries = ",\n".join(_pretty_entry(entry) for entry in plan.layers)
    fields = [f'  "layers": [\n{entries}\n  ]' if entries else '  "layers": []']
    if plan.order:
        fields.append(f'  "order": {_json(plan.order)}')
    return "{\n" + ",\n".join(fields) + "\n}"


def _pretty_entry(entry: LayerPlan) -> str:
    fields: dict[str, Any] = {"name": entry.name}
    if entry.places is not None:
        places = [[dataclasses.asdict(step) for step in place] for place in entry.places]
        if not places:
            fields["remove"] = True
        elif len(places) == 1:
            fields["move"] = places[0]
        else:
            fields["moves"] = places
    if entry.resize is not None:
        fields["resize"] = dict(zip(RESIZE_FIELDS, entry.resize, strict=True))
    fields |= {name: getattr(entry, name) for name in ("rotate", "flip", "order") if getattr(entry, name) is not None}
    return "    {\n" + ",\n".join(f"      {_json(name)}: {_json(value)}" for name, value in fields.items()) + "\n    }"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def apply(plan: Plan, layers: Sequence[Layer], width: int, height: int) -> list[Layer]:
    """New layers, in the sequence given, that a plan checked against them describes.

    Ratios become pixels of a canvas of `width` by `height`. What the plan does not mention keeps its value.
    """
    entries = {entry.name: entry for entry in plan.layers}
    ranks = {name: rank for rank, name in enumerate(plan.order)}
    edited = []
    for layer in layers:
        changes: dict[str, Any] = {}
        entry = entries.get(layer.name, LayerPlan(layer.name))
        if entry.places is not None:
            changes["moves"] = tuple(_pixels(place, width, height) for place in entry.places)
        if entry.resize is not None:
            changes["scale_y"], changes["scale_x"] = entry.resize
        if entry.rotate is not None:
            changes["rotation"] = entry.rotate
        if entry.flip is not None:
            changes["flip_x"], changes["flip_y"] = FLIPS[entry.flip]
        order = ranks.get(layer.name, entry.order)
        if order is not None:
            changes["order"] = order
        edited.append(dataclasses.replace(layer, **changes))
    return edited


def _pixels(place: Place, width: int, height: int) -> Move:
    right = sum(DIRECTIONS[step.direction][0] * step.ratio for step in place)
    down = sum(DIRECTIONS[step.direction][1] * step.ratio for step in place)
    # Steps that cancel out have to give 0 exactly, as a layer that stays is not cut out.
    return round(right * width, 6), round(down * height, 6)


def canvas_size(layers: Sequence[Layer], image: Tensor | None, who: str) -> tuple[int, int]:
    """(width, height) in pixels of the source: of `image`, IMAGE (B, H, W, 3), else of masks of layers cut from it.

    Where no layer is cut from the source, the pictures that they are cut from count. Raises ValueError if sizes
    differ, or the masks have another shape than the image; `who` names the node.
    """
    own = {_size(layer.mask): layer.name for layer in layers if layer.image is None}
    if image is not None:
        width, height = _size(image[..., 0])
        for (columns, rows), name in own.items():
            if abs(columns * height - rows * width) > width + height:  # off by more than a pixel, once resized
                raise ValueError(
                    f"{who}: image is {width}x{height}, but the mask of layer {name!r} is {columns}x{rows}, another "
                    "shape; connect the picture that the layers are cut from"
                )
        return width, height
    sizes = own or {_size(layer.image[..., 0]): layer.name for layer in layers if layer.image is not None}
    if len(sizes) > 1:
        shown = ", ".join(f"{name!r} {size[0]}x{size[1]}" for size, name in sizes.items())
        raise ValueError(f"{who}: layers are of different sizes ({shown}); connect the source picture to image")
    return next(iter(sizes))


def _size(mask: Tensor) -> tuple[int, int]:
    return mask.shape[-1], mask.shape[-2]


def layer_names(layers: Sequence[Layer], who: str) -> list[str]:
    """Names, as listed. Raises ValueError if there are no layers or several of one name; `who` names the node."""
    names = [layer.name for layer in layers]
    again = first_repeated(names)
    if again is not None:
        raise ValueError(f"{who}: layers has several called {again!r}; give every layer a name of its own")
    if not names:
        raise ValueError(f"{who}: layers is empty; add a layer for every object that may be edited")
    return names


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that has been there before, or None."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
