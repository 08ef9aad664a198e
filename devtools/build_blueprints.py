"""Write the one-node blueprints (subgraphs/): whole edits as single nodes of the host's node library.

    python devtools/build_blueprints.py

A blueprint is a graph with boundaries: inputs and outputs become the slots of the one node, and
promoted widgets are shown on it. The library calls it by its file's name.

Needs the environment that `python dev.py` sets up.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from blueprints import BLUEPRINTS, BOUNDARY, INPUT, OUTPUT, Blueprint
from draw_graphs import MARGIN, ROW, WIDGET, Drawing, Info, Node, Port
from host_client import Client
from host_server import temporary_server
from pack import ROOT

HERE = ROOT / "subgraphs"
CATEGORY = "Latent Layers"
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
WIDTH = 300  # of the one node
BORDER, BORDER_WIDTH = 24, 140  # of a boundary: around its slots, and its width
SEEDS = ("seed", "noise_seed")  # widgets that the page gives a second one, what to do after a run


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

    identity = identity_of(name)
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


def identity_of(name: str) -> uuid.UUID:
    """The id of a blueprint's definition."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"latent-layers/subgraphs/{name}")


def from_outside(value: Any) -> bool:
    """Whether a node's input comes through the boundary."""
    return isinstance(value, Port) and value.node.kind == BOUNDARY


def inner_input(node: dict[str, Any], name: str) -> tuple[int, dict[str, Any]]:
    """A drawn node's input of this name: its slot and its entry."""
    return next((slot, entry) for slot, entry in enumerate(node["inputs"]) if entry["name"] == name)


def widget_value(node: dict[str, Any], widget: str) -> Any:
    """What a drawn node's widget holds; a seed's has what happens to it after a run behind it."""
    names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    position = names.index(widget)
    return node["widgets_values"][position + sum(name in SEEDS for name in names[:position])]


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
