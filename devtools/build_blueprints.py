"""Write the one-node blueprints (subgraphs/): whole edits as single nodes of the host's node library.

    python devtools/build_blueprints.py

A blueprint is a graph with boundaries: inputs and outputs become the slots of the one node, and
promoted widgets are shown on it. The library calls it by its file's name.

Needs the environment that `python dev.py` sets up.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draw_graphs import MARGIN, ROW, WIDGET, Drawing, Group, Info, Node, Port
from host_client import Client
from host_server import temporary_server
from pack import ROOT

HERE = ROOT / "subgraphs"
CATEGORY = "Latent Layers"
INPUT, OUTPUT = -10, -20  # the boundaries' ids, fixed by the host
BOUNDARY = "boundary"  # the kind of node that the inputs come from; it is not drawn
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
WIDTH = 300  # of the one node
BORDER, BORDER_WIDTH = 24, 140  # of a boundary: around its slots, and its width

CELL = 8  # pixels of a latent cell: sides have to be multiples of it
STEPS = 50
REMOVAL_GROW = 20  # DesignEdit's masks at 1024 pixels: for removals,
CANVAS_GROW = 30  # and for pans and zooms

BLUE, YELLOW, PURPLE, RED = "#3f789e", "#b58b2a", "#8a5fa8", "#a1566a"
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


def filled(ports: dict[str, Port], image: Port, mask: Port) -> tuple[list[Group], Port, list[Promoted]]:
    """Forget what is under the mask and fill it from its surroundings: groups, the result, its widgets."""
    model, vae = ports["model"], ports["vae"]
    text = empty_prompt(ports["clip"])
    encoded = Node("VAEEncode", inputs={"pixels": image, "vae": vae})
    schedule = Node("BasicScheduler", inputs={"model": model, "scheduler": "normal", "steps": STEPS})
    inverted = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model, "conditioning": text[0], "latent": encoded[0], "sigmas": schedule[0]},
    )
    hidden = Node("LatentLayersKeyMaskedSelfAttention", colour=KEY_NODE, inputs={"model": model, "mask": mask})
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
        inputs={"destination": image, "source": decoded[0], "mask": mask},
    )
    groups = [
        Group("2  Noise", YELLOW, NOISE, 90, [[text, encoded, schedule, inverted]]),
        Group("3  Edit", PURPLE, FORGET, 90, [[hidden, kept, guider]], width=340),
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
    groups, result, widgets = filled(ports, image[0], mask[0])
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
    groups, result, widgets = filled(ports, placed[0], mask[0])
    note = "The exposed area, and *grow* pixels of the picture beside it, are filled like a removal."
    return Blueprint(
        f"{description} For Stable Diffusion 1.x, 2.x and SDXL, with pictures of about the model's size; sides are "
        "fitted to multiples of 8. grow: pixels of the picture that are drawn again at its border, 30 for a width "
        "of 1024.",
        inputs,
        {"image": result, "mask": mask[0]},
        [*(Promoted(name, placed, name) for name in settings), *widgets, Promoted("grow", mask, "expand")],
        [Group("1  Canvas", BLUE, note, 90, [[image, placed, mask]]), *groups],
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


BLUEPRINTS: dict[str, Callable[[], Blueprint]] = {
    "Remove Object": remove_object,
    "Move Object": move_object,
    "Zoom Out": zoom_out,
    "Pan": pan,
}


def api(info: Info, blueprint: Blueprint) -> dict[str, dict[str, Any]]:
    """What is inside, in the form for programs; connections to the boundary have its id."""
    return Drawing(info, blueprint.groups).api()


def page(info: Info, name: str, blueprint: Blueprint) -> dict[str, Any]:
    """A graph of the one node, with the definition of what is in it."""
    drawing = Drawing(info, blueprint.groups)
    wires = [(node, slot, port) for node in drawing.nodes for slot, port in node.inputs.items() if from_outside(port)]
    for node, slot, _ in wires:
        del node.inputs[slot]  # drawn below, with the promoted widgets
    drawn = drawing.page()
    nodes = {node["id"]: node for node in drawn["nodes"]}
    links: list[dict[str, Any]] = [dict(zip(LINK, link, strict=True)) for link in drawn["links"]]
    inputs = [{"name": slot, "type": kind, "link": None} for slot, kind in blueprint.inputs.items()]
    outputs, values = [], []

    def connect_input(slot: int, node: Node, name: str) -> None:
        place, entry = inner_input(nodes[node.id], name)
        entry["link"] = len(links) + 1
        ends = (INPUT, slot, node.id, place, inputs[slot]["type"])
        links.append(dict[str, Any](zip(LINK, (entry["link"], *ends), strict=True)))

    for node, slot, port in wires:
        connect_input(port.slot, node, slot)
    for promoted in blueprint.widgets:
        kind = inner_input(nodes[promoted.node.id], promoted.widget)[1]["type"]
        inputs.append({"name": promoted.name, "type": kind, "widget": {"name": promoted.name}, "link": None})
        connect_input(len(inputs) - 1, promoted.node, promoted.widget)
        values.append(widget_value(nodes[promoted.node.id], promoted.widget))
    for slot, (output, port) in enumerate(blueprint.outputs.items()):
        source = nodes[port.node.id]["outputs"][port.slot]
        source["links"].append(len(links) + 1)
        ends = (port.node.id, port.slot, OUTPUT, slot, source["type"])
        links.append(dict[str, Any](zip(LINK, (len(links) + 1, *ends), strict=True)))
        outputs.append({"name": output, "type": source["type"], "links": []})

    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"latent-layers/subgraphs/{name}")
    last = max(nodes)
    definition = {
        "id": str(identity), "version": 1, "revision": 0, "config": {}, "name": name,
        "state": {
            "lastGroupId": len(drawn["groups"]), "lastNodeId": last, "lastLinkId": len(links), "lastRerouteId": 0,
        },
        **boundaries(identity, inputs, outputs, links, right=max(sum(g["bounding"][::2]) for g in drawn["groups"])),
        "widgets": [], "nodes": drawn["nodes"], "groups": drawn["groups"], "links": links, "extra": drawn["extra"],
        "category": CATEGORY, "description": blueprint.description,
    }  # fmt: skip
    rows = max(len(blueprint.inputs), len(outputs))
    outer = {
        "id": last + 1, "type": str(identity), "title": name, "pos": [0, 0],
        "size": [WIDTH, 6 + rows * ROW + len(values) * WIDGET + 8], "flags": {}, "order": 0, "mode": 0,
        "inputs": inputs, "outputs": outputs, "properties": {}, "widgets_values": values,
    }  # fmt: skip
    return {
        "id": str(uuid.uuid5(identity, "page")), "revision": 0, "last_node_id": last + 1, "last_link_id": 0,
        "nodes": [outer], "links": [], "version": 0.4, "definitions": {"subgraphs": [definition]}, "extra": {},
    }  # fmt: skip


def from_outside(value: Any) -> bool:
    """Whether a node's input comes through the boundary."""
    return isinstance(value, Port) and value.node.kind == BOUNDARY


def inner_input(node: dict[str, Any], name: str) -> tuple[int, dict[str, Any]]:
    """A drawn node's input of this name: its slot and its entry."""
    return next((slot, entry) for slot, entry in enumerate(node["inputs"]) if entry["name"] == name)


def widget_value(node: dict[str, Any], widget: str) -> Any:
    """What a drawn node's widget holds. Only for nodes whose widgets before it have no control after them."""
    names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    return node["widgets_values"][names.index(widget)]


def boundaries(
    identity: uuid.UUID, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], links: list[dict[str, Any]],
    right: int,
) -> dict[str, Any]:  # fmt: skip
    """The two boundaries, left of the graph and right of it, and their slots."""
    left = -BORDER_WIDTH - 3 * MARGIN
    right += 3 * MARGIN
    height = 2 * BORDER
    return {
        "inputNode": {"id": INPUT, "bounding": [left, 0, BORDER_WIDTH, height + ROW * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [right, 0, BORDER_WIDTH, height + ROW * len(outputs)]},
        "inputs": slots(identity, "origin", INPUT, inputs, links, left + BORDER_WIDTH - BORDER),
        "outputs": slots(identity, "target", OUTPUT, outputs, links, right + BORDER),
    }


def slots(
    identity: uuid.UUID, end: str, boundary_id: int, entries: list[dict[str, Any]], links: list[dict[str, Any]], x: int
) -> list[dict[str, Any]]:
    """A boundary's slots; `end` is which end of their links it is."""
    return [
        {
            "id": str(uuid.uuid5(identity, f"{end}/{entry['name']}")),
            "name": entry["name"],
            "type": entry["type"],
            "linkIds": [
                link["id"] for link in links if (link[f"{end}_id"], link[f"{end}_slot"]) == (boundary_id, number)
            ],
            "pos": [x, BORDER + number * ROW],
        }
        for number, entry in enumerate(entries)
    ]


def files(info: Info) -> dict[Path, str]:
    """Every blueprint's file and what is in it."""
    return {
        HERE / f"{name}.json": json.dumps(page(info, name, build()), indent=2, ensure_ascii=False) + "\n"
        for name, build in BLUEPRINTS.items()
    }


def main() -> None:
    """Write the files."""
    HERE.mkdir(exist_ok=True)
    with temporary_server("blueprints") as server:
        for path, text in files(Client(server.url).get("/object_info")).items():
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
