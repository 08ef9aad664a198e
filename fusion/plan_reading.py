"""Reading a plan: out of whatever a language model wraps its answer in, checked field by field.

The errors are for the user, who sees the answer and can put it right by hand: node and input, field, value, remedy.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from .layers import LARGEST_SCALE, SMALLEST_SCALE, Layer
from .plan import (
    DIRECTIONS,
    FLIPS,
    LARGEST_ANGLE,
    LARGEST_ORDER,
    LAYER_FIELDS,
    PLAN_FIELDS,
    RESIZE_FIELDS,
    STEP_FIELDS,
    LayerPlan,
    Place,
    Plan,
    Step,
    apply,
    canvas_size,
    first_repeated,
    layer_names,
    pretty,
)

_NODE = "Parse Plan"
_REPEATED = object()  # stands for the value of a field that is given twice
_THOUGHT = "(?:think|thinking|thought|reasoning)"
_THOUGHTS = re.compile(rf"<({_THOUGHT})>.*?</\1>", re.DOTALL | re.IGNORECASE)
_THOUGHT_START, _THOUGHT_END = (re.compile(rf"<{end}{_THOUGHT}>", re.IGNORECASE) for end in ("", "/"))
_OPENING = re.compile(r"""\{\s*["'\w]|\[\s*\{""")
_PLAN_KEY = re.compile(r"""["']?\b(?:layers|order|name)\b["']?\s*:""")
_PLAN_OPENING = re.compile(r"[\[{\s]+" + _PLAN_KEY.pattern)
_STRING_OR_LAST_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)


def carry_out(text: str, layers: Sequence[Layer], image: Tensor | None = None) -> tuple[list[Layer], str]:
    """The layers with the plan in `text` applied, in the sequence given, and the checked plan as JSON.

    `image`, IMAGE (B, H, W, 3), is the source picture; it is needed only where the layers do not tell the size of
    the canvas. Raises ValueError as `parse` and `canvas_size` do.
    """
    plan = parse(text, layers)
    return apply(plan, layers, *canvas_size(layers, image, _NODE)), pretty(plan)


def parse(text: str, layers: Sequence[Layer]) -> Plan:
    """The last plan in a language model's answer, checked against the layers.

    Taken are a plan or a bare list of its layers in JSON, with trailing commas if there are any, amid other text,
    code fences and reasoning. null says as much as a field left out. Raises ValueError, with the field, its value
    and the remedy, for a text without a plan, a plan that breaks off, unknown layers and fields, missing fields,
    wrong types and numbers out of range; also for layers that share a name.
    """
    names = layer_names(layers, _NODE)
    where = f"{_NODE}: text"
    found = _find(text, where)
    if isinstance(found, list):
        found = {"layers": found}
    fields = _object(found, PLAN_FIELDS, (), f"{where}: the plan")
    listed = _list(fields.get("layers", []), PLAN_FIELDS["layers"], f"{where}: layers")
    entries = [_entry(value, names, where, number) for number, value in enumerate(listed, 1)]
    again = first_repeated(entry.name for entry in entries)
    if again is not None:
        raise ValueError(f"{where}: layers has {again!r} twice; put all that it says of a layer in one place")
    listed = _list(fields.get("order", []), PLAN_FIELDS["order"], f"{where}: order")
    plan = Plan(tuple(entries), tuple(_name(value, names, f"{where}: order") for value in listed))
    if plan.order:
        _check_order(plan, layers, where)
    return plan


def _find(text: str, where: str) -> Any:
    """The last plan, an object, or else the last list of layers. A part of one that breaks off is never taken."""
    if not text.strip():
        raise ValueError(f"{where} is empty; connect a language model's answer to Plan Prompt, or write a plan")
    text = _THOUGHT_START.split(_THOUGHT_END.split(_THOUGHTS.sub(" ", text))[-1])[0]
    plan = layers = broken = None
    position = 0
    while opening := _OPENING.search(text, position):
        start = opening.start()
        try:
            value, position = _decode(text, start)
        except json.JSONDecodeError as error:
            position = max(error.pos, start + 1)
            if _PLAN_OPENING.match(text, start) or _PLAN_KEY.search(text, start, position):
                broken = error
            continue
        if isinstance(value, dict) and list(value) == ["plan"]:
            value = value["plan"]
        if isinstance(value, dict) and ("layers" in value or "order" in value):
            plan, broken = value, None
        elif isinstance(value, list) and any(isinstance(one, dict) and "name" in one for one in value):
            layers = value
    if broken is not None:
        near = " ".join(text[max(broken.pos - 30, 0) : broken.pos + 30].split())
        raise ValueError(
            f"{where} has a plan that is no valid JSON: {broken.msg}, near {near!r}; correct it there, or, if the "
            "answer stops early, let the language model write more"
        )
    found = layers if plan is None else plan
    if found is None:
        raise ValueError(
            f"{where} has no plan in it: {_shown(text.strip())}; it takes JSON such as {{{PLAN_FIELDS['layers']}}}. "
            "If the answer stops early, let the language model write more"
        )
    return found


def _noting_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    return {name: value if counts[name] == 1 else _REPEATED for name, value in pairs}


_DECODER = json.JSONDecoder(object_pairs_hook=_noting_repeated)


def _decode(text: str, start: int) -> tuple[Any, int]:
    """JSON value at `start`, and where it ends. Trailing commas become blanks, so that positions stay."""
    for attempt in (str, lambda rest: _STRING_OR_LAST_COMMA.sub(lambda hit: " " if hit[0] == "," else hit[0], rest)):
        try:
            value, length = _DECODER.raw_decode(attempt(text[start:]))
            return value, start + length
        except json.JSONDecodeError as error:
            failure = json.JSONDecodeError(error.msg, text, start + error.pos)
        except (ValueError, RecursionError):
            failure = json.JSONDecodeError("a number too long or brackets too deep", text, len(text))
    raise failure


def _entry(value: object, names: Sequence[str], where: str, number: int) -> LayerPlan:
    fields = _object(value, LAYER_FIELDS, ("name",), f"{where}: entry {number} of layers")
    name = _name(fields["name"], names, f"{where}: entry {number} of layers: name")
    where = f"{where}: layer {name!r}"
    entry = LayerPlan(name, places=_places(fields, where))
    if "resize" in fields:
        ratios = _object(fields["resize"], RESIZE_FIELDS, tuple(RESIZE_FIELDS), f"{where}, resize")
        height, width = (
            _number(ratios[side], SMALLEST_SCALE, LARGEST_SCALE, f"{where}, resize: {side}", "1 is the size it has")
            for side in ("height", "width")
        )
        entry = dataclasses.replace(entry, resize=(height, width))
    if "rotate" in fields:
        degrees = _number(fields["rotate"], -LARGEST_ANGLE, LARGEST_ANGLE, f"{where}: rotate", "degrees clockwise")
        entry = dataclasses.replace(entry, rotate=degrees)
    if "flip" in fields:
        entry = dataclasses.replace(entry, flip=_word(fields["flip"], FLIPS, f"{where}: flip"))
    if "order" in fields:
        order = _number(fields["order"], -LARGEST_ORDER, LARGEST_ORDER, f"{where}: order", "higher lies in front")
        if order != int(order):
            raise ValueError(f"{where}: order is {_shown(order)}; write a whole number, higher lies in front")
        entry = dataclasses.replace(entry, order=int(order))
    return entry


def _places(fields: dict[str, Any], where: str) -> tuple[Place, ...] | None:
    places = None
    if "move" in fields and "moves" in fields:
        raise ValueError(f"{where} has move and moves; keep move for one place, moves for several")
    if "move" in fields:
        places = (_place(fields["move"], f"{where}, move"),)
    elif "moves" in fields:
        listed = _list(fields["moves"], LAYER_FIELDS["moves"], f"{where}: moves")
        if not listed:
            raise ValueError(f'{where}: moves is empty; write "remove": true to take the layer away, or leave it out')
        places = tuple(_place(value, f"{where}, moves, place {number}") for number, value in enumerate(listed, 1))
    remove = fields.get("remove", False)
    if not isinstance(remove, bool):
        raise ValueError(f"{where}: remove is {_shown(remove)}; write true, or leave it out")
    if remove and places and any(places):
        raise ValueError(f"{where} has remove and a move; keep one of them")
    return () if remove else places


def _place(value: object, where: str) -> Place:
    if isinstance(value, dict):
        value = [value]
    steps = []
    for number, step in enumerate(_list(value, LAYER_FIELDS["move"].partition(": ")[2], where), 1):
        here = f"{where}, step {number}"
        if isinstance(step, list):
            raise ValueError(f"{here} is a list; write several places as {LAYER_FIELDS['moves']}")
        fields = _object(step, STEP_FIELDS, tuple(STEP_FIELDS), here)
        direction = _word(fields["direction"], DIRECTIONS, f"{here}: direction")
        ratio = _number(fields["ratio"], 0, 1, f"{here}: ratio", "the share of the canvas, e.g. 0.25 for a quarter")
        steps.append(Step(direction, ratio))
    return tuple(steps)


def _check_order(plan: Plan, layers: Sequence[Layer], where: str) -> None:
    again = first_repeated(plan.order)
    if again is not None:
        raise ValueError(f"{where}: order has {again!r} twice; name every layer once, back to front")
    entries = {entry.name: entry for entry in plan.layers}
    for layer in layers:
        entry = entries.get(layer.name, LayerPlan(layer.name))
        if entry.order is not None:
            raise ValueError(
                f"{where}: layer {layer.name!r} has order {entry.order}, and the plan has a list of names in order; "
                "keep one of them"
            )
        shown = layer.moves if entry.places is None else entry.places
        if shown and layer.name not in plan.order:
            raise ValueError(
                f"{where}: order is {_shown(plan.order)}, without {layer.name!r}; name every layer that stays, "
                "back to front"
            )


def _object(value: object, known: dict[str, str], needed: Sequence[str], where: str) -> dict[str, Any]:
    """Fields of a JSON object, but those that are null."""
    if not isinstance(value, dict):
        example = ", ".join(known[name] for name in needed) or next(iter(known.values()))
        raise ValueError(f"{where} is {_shown(value)}; write an object such as {{{example}}}")
    for name, one in value.items():
        if name not in known:
            raise ValueError(f"{where} has {name!r}, which is not one of its fields; they are {', '.join(known)}")
        if one is _REPEATED:
            raise ValueError(f"{where} has {name} twice; keep one of them")
    fields = {name: one for name, one in value.items() if one is not None}
    for name in needed:
        if name not in fields:
            raise ValueError(f"{where}: {name} is missing; write for example {known[name]}")
    return fields


def _list(value: object, example: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_shown(value)}; write a list, e.g. {example}")
    return value


def _number(value: object, low: float, high: float, where: str, meaning: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{where} is {_shown(value)}; write a number from {low:g} to {high:g}, {meaning}")
    return float(value)


def _word(value: object, known: Collection[str], where: str) -> str:
    word = re.sub(r"[\s_-]+", "-", value.strip().lower()) if isinstance(value, str) else None
    if word is None or word not in known:
        raise ValueError(f"{where} is {_shown(value)}; write one of {', '.join(known)}")
    return word


def _name(value: object, names: Sequence[str], where: str) -> str:
    """The layer's name as it is, where the answer has it in another case."""
    if value in names:
        return str(value)
    alike = [name for name in names if isinstance(value, str) and name.strip().lower() == value.strip().lower()]
    if len(alike) != 1:
        raise ValueError(f"{where} has {_shown(value)}, which is no layer; they are {', '.join(map(repr, names))}")
    return alike[0]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=lambda _: "(given twice)")
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair could not be shown
    return text if len(text) <= 60 else text[:59] + "…"
