"""The prompt for a plan: what a language model is told, and that its examples hold."""

import json

import pytest
import torch

from latent_layers.fusion import plan, plan_prompt, plan_reading
from latent_layers.fusion.layers import Layer


def mask(left, top, right, bottom, width=200, height=100):
    painted = torch.zeros(1, height, width)
    painted[0, top:bottom, left:right] = 1.0
    return painted


def layers():
    return [
        Layer("cat", mask(10, 20, 60, 90), order=2),
        Layer("red cup", mask(120, 40, 150, 70)),
        Layer("狗", mask(0, 0, 5, 5), order=-1),
    ]


def foreign(name, width, height):
    return Layer(name, mask(1, 2, 3, 4, width, height), image=torch.zeros(1, height, width, 3))


def test_an_answer_after_the_whole_prompt_is_found():
    asked = plan_prompt.prompt("Move the cat", layers())
    answer = '{"layers": [{"name": "cat", "remove": true}]}'
    meant = plan.Plan((plan.LayerPlan("cat", places=()),))
    assert plan_reading.parse(f"{asked}\n{answer}", layers()) == meant


def test_the_prompt_has_what_a_model_needs():
    asked = plan_prompt.prompt("  Move the cat!\n", [*layers(), foreign('"hat"', 50, 60)])
    assert asked.endswith(
        "Canvas: 200 pixels wide, 100 pixels high\nLayers, from back to front:\n"
        '- "狗": left 0, top 0, right 5, bottom 5\n'
        '- "red cup": left 120, top 40, right 150, bottom 70\n'
        '- "\\"hat\\"": left 60, top 3, right 63, bottom 7, of another picture, '
        "where it is put before its move\n"
        '- "cat": left 10, top 20, right 60, bottom 90\n'
        "Request: Move the cat!\nPlan:"
    )
    for word in [*plan.DIRECTIONS, *plan.PLAN_FIELDS, *(set(plan.LAYER_FIELDS) - {"order"}), "horizontal", "both"]:
        assert word in plan_prompt.prompt("x", layers()[:1]).split("JSON schema")[0]


def test_the_size_of_a_picture_given_goes_into_the_prompt():
    image = torch.zeros(2, 480, 640, 3)
    assert "Canvas: 640 pixels wide, 480 pixels high\n" in plan_prompt.prompt("x", [foreign("hat", 50, 60)], image)


def test_the_schema_says_what_is_read():
    schema = plan_prompt.schema(["cat", "狗"])
    entry = schema["properties"]["layers"]["items"]
    assert set(schema["properties"]) == set(plan.PLAN_FIELDS)
    assert set(entry["properties"]) == set(plan.LAYER_FIELDS) - {"order"}  # for models the list of names alone
    assert entry["properties"]["name"]["enum"] == ["cat", "狗"]
    assert set(entry["properties"]["move"]["items"]["properties"]) == set(plan.STEP_FIELDS)
    assert set(entry["properties"]["resize"]["properties"]) == set(plan.RESIZE_FIELDS)
    assert json.dumps(schema, ensure_ascii=False) in plan_prompt.prompt("x", [layers()[0], layers()[2]])


def test_the_examples_are_plans_that_do_what_they_show():
    asked = plan_prompt.prompt("x", layers())
    edits = []
    for request, (width, height), boxes, answer in plan_prompt.EXAMPLES:
        assert f"Request: {request}\nPlan:\n{answer}\n\n" in asked
        given = [Layer(name, mask(*box, width, height)) for name, box in boxes.items()]
        edits.append({layer.name: layer for layer in plan_reading.carry_out(answer, given)[0]})
    first, second = edits
    assert first["lamp"].moves == ((400.0, 0.0),) and (first["lamp"].scale_x, first["lamp"].scale_y) == (0.5, 0.5)
    assert first["vase"].moves == ()
    assert second["bird"].moves == ((0.0, 0.0), (-128.0, -64.0)) and second["bird"].flip_x
    assert second["bird"].order < second["tree"].order


def test_a_prompt_needs_a_request_and_painted_layers():
    with pytest.raises(ValueError, match="Plan Prompt: request is empty; write what is to change"):
        plan_prompt.prompt(" ", layers())
    with pytest.raises(ValueError, match="Plan Prompt: the mask of layer 'fog' is empty; paint it"):
        plan_prompt.prompt("x", [Layer("fog", torch.zeros(1, 9, 9))])
