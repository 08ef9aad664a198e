"""Example graphs of many turns without drift, and of the best of several tries."""

from draw_graphs import Drawing, Group, Info, Node, Port
from graphs_common import BLUE, GREEN, GREY, KEY_NODE, PURPLE, SCHEDULER, grown_mask, preview, saved
from graphs_masks import PAINTED_REAL, PICTURE_REAL, PICTURE_TOY, RESULT, start_nodes, text_node

TURNS = """# {title}

{first}

Each turn goes on from the last. A turn through the model shifts every pixel a little; after ten, that is a \
different picture. **Change Threshold** takes only what was really changed and keeps every other pixel, bit for bit.

**Change:** *alpha* down when a soft change is lost, up when noise comes through."""

BEST = """# {title}

{first}

Four seeds try the same edit. **Best Of** ranks them by how well they keep what was not meant to change; with *clip* \
and *clip_vision* connected and a *text*, also by how well they show what the text says."""

# What the toy graphs show.
BEST_SEED, BEST_TEXT = 5, "a red star on a dotted background"
TEN_PLACES = (
    (20, 20),
    (100, 20),
    (180, 20),
    (20, 96),
    (180, 96),
    (100, 96),
    (20, 176),
    (100, 176),
    (180, 176),
    (60, 60),
)


def best_of_four(toy: bool):
    """Four seeds, ranked."""

    def draw(info: Info) -> Drawing:
        title = "Try me: best of four" if toy else "Best of four"
        model, picture, start, painted = start_nodes(toy, seed=BEST_SEED, objects=1)
        mask = grown_mask(painted, 5 if toy else 20)
        empty = text_node(model[1], "", "Empty prompt")
        prompt = text_node(model[1], BEST_TEXT if toy else "a wooden house in the snow", "Edit prompt")
        encoded = Node("VAEEncode", inputs={"pixels": picture[0], "vae": model[2]})
        masked = Node("SetLatentNoiseMask", inputs={"samples": encoded[0], "mask": mask[0]})
        four = Node("RepeatLatentBatch", inputs={"samples": masked[0], "amount": 4})
        sampled = Node(
            "KSampler",
            inputs={
                "model": model[0], "positive": prompt[0], "negative": empty[0], "latent_image": four[0], "seed": 1,
                "steps": 30, "cfg": 3.0 if toy else 7.0, "sampler_name": "dpmpp_2m", "scheduler": SCHEDULER,
                "denoise": 1.0,
            },
        )  # fmt: skip
        decoded = Node("VAEDecode", inputs={"samples": sampled[0], "vae": model[2]})
        repeated = Node("RepeatImageBatch", inputs={"image": picture[0], "amount": 4})
        pasted = Node(
            "ImageCompositeMasked",
            "Only the masked area",
            inputs={
                "destination": repeated[0], "source": decoded[0], "x": 0, "y": 0, "resize_source": False,
                "mask": mask[0],
            },
        )  # fmt: skip
        best = Node(
            "LatentLayersBestOf",
            height=420,
            colour=KEY_NODE,
            inputs={"candidates": pasted[0], "source": picture[0], "keep": 1},
        )
        ranking = Node("PreviewAny", "Ranking", 140, {"source": best[2]})
        note = BEST.format(title=title, first=PICTURE_TOY if toy else PAINTED_REAL)
        masks = [mask] if toy else [painted.node, mask]
        groups = [
            Group("1  Picture", BLUE, note, 330, [start], width=340),
            Group("2  Four tries", PURPLE, "## The same edit with four seeds", 60,
                  [[*masks, empty, prompt, encoded, masked], [four, sampled, decoded, repeated, pasted]], width=340),
            Group("3  Choose", GREEN, "## All of them with their scores", 60,
                  [[best, ranking, preview("All", best[3])]], width=380),
            Group("4  Result", GREY, RESULT, 130, [[saved(best[0], "latent_layers/best")]], width=340),
        ]  # fmt: skip
        return Drawing(info, groups)

    return draw


def turn(number: int, model: Node, before: Port, text: str, place: tuple[int, int], toy: bool) -> tuple[Group, Port]:
    """One turn: an area of the last picture is drawn anew, and only what has changed is taken over."""
    unit = 1 if toy else 4
    black = Node("SolidMask", "Black", inputs={"value": 0.0, "width": 256 * unit, "height": 256 * unit})
    white = Node("SolidMask", "White", inputs={"value": 1.0, "width": 64 * unit, "height": 64 * unit})
    mask = Node(
        "MaskComposite", "Where",
        inputs={
            "destination": black[0], "source": white[0], "x": place[0] * unit, "y": place[1] * unit, "operation": "add",
        },
    )  # fmt: skip
    prompt = text_node(model[1], text, "What is to be there")
    empty = text_node(model[1], "", "Nothing to avoid")
    encoded = Node("VAEEncode", inputs={"pixels": before, "vae": model[2]})
    masked = Node("SetLatentNoiseMask", inputs={"samples": encoded[0], "mask": mask[0]})
    sampled = Node(
        "KSampler",
        inputs={
            "model": model[0], "positive": prompt[0], "negative": empty[0], "latent_image": masked[0], "seed": number,
            "steps": 20, "cfg": 3.0 if toy else 7.0, "sampler_name": "dpmpp_2m", "scheduler": SCHEDULER, "denoise": 1.0,
        },
    )  # fmt: skip
    decoded = Node("VAEDecode", inputs={"samples": sampled[0], "vae": model[2]})
    round_trip = Node("VAEDecode", "Round trip", inputs={"samples": encoded[0], "vae": model[2]})
    taken = Node(
        "LatentLayersChangeThreshold",
        colour=KEY_NODE,
        inputs={"previous": before, "new": decoded[0], "reference": round_trip[0]},
    )
    nodes = [[black, white, mask, prompt, empty, encoded], [masked, sampled, decoded, round_trip, taken]]
    return Group(f"Turn {number}", PURPLE, f"## Turn {number}", 60, nodes), taken[0]


def ten_turns(toy: bool):
    """Ten edits, each of the last one's result."""

    def draw(info: Info) -> Drawing:
        title = "Try me: ten turns" if toy else "Ten turns"
        model, picture, start, _ = start_nodes(toy, seed=TURNS_SEED, objects=1)
        groups, now = [], picture[0]
        for number, place in enumerate(TEN_PLACES, 1):
            text = TOY_TURNS[(number - 1) % len(TOY_TURNS)] if toy else "flowers"
            group, now = turn(number, model, now, text, place, toy)
            groups.append(group)
        note = TURNS.format(title=title, first=PICTURE_TOY if toy else PICTURE_REAL)
        return Drawing(
            info,
            [
                Group("Picture", BLUE, note, 330, [start], width=340),
                *groups,
                Group("Result", GREY, RESULT, 130, [[saved(now, "latent_layers/turns")]], width=340),
            ],
        )

    return draw


TURNS_SEED = 11
TOY_TURNS = tuple(
    f"a {thing} on a plain background" for thing in ("red star", "blue ring", "green heart", "purple cross")
)

GRAPHS = {
    "try_me_ten_turns": ten_turns(True),
    "ten_turns": ten_turns(False),
    "try_me_best_of_four": best_of_four(True),
    "best_of_four": best_of_four(False),
}
