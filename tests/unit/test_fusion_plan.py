"""Edit plans: what a language model is asked, what is taken from its answers, and what comes of it."""

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest
import torch

from latent_layers.fusion import plan, plan_prompt, plan_reading
from latent_layers.fusion.layers import Layer
from latent_layers.fusion.plan import LayerPlan, Plan, Step

WIDTH, HEIGHT = 200, 100


def mask(left, top, right, bottom, width=WIDTH, height=HEIGHT):
    painted = torch.zeros(1, height, width)
    painted[0, top:bottom, left:right] = 1.0
    return painted


def layers():
    return [
        Layer("cat", mask(10, 20, 60, 90), order=2, scale_x=3.0, moves=((7.0, 8.0),)),
        Layer("red cup", mask(120, 40, 150, 70), rotation=12.0, flip_x=True),
        Layer("狗", mask(0, 0, 5, 5), order=-1),
    ]


def carry_out(text, given=None, image=None):
    edited, shown = plan_reading.carry_out(text, layers() if given is None else given, image)
    return {layer.name: layer for layer in edited}, shown


def of_cat(fields):
    return f'{{"layers": [{{"name": "cat", {fields}}}]}}'


ANSWER = (
    '{"layers": [{"name": "cat", "move": [{"direction": "right", "ratio": 0.25}]}, {"name": "狗", "remove": true}]}'
)
MEANS = Plan((LayerPlan("cat", places=((Step("right", 0.25),),)), LayerPlan("狗", places=())))
BARE = ANSWER[ANSWER.index("[") : -1]
DRAFT = of_cat('"remove": true')


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        json.dumps(json.loads(ANSWER), indent=4),
        f"```json\n{ANSWER}\n```",
        f"Sure! Here's the plan [for you]:\n\n```\n{ANSWER}\n```\nIt moves the cat {{a quarter}}, and 5\" more, okay?",
        f"<think>Perhaps {DRAFT}? Hmm, no.</think>{ANSWER}",
        f"<THINKING>\n{DRAFT}\n</THINKING>\n{ANSWER}",
        f"the template opened the thought: {DRAFT}\n</think>\n\n{ANSWER}",
        f"{ANSWER}<think>once more, {DRAFT}",
        f"First {DRAFT}, but better {ANSWER}",
        f'First {{"layers": [{{"name": "cat", "rem": … then {ANSWER}',
        f"{ANSWER} where a step is {{'direction': ..., 'ratio': ...}} and {{}} is nothing, e.g. {{\"ratio\": 1}}",
        ANSWER.replace("true}]}", "true,},\n ], }"),
        f'He said "go: {ANSWER.replace("true}]}", "true,},]}")}',
        BARE,
        f"For {{you}}: {BARE}",
        f"```json\n{BARE}\n```",
        f'{{"plan": {ANSWER}}}',
        ANSWER.replace('"cat"', '" Cat"'),
        ANSWER.replace('"right"', '"Right "'),
        ANSWER.replace('[{"direction": "right", "ratio": 0.25}]', '{"direction": "right", "ratio": 0.25}'),
        ANSWER.replace('"move": [', '"moves": [[').replace("0.25}]", "0.25}]]"),
        ANSWER.replace('"move":', '"resize": null, "flip": null, "moves": null, "remove": false, "move":'),
        ANSWER[:-1] + ', "order": null}',
        ANSWER[:-1] + ', "order": []}',
        '{"order": [], "layers": ' + BARE + "}",
        ANSWER.replace('"remove": true', '"move": [], "remove": true'),
    ],
)
def test_however_a_model_answers_the_plan_is_found(text):
    assert plan_reading.parse(text, layers()) == MEANS


@pytest.mark.parametrize(
    ("text", "near"),
    [
        (ANSWER[:-2], "near"),
        (ANSWER[:60], "near"),
        (ANSWER.replace("0.25}]}, {", "0.25}]} {"), "near .*0.25}]} {"),
        ('{"order": ["cat" "狗"], "layers": ' + BARE + "}", '"cat" "狗"'),
        ("{layers: " + BARE + ', order: ["cat"]}', "near '{layers"),
        (f'{DRAFT} or rather {{"layers": [{{"name": "cat", ', "near"),
        ("[{'name': 'cat', 'remove': true}]", "near"),
        ('{"layers": ' + "[" * 100000, "brackets too deep"),
        ('{"layers": [' * 20000, "brackets too deep"),
    ],
)
def test_of_a_broken_plan_no_part_is_taken(text, near):
    with pytest.raises(ValueError, match=f"^Parse Plan: text has a plan that is no valid JSON: .*{near}.*correct it"):
        plan_reading.parse(text, layers())


@pytest.mark.parametrize(
    "text",
    ["I cannot do that.", "{}", "[1, 2]", '{"name": "cat", "remove": true}', f"<think>{ANSWER}", "{'cat': [{}]}"],
)
def test_a_text_without_a_plan_says_what_one_is(text):
    with pytest.raises(ValueError, match=r'^Parse Plan: text has no plan in it: .*; it takes JSON such as {"layers"'):
        plan_reading.parse(text, layers())


def test_an_empty_text_is_an_error():
    with pytest.raises(ValueError, match="Parse Plan: text is empty; connect a language model's answer"):
        plan_reading.parse(" \n", layers())


STEP = '"move": [{"direction": "left", "ratio": 0.5}]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layers": [{"name": "cow", "remove": true}]}', "layers: name has \"cow\", .* 'cat', 'red cup', '狗'"),
        ('{"layers": [{"name": 3}]}', "entry 1 of layers: name has 3, which is no layer"),
        ('{"layers": [{"name": "cat"}, {"remove": true}]}', 'entry 2 of layers: name is missing; .* "name": "cat"'),
        ('{"layers": [{"name": "cat"}, {"name": "CAT"}]}', "layers has 'cat' twice; put all"),
        ('{"layers": {"cat": {"remove": true}}}', 'layers is {"cat": .*}; write a list, e.g. "layers"'),
        ('{"layers": ["cat"]}', 'entry 1 of layers is "cat"; write an object such as {"name": "cat"}'),
        ('{"layers": [], "background": 1}', "plan has 'background', .* they are layers, order$"),
        ('{"layers": [], "layers": []}', "the plan has layers twice; keep one"),
        (of_cat('"scale": 2'), "entry 1 of layers has 'scale', .* they are name, move, moves, resize, rotate, flip"),
        (of_cat(f"{STEP}, {STEP}"), "entry 1 of layers has move twice; keep one"),
        (of_cat(f'{STEP}, "moves": [[]]'), "'cat' has move and moves; keep move for one place"),
        (of_cat(f'{STEP}, "remove": true'), "'cat' has remove and a move; keep one"),
        (of_cat('"remove": "yes"'), 'remove is "yes"; write true, or leave it out'),
        (of_cat('"moves": []'), "'cat': moves is empty; write \"remove\": true"),
        (of_cat('"moves": {"direction": "up", "ratio": 1}'), "moves is .*; write a list, e.g. .moves.: ..., .."),
        (of_cat('"move": "left"'), r'\'cat\', move is "left"; write a list, e.g. \[{"direction": "left"'),
        (of_cat('"move": ["left"]'), 'move, step 1 is "left"; write an object such as {"direction": "left", "ratio"'),
        (of_cat('"move": [[]]'), 'move, step 1 is a list; write several places as "moves"'),
        (of_cat('"move": [{"direction": "left"}]'), "move, step 1: ratio is missing; .*0.25"),
        (of_cat('"move": [{"direction": null, "ratio": 1}]'), 'direction is missing; write for example "direction"'),
        (of_cat('"move": [{"direction": "west", "ratio": 1}]'), 'direction is "west"; write one of left, right, up,'),
        (of_cat('"move": [{"direction": 1, "ratio": 1}]'), "direction is 1; write one of"),
        (of_cat('"move": [{"direction": "up", "ratio": 1.5}]'), "step 1: ratio is 1.5; write a number from 0 to 1, "),
        (
            of_cat('"move": [{"direction": "up", "ratio": -0.1}]'),
            "ratio is -0.1; write a number from 0 to 1, the share",
        ),
        (of_cat('"move": [{"direction": "up", "ratio": "20%"}]'), 'ratio is "20%"; write a number'),
        (of_cat('"move": [{"direction": "up", "ratio": true}]'), "ratio is true; write a number"),
        (of_cat('"move": [{"direction": "up", "ratio": NaN}]'), "ratio is NaN; write a number"),
        (of_cat('"moves": [[], [{"direction": "up", "ratio": 1e999}]]'), "moves, place 2, step 1: ratio is Infinity"),
        (of_cat('"resize": 2'), 'resize is 2; write an object such as {"height": 1.5, "width": 1.5}'),
        (of_cat('"resize": {"height": 2}'), 'resize: width is missing; write for example "width"'),
        (of_cat('"resize": {"height": 0, "width": 1}'), "resize: height is 0; write a number from 0.05 to 20, 1 is"),
        (of_cat('"resize": {"height": 1, "width": 21}'), "resize: width is 21; write a number from 0.05 to 20"),
        (of_cat('"rotate": 400'), "rotate is 400; write a number from -360 to 360, degrees clockwise"),
        (of_cat('"rotate": -Infinity'), "rotate is -Infinity; write"),
        (of_cat('"flip": "diagonal"'), 'flip is "diagonal"; write one of horizontal, vertical, both, none'),
        (of_cat('"flip": true'), "flip is true; write one of"),
        (of_cat('"order": 1.5'), "order is 1.5; write a whole number"),
        (of_cat('"order": 1' + "0" * 400), "order is 1000.*…; write a number from -1000 to 1000"),
        ('{"order": "cat"}', 'order is "cat"; write a list, e.g. "order": ."dog", "cat"'),
        ('{"order": ["cat", "red cup"]}', "order is .*, without '狗'; name every layer that stays, back to front"),
        ('{"order": ["cat", "狗", "red cup", "cat"]}', "order has 'cat' twice; name every layer once"),
        ('{"order": ["cat", "狗", "cow"]}', "order has \"cow\", which is no layer; they are 'cat'"),
        (
            '{"layers": [{"name": "cat", "order": 4}], "order": ["cat", "狗", "red cup"]}',
            "'cat' has order 4, and the plan has a list of names in order; keep one",
        ),
        (of_cat(f'"flip": "{"x" * 5000}"'), "flip is .{60}; write one of"),
        (of_cat('"flip": "\\ud83d"'), r"flip is .\\ud83d.; write one of"),
    ],
)
def test_errors_name_field_value_and_remedy(text, message):
    with pytest.raises(ValueError, match=f"^Parse Plan: text: .*{message}") as raised:
        plan_reading.parse(text, layers())
    assert len(str(raised.value)) < 300 and str(raised.value).encode()


@pytest.mark.parametrize(
    ("given", "message"),
    [([], "layers is empty; add a layer"), (layers() + layers()[1:2], "layers has several called 'red cup'; give")],
)
def test_layers_have_to_be_there_and_to_differ(given, message):
    with pytest.raises(ValueError, match=f"^Parse Plan: {message}"):
        plan_reading.parse(ANSWER, given)
    with pytest.raises(ValueError, match=f"^Plan Prompt: {message}"):
        plan_prompt.prompt("Move it", given)


def test_names_that_differ_in_case_alone_stay_apart():
    given = [Layer("Cat", mask(0, 0, 9, 9)), Layer("cat", mask(0, 0, 9, 9))]
    assert [entry.name for entry in plan_reading.parse(of_cat('"remove": true'), given).layers] == ["cat"]
    with pytest.raises(ValueError, match='name has "CAT", which is no layer'):
        plan_reading.parse('{"layers": [{"name": "CAT"}]}', given)


@pytest.mark.parametrize(
    ("direction", "move"),
    [
        ("left", (-50.0, 0.0)),
        ("right", (50.0, 0.0)),
        ("up", (0.0, -25.0)),
        ("down", (0.0, 25.0)),
        ("upper-left", (-50.0, -25.0)),
        ("upper right", (50.0, -25.0)),
        ("Lower_Left", (-50.0, 25.0)),
        ("lower-right", (50.0, 25.0)),
    ],
)
def test_ratios_are_of_the_side_that_they_run_along(direction, move):
    edited, _ = carry_out(of_cat(f'"move": [{{"direction": "{direction}", "ratio": 0.25}}]'))
    assert edited["cat"].moves == (move,)


def test_steps_of_a_place_add_up_and_places_are_copies():
    edited, _ = carry_out(
        of_cat(
            '"moves": [[], [{"direction": "left", "ratio": 0.1}, {"direction": "up", "ratio": 0.3},'
            ' {"direction": "lower-left", "ratio": 0.2}], {"direction": "down", "ratio": 1}]'
        )
    )
    assert edited["cat"].moves == ((0.0, 0.0), (-60.0, -10.0), (0.0, 100.0))


def test_steps_that_cancel_out_leave_the_layer_where_it_is():
    there = ", ".join(f'{{"direction": "left", "ratio": {ratio}}}' for ratio in (0.1, 0.2))
    edited, _ = carry_out(
        of_cat(f'"move": [{there}, {{"direction": "right", "ratio": 0.3}}]'), [Layer("cat", mask(0, 0, 9, 9))]
    )
    assert edited["cat"].moves == ((0.0, 0.0),) and edited["cat"].stays


def test_every_field_lands_where_it_belongs_and_the_others_stay():
    given = layers()
    edited, _ = carry_out(
        '{"layers": [{"name": "cat", "resize": {"height": 2, "width": 0.5}, "rotate": -30, "flip": "vertical"},'
        ' {"name": "red cup", "flip": "none", "order": 5}]}',
        given,
    )
    cat, cup, dog = given
    assert edited["cat"] == dataclasses.replace(cat, scale_x=0.5, scale_y=2.0, rotation=-30.0, flip_y=True)
    assert edited["red cup"] == dataclasses.replace(cup, flip_x=False, order=5)
    assert edited["狗"] == dog


@pytest.mark.parametrize(
    ("word", "flips"),
    [("horizontal", (True, False)), ("vertical", (False, True)), ("both", (True, True)), ("none", (False, False))],
)
def test_flips(word, flips):
    edited, _ = carry_out(f'{{"layers": [{{"name": "red cup", "flip": "{word}"}}]}}')
    assert (edited["red cup"].flip_x, edited["red cup"].flip_y) == flips


def test_removed_layers_need_no_place_in_the_order():
    edited, _ = carry_out('{"layers": [{"name": "狗", "remove": true}], "order": ["cat", "red cup"]}')
    assert edited["狗"].moves == () and edited["狗"].order == -1
    assert (edited["cat"].order, edited["red cup"].order) == (0, 1)
    gone = [layers()[0], dataclasses.replace(layers()[1], moves=())]
    assert carry_out('{"order": ["cat"]}', gone)[0]["red cup"] == gone[1]
    back = '{"layers": [{"name": "red cup", "move": []}], "order": ["cat"]}'
    with pytest.raises(ValueError, match="without 'red cup'"):
        carry_out(back, gone)


def test_a_plan_of_nothing_changes_nothing():
    given = layers()
    edited, shown = plan_reading.carry_out('{"layers": []}', given)
    assert edited == given and json.loads(shown) == {"layers": []}


def random_plan(seed):
    """Any plan that may be said of the three layers."""
    rng = random.Random(seed)

    def maybe(value):
        return value if rng.random() < 0.5 else None

    def place():
        return tuple(Step(rng.choice(list(plan.DIRECTIONS)), rng.random()) for _ in range(rng.randrange(3)))

    names = [layer.name for layer in layers()]
    listed = maybe(tuple(rng.sample(names, 3))) or ()
    entries = tuple(
        LayerPlan(
            name,
            places=maybe(tuple(place() for _ in range(rng.randrange(4)))),
            resize=maybe((rng.uniform(0.05, 20), rng.uniform(0.05, 20))),
            rotate=maybe(rng.uniform(-360, 360)),
            flip=maybe(rng.choice(list(plan.FLIPS))),
            order=None if listed else maybe(rng.randrange(-9, 9)),
        )
        for name in rng.sample(names, rng.randrange(4))
    )
    return Plan(entries, listed)


@pytest.mark.parametrize("seed", range(50))
def test_a_plan_shown_is_read_as_the_same_and_no_layer_given_changes(seed):
    meant, given = random_plan(seed), layers()
    before = [dataclasses.astuple(dataclasses.replace(layer, mask=layer.mask.clone())) for layer in given]
    shown = plan.pretty(meant)
    assert plan_reading.parse(shown, given) == meant
    edited, again = plan_reading.carry_out(shown, given)
    assert again == shown and json.loads(shown)
    after = [dataclasses.astuple(layer) for layer in given]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[1], new[1]) and old[:1] + old[2:] == new[:1] + new[2:]
    assert [layer.name for layer in edited] == [layer.name for layer in given]
    assert all(new.mask is old.mask for new, old in zip(edited, given, strict=True))
    assert plan_reading.carry_out(shown, edited)[0] == edited  # it says where layers go, not how much further


def test_a_plan_is_shown_a_field_per_line():
    assert carry_out(ANSWER)[1] == (
        '{\n  "layers": [\n    {\n      "name": "cat",\n      "move": [{"direction": "right", "ratio": 0.25}]\n    },\n'
        '    {\n      "name": "狗",\n      "remove": true\n    }\n  ]\n}'
    )


def foreign(name, width, height):
    return Layer(name, mask(1, 2, 3, 4, width, height), image=torch.zeros(1, height, width, 3))


def test_the_canvas_is_the_source_picture():
    source, other = layers()[0], foreign("hat", 50, 60)
    image = torch.zeros(1, HEIGHT, WIDTH, 3)
    move = '{"layers": [{"name": "hat", "move": [{"direction": "lower-right", "ratio": 0.5}]}]}'
    for given, picture, moved in (
        ([other, source], None, (100.0, 50.0)),
        ([other, source], image, (100.0, 50.0)),
        ([other], image, (100.0, 50.0)),
        ([other], None, (25.0, 30.0)),
    ):
        assert carry_out(move, given, picture)[0]["hat"].moves == (moved,)
    for message, given, picture in (
        (r"image is 200x100, but the mask of layer 'cat' is 50x60, .*; connect", [Layer("cat", other.mask)], image),
        (r"\('hat' 50x60, 'cap' 9x8\); connect the source picture to image", [other, foreign("cap", 9, 8)], None),
        (r"\('cat' 200x100, 'cup' 50x60\); connect", [source, Layer("cup", other.mask)], None),
    ):
        with pytest.raises(ValueError, match=f"^Parse Plan: .*{message}"):
            carry_out('{"layers": []}', given, picture)
        with pytest.raises(ValueError, match=f"^Plan Prompt: .*{message}"):
            plan_prompt.prompt("Move it", given, picture)


@pytest.mark.parametrize("size", [(50, 25), (67, 33), (400, 200)])
def test_masks_coarser_or_finer_than_their_picture_count_in_its_pixels(size):
    columns, rows = size
    given = [Layer("cat", mask(0, 0, columns // 2, rows, *size))]
    image = torch.zeros(1, HEIGHT, WIDTH, 3)
    assert f"right {round(columns // 2 * WIDTH / columns)}, bottom 100\n" in plan_prompt.prompt("x", given, image)
    edited, _ = carry_out(of_cat('"move": [{"direction": "lower-right", "ratio": 0.5}]'), given, image)
    assert edited["cat"].moves == ((100.0, 50.0),)


@pytest.mark.parametrize("name", ["layers", "move", "moves", "resize", "rotate", "flip", "remove", "order"])
def test_samples_in_errors_are_themselves_right(name):
    fields = plan.PLAN_FIELDS | plan.LAYER_FIELDS
    given = [Layer("dog", mask(0, 0, 9, 9)), Layer("cat", mask(0, 0, 9, 9))]
    text = "{" + fields[name] + "}" if name == "layers" else of_cat(fields[name])
    assert plan_reading.parse(text, given).layers[0].name == "cat"
    assert plan_reading.parse("{" + plan.PLAN_FIELDS["order"] + "}", given).order == ("dog", "cat")


@pytest.mark.parametrize(("page", "names"), [(".md", "cat vase dog"), ("/zh.md", "猫 花瓶 狗")])
def test_the_help_pages_plan_does_what_the_page_says(page, names):
    text = (Path(__file__).parents[2] / f"web/docs/LatentLayersParsePlan{page}").read_text(encoding="utf-8")
    written = re.search("```json\n(.*?)```", text, re.DOTALL)
    given = [Layer(name, mask(0, 0, 9, 9)) for name in names.split()]
    assert written
    edited, _ = plan_reading.carry_out(written[1], given)
    cat, vase, dog = edited
    assert cat.moves == ((50.0, -10.0),) and (cat.scale_x, cat.scale_y) == (1.5, 1.5)
    assert vase.moves == () and dog.moves == given[2].moves and dog.order > cat.order
