"""Asking for a plan: the prompt that tells a language model the layers, the vocabulary and the request.

Source: DesignEdit (Jia et al., 2024), section 3.1: a vision-language model plans layer by layer, after examples.
"""

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .geometry import fit_into
from .layers import LARGEST_SCALE, SMALLEST_SCALE, Layer, in_order, painted_box
from .plan import DIRECTIONS, FLIPS, LARGEST_ANGLE, canvas_size, layer_names

_NODE = "Plan Prompt"

_TASK = """\
You plan edits of a picture. The picture is cut into layers: objects that lie on a background. Turn the request into \
a plan that a program carries out exactly. Answer with the plan alone: one JSON object, without comments."""

_VOCABULARY = f"""\
A plan has "layers", a list with an entry for each layer that changes, and may have "order".
An entry has the "name" of its layer, and of the following what changes:
- "move": the steps of one move, which add up. A step has a "direction" ({", ".join(DIRECTIONS)}) and a "ratio" from \
0 to 1: a share of the canvas's width for left and right, of its height for up and down, of both for the other \
directions. The ratio is the distance in pixels divided by the width or height in pixels.
- "moves": instead of "move", to show the layer at several places: a list of moves, each counted from where the layer \
is now. The empty move [] is where it is now; without it the layer leaves that place.
- "resize": "height" and "width" as factors from {SMALLEST_SCALE} to {LARGEST_SCALE:g}, about the layer's centre. 1 \
is the size it has, 2 is twice as large.
- "rotate": degrees clockwise, from -{LARGEST_ANGLE} to {LARGEST_ANGLE}.
- "flip": "horizontal" swaps left and right, "vertical" swaps top and bottom, "both" does both.
- "remove": true takes the layer away; the background is filled in behind it.
"order" is a list of the names of all layers that stay, from back to front. Give it only if that changes.
Write layer names exactly as listed. Leave out every layer and every field that does not change. A box is the place of \
a layer: left, top, right, bottom in pixels from the top left corner of the canvas, right and bottom exclusive."""

# What is asked, the canvas, the layers with their boxes, and the plan that is right.
EXAMPLES = (
    (
        "Put the lamp into the right half and make it half as tall and wide. The vase is in the way, take it out.",
        (800, 600),
        {"lamp": (100, 120, 300, 420), "vase": (520, 300, 600, 440)},
        '{"layers": [{"name": "lamp", "move": [{"direction": "right", "ratio": 0.5}], '
        '"resize": {"height": 0.5, "width": 0.5}}, {"name": "vase", "remove": true}]}',
    ),
    (
        "Mirror the bird and add a second one, 128 pixels further left and 64 higher. Birds fly behind the tree.",
        (512, 640),
        {"tree": (60, 200, 260, 600), "bird": (300, 160, 380, 220)},
        '{"layers": [{"name": "bird", "moves": [[], [{"direction": "left", "ratio": 0.25}, '
        '{"direction": "up", "ratio": 0.1}]], "flip": "horizontal"}], "order": ["bird", "tree"]}',
    ),
)


def prompt(request: str, layers: Sequence[Layer], image: Tensor | None = None) -> str:
    """A prompt that asks a language model for the plan of what `request` says.

    It holds the task, the vocabulary, the plan's JSON schema, two worked examples, and then the canvas's size, the
    layers back to front with their boxes in pixels, and the request. `image`, IMAGE (B, H, W, 3), is the source
    picture, for its size only; without it masks have to be of the picture's size. Raises ValueError for an empty
    request, no layers, layers that share a name or are empty, and as `plan.canvas_size` does.
    """
    if not request.strip():
        raise ValueError(f"{_NODE}: request is empty; write what is to change, e.g. move the cat to the left")
    names = layer_names(layers, _NODE)
    examples = [
        f"Example {number}\n\n{_case(shape, [_line(name, box) for name, box in boxes.items()], asked)}\n{plan}"
        for number, (asked, shape, boxes, plan) in enumerate(EXAMPLES, 1)
    ]
    size = canvas_size(layers, image, _NODE)
    lines = [_layer_line(layer, size) for layer in in_order(layers)]
    return "\n\n".join(
        [
            _TASK,
            _VOCABULARY,
            "The plan has to be valid for this JSON schema:\n" + json.dumps(schema(names), ensure_ascii=False),
            *examples,
            "Now the real one",
            _case(size, lines, request.strip()),
        ]
    )


def schema(names: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a plan for layers of these names."""
    name = {"enum": list(names)}
    step = _closed(
        {"direction": {"enum": list(DIRECTIONS)}, "ratio": {"type": "number", "minimum": 0, "maximum": 1}},
        ["direction", "ratio"],
    )
    place = {"type": "array", "items": step}
    factor = {"type": "number", "minimum": SMALLEST_SCALE, "maximum": LARGEST_SCALE}
    entry = _closed(
        {
            "name": name,
            "move": place,
            "moves": {"type": "array", "items": place, "minItems": 1},
            "resize": _closed({"height": factor, "width": factor}, ["height", "width"]),
            "rotate": {"type": "number", "minimum": -LARGEST_ANGLE, "maximum": LARGEST_ANGLE},
            "flip": {"enum": list(FLIPS)},
            "remove": {"type": "boolean"},
        },
        ["name"],
    )
    return _closed(
        {"layers": {"type": "array", "items": entry}, "order": {"type": "array", "items": name, "uniqueItems": True}},
        ["layers"],
    )


def _closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _case(size: tuple[int, int], lines: Sequence[str], request: str) -> str:
    listed = "\n".join(lines)
    return (
        f"Canvas: {size[0]} pixels wide, {size[1]} pixels high\n"
        f"Layers, from back to front:\n{listed}\nRequest: {request}\nPlan:"
    )


def _layer_line(layer: Layer, canvas: tuple[int, int]) -> str:
    box = painted_box(layer.mask)
    if box is None:
        raise ValueError(f"{_NODE}: the mask of layer {layer.name!r} is empty; paint it, or leave the layer out")
    rows, columns = layer.mask.shape[-2:]
    across, down, margin = canvas[0] / columns, canvas[1] / rows, (0.0, 0.0)  # a mask may be coarser than its picture
    if layer.image is not None:
        across, margin = fit_into((rows, columns), canvas[::-1])
        down = across
    left, right = (round(x * across + margin[0]) for x in box[::2])
    top, bottom = (round(y * down + margin[1]) for y in box[1::2])
    line = _line(layer.name, (left, top, right, bottom))
    return line if layer.image is None else f"{line}, of another picture, where it is put before its move"


def _line(name: str, box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return f"- {json.dumps(name, ensure_ascii=False)}: left {left}, top {top}, right {right}, bottom {bottom}"
