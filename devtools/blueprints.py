"""The one-node blueprints: whole edits as single nodes of the host's node library, and what is in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from draw_graphs import Group, Node, Port
from graphs_common import CANVAS_FILL, FADE, STEPS, WORD_FILL, WORD_GROW, WORD_STEPS

INPUT, OUTPUT = -10, -20  # the boundaries' ids, fixed by the host
BOUNDARY = "boundary"  # the kind of node that the inputs come from; it is not drawn

CELL = 8  # pixels of a latent cell: sides have to be multiples of it
REMOVAL_GROW = 20  # DesignEdit's masks at 1024 pixels: for removals,
CANVAS_GROW = 30  # and for pans and zooms

BLUE, GREEN, YELLOW, PURPLE, RED = "#3f789e", "#88aa66", "#b58b2a", "#8a5fa8", "#a1566a"
KEY_NODE = "#233"  # of the pack's own nodes, which do the work

NOISE = "From the picture back to the noise it could have been made from."
FORGET = "The area is hidden from the model; everything else follows the picture."
SAMPLE = "Draw it again. Only the area is taken from the new picture."


@dataclass(frozen=True)
class Promoted:
    """A widget of an inner node that is shown on the one node, under a name of its own."""

    name: str
    node: Node
    widget: str


@dataclass(frozen=True)
class Blueprint:
    """A graph with boundaries."""

    description: str
    inputs: dict[str, str]  # name -> type
    outputs: dict[str, Port]
    widgets: list[Promoted]
    groups: list[Group]


def boundary(inputs: dict[str, str]) -> dict[str, Port]:
    """The inputs' ports, to connect inner nodes to."""
    node = Node(BOUNDARY, id=INPUT)
    return {name: node[slot] for slot, name in enumerate(inputs)}


def empty_prompt(clip: Port) -> Node:
    """What the picture shows: nothing is said of it, the robust choice."""
    return Node("CLIPTextEncode", "Empty prompt", height=90, inputs={"clip": clip, "text": ""})


def whole_cells(title: str, picture: Port, method: str) -> Node:
    """Picture or mask with sides that are multiples of a latent cell; what has such sides passes unchanged."""
    multiple = {"resize_type": "scale to multiple", "resize_type.multiple": CELL}
    return Node("ResizeImageMaskNode", title, inputs={"input": picture, **multiple, "scale_method": method})


def grown(mask: Port, pixels: int) -> Node:
    """The mask with a margin."""
    return Node("GrowMask", inputs={"mask": mask, "expand": pixels, "tapered_corners": False})


def filled(
    ports: dict[str, Port],
    image: Port,
    mask: Port,
    twins: bool = False,
    faded: Port | None = None,
    **settings: Any,
) -> tuple[list[Group], Port, list[Promoted]]:
    """Forget what is under the mask and fill it from its surroundings: groups, the result, its widgets.

    `twins`: what looks like it is forgotten too; `faded`: the mask by which the result is put into the picture, if
    it is not `mask`; `settings` are of the key mask.
    """
    model, vae = ports["model"], ports["vae"]
    text = empty_prompt(ports["clip"])
    encoded = Node("VAEEncode", inputs={"pixels": image, "vae": vae})
    schedule = Node("BasicScheduler", inputs={"model": model, "scheduler": "normal", "steps": STEPS})
    inverted = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model, "conditioning": text[0], "latent": encoded[0], "sigmas": schedule[0]},
    )
    hidden = Node(
        "LatentLayersKeyMaskedSelfAttention", colour=KEY_NODE, inputs={"model": model, "mask": mask, **settings}
    )
    alike = Node("LatentLayersLookalikeMask", colour=KEY_NODE, inputs={"latent": encoded[0], "mask": mask})
    if twins:
        hidden.inputs["artifact_mask"] = alike[0]
    kept = Node(
        "LatentLayersKeepSource",
        colour=KEY_NODE,
        inputs={"model": hidden[0], "trajectory": inverted[0], "mask": mask},
    )
    guider = Node("BasicGuider", inputs={"model": kept[0], "conditioning": text[0]})
    sampler = Node("KSamplerSelect", inputs={"sampler_name": "euler"})
    sampled = Node(
        "LatentLayersSample",
        colour=KEY_NODE,
        inputs={"guider": guider[0], "sampler": sampler[0], "sigmas": schedule[0], "trajectory": inverted[0]},
    )
    decoded = Node("VAEDecode", inputs={"samples": sampled[1], "vae": vae})
    result = Node(
        "ImageCompositeMasked",
        "Only the masked area",
        inputs={"destination": image, "source": decoded[0], "mask": mask if faded is None else faded},
    )
    groups = [
        Group("2  Noise", YELLOW, NOISE, 90, [[text, encoded, schedule, inverted]]),
        Group("3  Edit", PURPLE, FORGET, 90, [[*([alike] if twins else []), hidden, kept, guider]], width=340),
        Group("4  Sample", RED, SAMPLE, 90, [[sampler, sampled, decoded, result]]),
    ]
    return groups, result[0], [Promoted("guidance", hidden, "guidance"), Promoted("steps", schedule, "steps")]


def remove_object() -> Blueprint:
    """What is under a mask goes."""
    inputs = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "image": "IMAGE", "mask": "MASK"}
    ports = boundary(inputs)
    image = whole_cells("Picture in whole cells", ports["image"], "bicubic")
    fitted = whole_cells("Mask likewise", ports["mask"], "bilinear")
    mask = grown(fitted[0], REMOVAL_GROW)
    groups, result, widgets = filled(ports, image[0], mask[0], twins=True)
    note = "The mask has to be larger than the object, with its shadow: *grow*."
    return Blueprint(
        "Removes what a mask covers and fills the place from its surroundings. Every other pixel stays as it is. "
        "For Stable Diffusion 1.x, 2.x and SDXL, with pictures of about the model's size; sides are fitted to "
        "multiples of 8. grow: pixels added around the mask, 20 for a width of 1024.",
        inputs,
        {"image": result, "mask": mask[0]},
        [Promoted("grow", mask, "expand"), *widgets],
        [Group("1  Area", BLUE, note, 90, [[image, fitted, mask]]), *groups],
    )


def move_object() -> Blueprint:
    """What is under a mask goes elsewhere, in another size or angle."""
    inputs = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "image": "IMAGE", "mask": "MASK"}
    ports = boundary(inputs)
    text = empty_prompt(ports["clip"])
    layer = Node("LatentLayersAddLayer", colour=KEY_NODE, inputs={"mask": ports["mask"], "moves": "10%, 0"})
    edit = Node(
        "LatentLayersLayeredEdit",
        colour=KEY_NODE,
        inputs={
            "model": ports["model"], "vae": ports["vae"], "conditioning": text[0], "image": ports["image"],
            "layers": layer[0], "steps": STEPS,
        },
    )  # fmt: skip
    change = [Promoted(name, layer, name) for name in ("moves", "scale_x", "scale_y", "rotation", "flip")]
    effort = [Promoted(name, edit, name) for name in ("guidance", "steps")]
    return Blueprint(
        "Moves, resizes, turns, flips or duplicates what a mask covers and fills the place it leaves. Every pixel away "
        "from the old and new places stays as it is. For Stable Diffusion 1.x, 2.x and SDXL, with pictures of about "
        "the model's size. moves: right, down, in pixels (120, -40) or percents (10%, 0); semicolons for duplicates.",
        inputs,
        {"image": edit[0], "masks": edit[1]},
        [*change, *effort],
        [
            Group("1  Layer", BLUE, "What becomes of the object. Chain more *Add Layer* for more.", 90, [[layer]]),
            Group("2  Edit", PURPLE, "After a change only what depends on it runs again.", 90, [[text, edit]], 340),
        ],
    )


def new_canvas(description: str, fixed: dict[str, float], settings: list[str], changed: dict[str, float]) -> Blueprint:
    """The picture at another place of its canvas; what this exposes is filled."""
    inputs = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "image": "IMAGE"}
    ports = boundary(inputs)
    image = whole_cells("Picture in whole cells", ports["image"], "bicubic")
    placed = Node("LatentLayersPanAndZoom", colour=KEY_NODE, inputs={"image": image[0], **fixed, **changed})
    mask = grown(placed[1], CANVAS_GROW)
    soft = Node("LatentLayersSoftMask", colour=KEY_NODE, inputs={"mask": placed[1], **FADE})
    faded = Node(
        "MaskComposite",
        "Nowhere beyond the grown mask",
        inputs={"destination": soft[0], "source": mask[0], "x": 0, "y": 0, "operation": "multiply"},
    )
    groups, result, widgets = filled(ports, placed[0], mask[0], faded=faded[0], **CANVAS_FILL)
    note = (
        "The exposed area, and *grow* pixels of the picture beside it, are filled like a removal. In these pixels "
        "the new picture fades into the old one."
    )
    return Blueprint(
        f"{description} For Stable Diffusion 1.x, 2.x and SDXL, with pictures of about the model's size; sides are "
        "fitted to multiples of 8. grow: pixels of the picture that are drawn again at its border, 30 for a width "
        "of 1024.",
        inputs,
        {"image": result, "mask": mask[0]},
        [*(Promoted(name, placed, name) for name in settings), *widgets, Promoted("grow", mask, "expand")],
        [Group("1  Canvas", BLUE, note, 110, [[image, placed, mask, soft, faded]]), *groups],
    )


def zoom_out() -> Blueprint:
    """More of the world around the picture."""
    return new_canvas(
        "Shrinks the picture on its own canvas, as if the camera had zoomed out, and fills what this exposes.",
        {"shift_x": 0.0, "shift_y": 0.0},
        ["zoom", "center_x", "center_y", "fill"],
        {},
    )


def pan() -> Blueprint:
    """The world beside the picture."""
    return new_canvas(
        "Shifts the picture on its own canvas, as if the camera had panned, and fills what this exposes. Shifts are "
        "shares of the width and the height; positive ones move the picture right and down.",
        {"zoom": 1.0},
        ["shift_x", "shift_y", "fill"],
        {"shift_x": 0.2},
    )


def edit_by_words() -> Blueprint:
    """What two texts say differently is changed, where the model finds it."""
    inputs = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "image": "IMAGE"}
    ports = boundary(inputs)
    model, clip, vae = ports["model"], ports["clip"], ports["vae"]
    image = whole_cells("Picture in whole cells", ports["image"], "bicubic")
    before, after = (Node("PrimitiveStringMultiline", title, 110, {"value": ""}) for title in ("Before", "After"))
    empty = empty_prompt(clip)
    encoded = Node("VAEEncode", inputs={"pixels": image[0], "vae": vae})
    found = Node(
        "LatentLayersInstantAttentionMask",
        colour=KEY_NODE,
        inputs={
            "model": model, "clip": clip, "text": after[0], "latent": encoded[0], "negative": empty[0],
            "source_text": before[0], "steps": WORD_STEPS,
        },
    )  # fmt: skip
    mask = grown(found[0], WORD_GROW)
    schedule = Node("BasicScheduler", inputs={"model": model, "scheduler": "normal", **WORD_FILL})
    inverted = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model, "conditioning": empty[0], "latent": encoded[0], "sigmas": schedule[0]},
    )
    kept = Node(
        "LatentLayersKeepSource",
        colour=KEY_NODE,
        inputs={"model": model, "trajectory": inverted[0], "mask": mask[0]},
    )
    prompt = Node("CLIPTextEncode", "Edit prompt", height=90, inputs={"clip": clip, "text": after[0]})
    guider = Node("CFGGuider", inputs={"model": kept[0], "positive": prompt[0], "negative": empty[0], "cfg": 7.5})
    sampler = Node("KSamplerSelect", inputs={"sampler_name": "euler"})
    sampled = Node(
        "LatentLayersSample",
        colour=KEY_NODE,
        inputs={"guider": guider[0], "sampler": sampler[0], "sigmas": schedule[0], "trajectory": inverted[0]},
    )
    decoded = Node("VAEDecode", inputs={"samples": sampled[1], "vae": vae})
    result = Node(
        "ImageCompositeMasked",
        "Only the masked area",
        inputs={"destination": image[0], "source": decoded[0], "mask": mask[0]},
    )
    look = "Edited half-way, to see where the picture shows the words that go."
    draw = "Inside the mask the picture is drawn again from its own noise, by the text."
    return Blueprint(
        "Changes what two texts say differently, where the model itself finds it: no mask is painted, and every pixel "
        "outside the mask that it makes stays as it is. before: what the picture shows; after: what it should show, "
        "in the same words where nothing changes. For Stable Diffusion 1.x, 2.x and SDXL, with pictures of about the "
        "model's size; sides are fitted to multiples of 8. phi: higher makes the mask smaller; grow: pixels added "
        "around it, 48 for a width of 1024.",
        inputs,
        {"image": result[0], "mask": mask[0]},
        [
            Promoted("before", before, "value"),
            Promoted("after", after, "value"),
            Promoted("cfg", guider, "cfg"),
            Promoted("phi", found, "phi"),
            Promoted("grow", mask, "expand"),
        ],
        [
            Group("1  Words", BLUE, "What the picture shows, and what it should show.", 90, [[image, before, after]]),
            Group("2  Mask", GREEN, look, 90, [[empty, encoded, found, mask]], width=340),
            Group("3  Noise", YELLOW, NOISE, 90, [[schedule, inverted]]),
            Group("4  Edit", PURPLE, draw, 90, [[kept, prompt, guider]], width=340),
            Group("5  Sample", RED, SAMPLE, 90, [[sampler, sampled, decoded, result]]),
        ],
    )


BLUEPRINTS: dict[str, Callable[[], Blueprint]] = {
    "Remove Object": remove_object,
    "Move Object": move_object,
    "Zoom Out": zoom_out,
    "Pan": pan,
    "Edit By Words": edit_by_words,
}
