"""Draw a graph once and write it in both of the host's forms: for its page and for its API.

A graph is a row of groups; a group is a note and columns of nodes beneath it. Values of
widgets are given by name; what is not given has the default of the node's schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Info = Mapping[str, Mapping[str, Any]]  # the host's /object_info: what nodes there are, and their inputs

MARGIN = 20  # between nodes, and from a group's border
TITLE = 30  # height of a node's title bar, which lies above the node's position
GROUP_TITLE = 50
ROW, WIDGET = 20, 24  # heights of a slot and of a widget
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
NOTE = "MarkdownNote"  # a node of the page alone


@dataclass(frozen=True)
class Port:
    """An output of a node, to connect to inputs."""

    node: "Node"
    slot: int


@dataclass(eq=False)
class Node:
    """One node; `inputs` are values of widgets and ports of other nodes, by name."""

    kind: str
    title: str = ""
    height: int = 0  # 0: as its slots and widgets need
    inputs: dict[str, Any] = field(default_factory=dict)
    colour: str = ""
    id: int = 0

    def __getitem__(self, slot: int) -> Port:
        return Port(self, slot)


@dataclass
class Group:
    """A titled area: a note over columns of nodes."""

    title: str
    colour: str
    note: str
    note_height: int
    columns: list[list[Node]]
    width: int = 300  # of a column


def specification(info: Info, kind: str, values: Mapping[str, Any]) -> dict[str, tuple[Any, dict]]:
    """A node's inputs in the order of its slots: name -> type, options.

    The inputs of a dynamic combo's chosen option follow it under the names "combo.input".
    """
    if kind == NOTE:
        return {}
    found: dict[str, tuple[Any, dict]] = {}
    for part in ("required", "optional"):
        for name, entry in (info[kind]["input"].get(part) or {}).items():
            options = entry[1] if len(entry) > 1 else {}
            found[name] = (entry[0], options)
            if entry[0] == "COMFY_DYNAMICCOMBO_V3":
                chosen = next(option for option in options["options"] if option["key"] == values[name])
                for inner, inner_entry in chosen["inputs"].get("required", {}).items():
                    found[f"{name}.{inner}"] = (inner_entry[0], inner_entry[1] if len(inner_entry) > 1 else {})
    return found


def is_widget(kind: Any) -> bool:
    """Whether an input of this type is a widget on the node, and no plain slot."""
    return isinstance(kind, list) or kind in WIDGETS


def default(kind: Any, options: Mapping[str, Any]) -> Any:
    """What a widget shows before anybody changes it."""
    choices = kind if isinstance(kind, list) else options.get("options", [])
    return options.get("default", choices[0] if choices else "" if kind == "STRING" else 0)


class Drawing:
    """A graph made of groups, from left to right."""

    def __init__(self, info: Info, groups: list[Group]):
        self.info = info
        self.groups = groups
        self.nodes = [node for group in groups for column in group.columns for node in column]
        for number, node in enumerate(self.nodes, 1):
            node.id = number

    def api(self) -> dict[str, dict[str, Any]]:
        """For programs: node id -> class_type, inputs, title."""
        return {
            str(node.id): {
                "class_type": node.kind,
                "inputs": self._api_inputs(node),
                "_meta": {"title": node.title or self.info[node.kind]["display_name"] or node.kind},
            }
            for node in self.nodes
        }

    def page(self) -> dict[str, Any]:
        """For the host's page: places, sizes, links and notes as well."""
        drawn: list[dict[str, Any]] = []
        groups: list[dict[str, Any]] = []
        links: list[list[Any]] = []
        note_id = len(self.nodes)
        tallest = max(self._group_height(group) for group in self.groups)
        left = 0
        for number, group in enumerate(self.groups, 1):
            width = len(group.columns) * (group.width + MARGIN) + MARGIN
            groups.append(
                {"id": number, "title": group.title, "bounding": [left, 0, width, tallest],
                 "color": group.colour, "font_size": 24, "flags": {}}
            )  # fmt: skip
            note_id += 1
            drawn.append(_note(note_id, group, [left + MARGIN, GROUP_TITLE + TITLE], width - 2 * MARGIN))
            for number_of_column, column in enumerate(group.columns):
                x = left + MARGIN + number_of_column * (group.width + MARGIN)
                y = GROUP_TITLE + TITLE + group.note_height + MARGIN + TITLE
                for node in column:
                    drawn.append(self._node(node, [x, y], group.width, links))
                    y += self._height(node) + MARGIN + TITLE
            left += width + MARGIN
        _connect(drawn, links)
        return {
            "id": "", "revision": 0, "last_node_id": note_id, "last_link_id": len(links), "nodes": drawn,
            "links": links, "groups": groups, "config": {}, "extra": {"workflowRendererVersion": "LG"}, "version": 0.4,
        }  # fmt: skip

    def _specification(self, node: Node) -> dict[str, tuple[Any, dict]]:
        return specification(self.info, node.kind, node.inputs)

    def _api_inputs(self, node: Node) -> dict[str, Any]:
        inputs = {}
        for name, (kind, options) in self._specification(node).items():
            if name in node.inputs:
                value = node.inputs[name]
                inputs[name] = [str(value.node.id), value.slot] if isinstance(value, Port) else value
            elif is_widget(kind):
                inputs[name] = default(kind, options)
        unknown = set(node.inputs) - set(inputs)
        if unknown:
            raise KeyError(f"{node.kind} has no input {', '.join(sorted(unknown))}")
        return inputs

    def _group_height(self, group: Group) -> int:
        columns = [sum(self._height(node) + MARGIN + TITLE for node in column) for column in group.columns]
        return GROUP_TITLE + TITLE + group.note_height + MARGIN + max(columns)

    def _height(self, node: Node) -> int:
        if node.height:
            return node.height
        kinds = self._specification(node).values()
        widgets = sum(is_widget(kind) + bool(options.get("control_after_generate")) for kind, options in kinds)
        slots = max(sum(not is_widget(kind) for kind, _ in kinds), len(self.info[node.kind]["output"]))
        return 6 + slots * ROW + (widgets * WIDGET + 8 if widgets else 0)

    def _node(self, node: Node, place: list[int], width: int, links: list[list[Any]]) -> dict[str, Any]:
        """The node as the page keeps it; its links are appended to `links`."""
        specified = self._specification(node)
        slots = [name for name, (kind, _) in specified.items() if not is_widget(kind)]
        inputs: list[dict[str, Any]] = []

        def add_input(name: str, kind: Any, **more: Any) -> None:
            entry = {"name": name, "type": _type_name(kind), **more, "link": None}
            source = node.inputs.get(name)
            if isinstance(source, Port):
                entry["link"] = len(links) + 1
                kind = self.info[source.node.kind]["output"][source.slot]
                links.append([len(links) + 1, source.node.id, source.slot, node.id, len(inputs), kind])
            inputs.append(entry)

        for name in slots:
            add_input(name, specified[name][0])
        widgets = []
        for name, (kind, options) in specified.items():
            if is_widget(kind):
                value = node.inputs.get(name)
                widgets.append(default(kind, options) if value is None or isinstance(value, Port) else value)
                add_input(name, kind, widget={"name": name})
                if options.get("control_after_generate"):
                    widgets.append("fixed")
        if node.kind == "LoadImage":
            widgets.append("image")  # the page's upload button
        about = self.info[node.kind]
        outputs = [
            {"name": name, "type": kind, "links": []}
            for name, kind in zip(about["output_name"], about["output"], strict=True)
        ]
        drawn = {
            "id": node.id, "type": node.kind, "pos": place, "size": [width, self._height(node)], "flags": {},
            "order": node.id - 1, "mode": 0, "inputs": inputs, "outputs": outputs,
            "properties": {"Node name for S&R": node.kind}, "widgets_values": widgets,
        }  # fmt: skip
        return {**drawn, **({"title": node.title} if node.title else {}), **_colours(node.colour)}


def _type_name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def _colours(colour: str) -> dict[str, str]:
    return {"color": colour, "bgcolor": colour} if colour else {}


def _note(number: int, group: Group, place: list[int], width: int) -> dict[str, Any]:
    return {
        "id": number, "type": NOTE, "pos": place, "size": [width, group.note_height], "flags": {},
        "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "title": "Note", "properties": {},
        "widgets_values": [group.note], "color": "#222", "bgcolor": "#000",
    }  # fmt: skip


def _connect(drawn: list[dict[str, Any]], links: list[list[Any]]) -> None:
    """Tell the outputs of their links."""
    by_id = {node["id"]: node for node in drawn}
    for number, source, slot, *_ in links:
        by_id[source]["outputs"][slot]["links"].append(number)
