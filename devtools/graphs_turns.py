"""Example graphs of many turns without drift, and of the best of several tries."""

from draw_graphs import Drawing, Group, Info, Node, Port
from graphs_common import (
    BLUE,
    CFG,
    GREEN,
    GREY,
    KEY_NODE,
    PURPLE,
    SCHEDULER,
    TOY_CFG,
    WORD_GROW,
    grown_mask,
    preview,
    saved,
    start_nodes,
    text_node,
)
from graphs_masks import PAINTED_REAL, PICTURE_REAL, PICTURE_TOY, RESULT, SMALLER, SMALLER_MASK

TURNS = """# {title}

{first}

Each turn goes on from the last, says in *Now it shows* what is new, and finds the place itself. **Change \
Threshold** takes over only what was really changed and keeps every other pixel of the last turn, bit for bit, so that \
nothing drifts.

**Change:** a text. Only that turn and those after it run again. *alpha* down when a soft change is lost, up when \
noise comes through."""

TOY_NOTE = """# {title}

{first}

Ten edits of three objects, each of the last one's result; the masks move along. **Change Threshold** takes over only \
what was really changed and keeps every other pixel of the last turn, bit for bit, so that nothing drifts.

**Change:** a turn's *moves*, *scale*, *rotation*, *flip*. Only that turn and those after it run again."""

TURNED = """## The result

What no turn really changed **is as it was in the first picture**, bit for bit."""

BEST = """# {title}

{first}

Four seeds try the same edit. **Best Of** ranks them by how well they keep what lies outside the mask; with *clip* and \
*clip_vision* connected and a *text*, also by how well they show what the text says."""

# What the toy graphs show.
BEST_SEED, BEST_TEXT = 5, "a purple cross on a dotted background"
TURNS_SEED = 144
TOY_TURNS = (  # the object, and what becomes of it
    (3, {"moves": "12, 96"}),
    (1, {"moves": "-90, 10"}),
    (2, {"scale_x": 1.3, "scale_y": 1.3}),
    (3, {"rotation": 25.0}),
    (1, {"moves": "60, -20"}),
    (2, {"moves": "-8, -10"}),
    (1, {"flip": "vertical"}),
    (3, {"scale_x": 1.25, "scale_y": 1.25}),
    (2, {"rotation": 30.0}),
    (1, {"moves": "-75, 0"}),
)
REAL_TURNS = (
    "a photo of a cat on a wooden table beside a blue vase",
    "a photo of a dog on a wooden table beside a blue vase",
    "a photo of a dog on a wooden table beside a red vase",
    "a photo of a dog on a marble table beside a red vase",
    "a photo of a fox on a marble table beside a red vase",
    "a photo of a fox on a marble table beside a red teapot",
    "a photo of a fox on a marble table beside a golden teapot",
    "a photo of a fox on a glass table beside a golden teapot",
    "a photo of a rabbit on a glass table beside a golden teapot",
    "a photo of a rabbit on a glass table beside a golden lamp",
    "a photo of a white rabbit on a glass table beside a golden lamp",
)


def turn(number: int, model: Node, before: Port, said: Port, text: str) -> tuple[Group, Port, Port]:
    """One turn: what a text says anew is changed, and only what has changed is taken over."""
    saying = Node("PrimitiveStringMultiline", "Now it shows", 120, {"value": text})
    edit = Node(
        "Edit By Words",
        inputs={
            "model": model[0], "clip": model[1], "vae": model[2], "image": before, "before": said, "after": saying[0],
        },
    )  # fmt: skip
    taken = Node("LatentLayersChangeThreshold", colour=KEY_NODE, inputs={"previous": before, "new": edit[0]})
    group = Group(f"Turn {number}", PURPLE, f"## Turn {number}", 60, [[saying, edit, taken]])
    return group, taken[0], saying[0]


def ten_turns(info: Info) -> Drawing:
    """Ten edits by words, each of the last one's result."""
    model, picture, start, _ = start_nodes(False)
    first = Node("PrimitiveStringMultiline", "It shows", 120, {"value": REAL_TURNS[0]})
    groups, now, said = [], picture[0], first[0]
    for number, text in enumerate(REAL_TURNS[1:], 1):
        group, now, said = turn(number, model, now, said, text)
        groups.append(group)
    return in_a_row(
        info,
        TURNS.format(title="Ten turns", first=PICTURE_REAL.format(smaller=f"{SMALLER} and *grow* to {WORD_GROW // 2}")),
        [*start, first],
        groups,
        now,
    )


def try_me_ten_turns(info: Info) -> Drawing:
    """Ten edits of layers, each of the last one's result."""
    model = Node("LatentLayersToyModel", colour=KEY_NODE)
    scenes = [
        Node(
            "LatentLayersToyScene",
            f"Scene, object {number}",
            colour=KEY_NODE,
            inputs={"seed": TURNS_SEED, "objects": 3, "object": number},
        )
        for number in (1, 2, 3)
    ]
    empty = text_node(model[1], "", "Empty prompt")
    source = preview("Source", scenes[0][0])
    masks, groups, now = [scene[1] for scene in scenes], [], scenes[0][0]
    for number, (which, changes) in enumerate(TOY_TURNS, 1):
        layer = Node("LatentLayersAddLayer", colour=KEY_NODE, inputs={"mask": masks[which - 1], **changes})
        edit = Node(
            "LatentLayersLayeredEdit",
            height=640,
            colour=KEY_NODE,
            inputs={"model": model[0], "vae": model[2], "conditioning": empty[0], "image": now, "layers": layer[0]},
        )
        taken = Node("LatentLayersChangeThreshold", colour=KEY_NODE, inputs={"previous": now, "new": edit[0]})
        groups.append(Group(f"Turn {number}", PURPLE, f"## Turn {number}", 60, [[layer, edit, taken]]))
        masks[which - 1], now = edit[1], taken[0]
    note = TOY_NOTE.format(title="Try me: ten turns", first=PICTURE_TOY)
    return in_a_row(info, note, [model, *scenes, empty, source], groups, now)


def in_a_row(info: Info, note: str, start: list[Node], turns: list[Group], result: Port) -> Drawing:
    """A picture, its turns, and what they lead to."""
    first = Group("Picture", BLUE, note, 420, [start], width=340)
    last = Group("Result", GREY, TURNED, 130, [[saved(result, "latent_layers/turns")]], width=340)
    return Drawing(info, [first, *turns, last])


def best_of_four(toy: bool):
    """Four seeds, ranked."""

    def draw(info: Info) -> Drawing:
        title = "Try me: best of four" if toy else "Best of four"
        model, picture, start, painted = start_nodes(toy, seed=BEST_SEED, objects=1)
        mask = grown_mask(painted, 12 if toy else 30)
        empty = text_node(model[1], "", "Empty prompt")
        prompt = text_node(model[1], BEST_TEXT if toy else "a wooden house in the snow", "Edit prompt")
        encoded = Node("VAEEncode", inputs={"pixels": picture[0], "vae": model[2]})
        masked = Node("SetLatentNoiseMask", inputs={"samples": encoded[0], "mask": mask[0]})
        four = Node("RepeatLatentBatch", inputs={"samples": masked[0], "amount": 4})
        sampled = Node(
            "KSampler",
            inputs={
                "model": model[0], "positive": prompt[0], "negative": empty[0], "latent_image": four[0], "seed": 1,
                "steps": 30, "cfg": TOY_CFG if toy else CFG, "sampler_name": "euler", "scheduler": SCHEDULER,
                "denoise": 1.0,
            },
        )  # fmt: skip
        decoded = Node("VAEDecode", inputs={"samples": sampled[0], "vae": model[2]})
        best = Node(
            "LatentLayersBestOf",
            height=420,
            colour=KEY_NODE,
            inputs={"candidates": decoded[0], "source": picture[0], "keep": 1, "mask": mask[0]},
        )
        pasted = Node(
            "ImageCompositeMasked",
            "Only the masked area",
            inputs={
                "destination": picture[0], "source": best[0], "x": 0, "y": 0, "resize_source": False, "mask": mask[0],
            },
        )  # fmt: skip
        ranking = Node("PreviewAny", "Ranking", 140, {"source": best[2]})
        note = BEST.format(
            title=title, first=PICTURE_TOY if toy else PAINTED_REAL.format(smaller=SMALLER_MASK.format(15))
        )
        masks = [mask] if toy else [painted.node, mask]
        groups = [
            Group("1  Picture", BLUE, note, 330, [start], width=340),
            Group("2  Four tries", PURPLE, "## The same edit with four seeds", 60,
                  [[*masks, empty, prompt, encoded, masked], [four, sampled, decoded]], width=340),
            Group("3  Choose", GREEN, "## All of them with their scores", 60,
                  [[best, ranking, preview("All", best[3])]], width=380),
            Group("4  Result", GREY, RESULT, 130, [[pasted, saved(pasted[0], "latent_layers/best")]], width=340),
        ]  # fmt: skip
        return Drawing(info, groups)

    return draw


GRAPHS = {
    "try_me_ten_turns": try_me_ten_turns,
    "ten_turns": ten_turns,
    "try_me_best_of_four": best_of_four(True),
    "best_of_four": best_of_four(False),
}
