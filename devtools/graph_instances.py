"""Blueprints as nodes of example graphs: one node on the page, the nodes inside it for the API."""

from collections.abc import Callable
from typing import Any

from blueprints import BLUEPRINTS, INPUT, Blueprint
from build_blueprints import api as inner_api
from build_blueprints import identity_of
from build_blueprints import page as blueprint_page
from draw_graphs import Info, default, specification


def inner_id(name: str, number: int) -> int:
    """Id of a blueprint's node in a page: the page renumbers what is not unique in all of its graphs."""
    return 1000 * (1 + sorted(BLUEPRINTS).index(name)) + number


def with_blueprints(info: Info) -> Info:
    """What nodes there are, the blueprints among them under their names."""
    return {**info, **{name: _about(info, name, build()) for name, build in BLUEPRINTS.items()}}


def _about(info: Info, name: str, blueprint: Blueprint) -> dict[str, Any]:
    """A blueprint as the host would describe a node."""
    inputs: dict[str, Any] = {slot: (kind,) for slot, kind in blueprint.inputs.items()}
    for promoted in blueprint.widgets:
        node = promoted.node
        kind, options = specification(info, node.kind, node.inputs)[promoted.widget]
        value = node.inputs.get(promoted.widget, default(kind, options))
        inputs[promoted.name] = (kind, {**options, "default": value})
    ports = blueprint.outputs.values()
    return {
        "display_name": name,
        "input": {"required": inputs},
        "output": [info[port.node.kind]["output"][port.slot] for port in ports],
        "output_name": list(blueprint.outputs),
    }


def on_page(info: Info, page: dict[str, Any]) -> dict[str, Any]:
    """A page whose blueprint nodes are the host's one-node subgraphs, with their definitions."""
    used = sorted({node["type"] for node in page["nodes"]} & set(BLUEPRINTS))
    if not used:
        return page
    for node in page["nodes"]:
        if node["type"] in used:
            node["type"], node["properties"] = str(identity_of(node["type"])), {}
    return {**page, "definitions": {"subgraphs": [_definition(info, name) for name in used]}}


def _definition(info: Info, name: str) -> dict[str, Any]:
    """What is in a blueprint, its nodes with ids of their own."""
    definition = blueprint_page(info, name, BLUEPRINTS[name]())["definitions"]["subgraphs"][0]
    for node in definition["nodes"]:
        node["id"] = inner_id(name, node["id"])
    for link in definition["links"]:
        for end in ("origin_id", "target_id"):
            if link[end] > 0:  # the boundaries' are negative
                link[end] = inner_id(name, link[end])
    definition["state"]["lastNodeId"] = inner_id(name, definition["state"]["lastNodeId"])
    return definition


def for_api(info: Info, graph: dict[str, Any]) -> dict[str, Any]:
    """A graph whose blueprint nodes are what is in them, under the ids that the page gives: `outer:inner`."""
    flat: dict[str, Any] = {}
    results: dict[tuple[str, int], list[Any]] = {}  # (outer id, output) -> [id, output] of the inner node
    for key, node in graph.items():
        build = BLUEPRINTS.get(node["class_type"])
        if build is None:
            flat[key] = node
            continue
        blueprint = build()
        inside = inner_api(info, blueprint)
        given = [node["inputs"][slot] for slot in blueprint.inputs]

        def within(inner: str | int, key: str = key, name: str = node["class_type"]) -> str:
            return f"{key}:{inner_id(name, int(inner))}"

        for inner, entry in inside.items():
            entry["inputs"] = {slot: _outside(within, value, given) for slot, value in entry["inputs"].items()}
            flat[within(inner)] = entry
        for promoted in blueprint.widgets:  # after that: these are values and ports from outside
            inside[str(promoted.node.id)]["inputs"][promoted.widget] = node["inputs"][promoted.name]
        for slot, port in enumerate(blueprint.outputs.values()):
            results[key, slot] = [within(port.node.id), port.slot]
    for node in flat.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and len(value) == 2 and (value[0], value[1]) in results:
                node["inputs"][name] = results[value[0], value[1]]
    return flat


def _outside(within: Callable[[str], str], value: Any, given: list[Any]) -> Any:
    """An inner node's input as seen from outside the blueprint."""
    if not isinstance(value, list):
        return value
    return given[value[1]] if value[0] == str(INPUT) else [within(value[0]), value[1]]
