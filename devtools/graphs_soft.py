"""Example graphs of soft edits: words in time, pixels in space."""

from typing import Any

from draw_graphs import Drawing, Group, Info, Node, Port
from graphs_common import (
    BLUE,
    GREEN,
    GREY,
    KEY_NODE,
    PURPLE,
    RED,
    SCHEDULER,
    STEPS,
    YELLOW,
    preview,
    saved,
    start_nodes,
)
from graphs_masks import PAINTED_REAL, PICTURE_REAL, PICTURE_TOY, SMALLER

SOFT = """# {title}

{first}

The picture and its edit are drawn side by side. **Word Timings** compares the two texts and finds where the edit is \
to be: the last picture of its strip, white. **Adaptive Attention Guider** lets the edit take over there, word by \
word; everything else keeps the picture's own attention. **Proximal Guidance** drops what the texts hardly differ in.

**Change:** {change}"""

SMALL = f"{SMALLER}, and *dilation* in **Proximal Guidance** to 2"
PAINTED_TEXTS = PAINTED_REAL.replace("Say what", "Say in the texts what it shows, and what")
TEXTS = "the texts, in the same words where nothing changes; *grow* up when too little changes; *hold* keeps outlines."
SHAPES = "*grow*: room for what comes; *hold* up (0.3) when too much moves."
REGION = "the mask; grey is edited in part. *mask_mode*: *replace* takes the mask alone."
SWEEP = "*lambda_s* of the four guiders: 0 keeps the picture (SDXL: nearly), 1 is the whole edit."

TIMES = """## When and where

*table*: each word's tau is the share of the steps, from the first one on, in which it keeps the picture's attention. \
Write lines such as `star 0.3` into *taus* to overrule it."""

TOY_CFG = 1.5  # with more, its colours overshoot; checkpoints have the node's default
SIDE = "## Picture and edit, side by side"
RESULT = "## The result"


class Example:
    """What one graph shows: texts, and settings of the guider, for the toy model and for a checkpoint.

    `room`: what comes may be larger than what goes, so that the place is grown.
    """

    def __init__(
        self, title: str, change: str, toy: dict[str, Any], real: tuple[str, str], room: bool = False, **settings: Any
    ) -> None:
        self.title, self.change, self.toy, self.real, self.settings = title, change, toy, real, settings
        self.timings: dict[str, Any] = {} if room else {"grow": 0.0}


ADJECTIVE = Example(
    "Change an adjective",
    TEXTS,
    {"seed": 45, "edit": "a yellow circle on a striped background"},
    ("a woman in a blue coat on a street", "a woman in a red coat on a street"),
    hold=0.5,
)
SHAPE = Example(
    "Change a shape or a pose softly",
    SHAPES,
    {"seed": 3, "edit": "a black star on a checkered background"},
    ("a cat sitting on a sofa", "a cat lying on a sofa"),
    room=True,
)
PAINTED = Example(
    "Soft edit inside a painted region",
    REGION,
    {"seed": 0, "edit": "a blue cross on a horizon background"},
    ("a wooden house in a green field", "a wooden house in a snowy field"),
)
STRENGTHS = Example(
    "Strength sweep",
    SWEEP,
    {"seed": 40, "edit": "a yellow circle on a gradient background"},
    ("a bowl of green apples on a table", "a bowl of red apples on a table"),
)
SWEPT = (0.0, 0.25, 0.5, 1.0)


def beginning(example: Example, toy: bool, painted: bool) -> tuple[Node, Node, list[Node], Port]:
    """Model, picture and mask; see `start_nodes`."""
    model, picture, start, mask = start_nodes(toy, seed=example.toy["seed"], objects=1)
    if painted and not toy:
        start = [*start, mask.node]
    return model, picture, start, mask


def timed(example: Example, toy: bool, model: Node, picture: Node) -> tuple[list[Group], dict[str, Any]]:
    """Both texts, the picture's way to noise, and the timings: groups, and what a guider is given."""
    said = Node("PrimitiveStringMultiline", "It shows", 100, {"value": example.real[0]})
    before: Port = picture[3] if toy else said[0]
    after = Node(
        "PrimitiveStringMultiline", "It should show", 100, {"value": example.toy["edit"] if toy else example.real[1]}
    )
    source = Node("CLIPTextEncode", "Source prompt", height=90, inputs={"clip": model[1], "text": before})
    edit = Node("CLIPTextEncode", "Edit prompt", height=90, inputs={"clip": model[1], "text": after[0]})
    encoded = Node("VAEEncode", inputs={"pixels": picture[0], "vae": model[2]})
    schedule = Node(
        "BasicScheduler", inputs={"model": model[0], "scheduler": SCHEDULER, "steps": STEPS, "denoise": 1.0}
    )
    inverted = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model[0], "conditioning": source[0], "latent": encoded[0], "sigmas": schedule[0]},
    )
    timings = Node(
        "LatentLayersWordTimings",
        height=620,
        colour=KEY_NODE,
        inputs={
            "model": model[0], "clip": model[1], "source_text": before, "edit_text": after[0],
            "trajectory": inverted[0], **example.timings,
        },
    )  # fmt: skip
    table = Node("PreviewAny", "Table", 260, {"source": timings[1]})
    followed = Node(
        "LatentLayersProximalGuidance",
        colour=KEY_NODE,
        # in latent pixels: SDXL's pictures have twice as many to a side
        inputs={"model": model[0], "trajectory": inverted[0], **({} if toy else {"dilation": 4})},
    )
    texts = [after] if toy else [said, after]
    groups = [
        Group("2  Words and noise", YELLOW, "## What it shows, what it should show", 60,
              [[*texts, source, edit], [encoded, schedule, inverted, followed]]),
        Group("3  Timings", GREEN, TIMES, 170, [[timings], [table]], width=360),
    ]  # fmt: skip
    given = {
        "model": followed[0], "source": source[0], "edit": edit[0], "timings": timings[0], "trajectory": inverted[0],
        "sigmas": schedule[0], **({"cfg": TOY_CFG} if toy else {}),
    }  # fmt: skip
    return groups, given


def edited(given: dict[str, Any], vae: Port, title: str = "", **settings: Any) -> tuple[list[Node], Port]:
    """One soft edit: its nodes, and the picture."""
    inputs = {name: port for name, port in given.items() if name != "sigmas"}
    guider = Node("LatentLayersAdaptiveAttentionGuider", title, colour=KEY_NODE, inputs={**inputs, **settings})
    sampler = Node("KSamplerSelect", inputs={"sampler_name": "euler"})
    sampled = Node(
        "LatentLayersSample",
        colour=KEY_NODE,
        inputs={
            "guider": guider[0], "sampler": sampler[0], "sigmas": given["sigmas"], "trajectory": given["trajectory"],
        },
    )  # fmt: skip
    decoded = Node("VAEDecode", inputs={"samples": sampled[1], "vae": vae})
    return [guider, sampler, sampled, decoded], decoded[0]


def soft_edit(example: Example, name: str, painted: bool = False):
    """Graphs of one edit, for the toy model and for a checkpoint."""

    def draw(toy: bool):
        def drawn(info: Info) -> Drawing:
            model, picture, start, mask = beginning(example, toy, painted)
            groups, given = timed(example, toy, model, picture)
            masks: list[Node] = []
            settings = dict(example.settings)
            if painted:
                soft = Node("LatentLayersSoftMask", colour=KEY_NODE, inputs={"mask": mask})
                shown = Node("MaskToImage", inputs={"mask": soft[0]})
                # any strength at all may change a pixel
                whole = Node("ThresholdMask", "All that may change", inputs={"mask": soft[0], "value": 0.0})
                area = Node("MaskToImage", "Area as a picture", inputs={"mask": whole[0]})
                masks = [soft, shown, preview("Strength", shown[0]), whole, area, preview("Mask", area[0])]
                settings["mask"] = soft[0]
            nodes, result = edited(given, model[2], **settings)
            if painted:
                pasted = Node(
                    "ImageCompositeMasked",
                    "Only the masked area",
                    inputs={
                        "destination": picture[0], "source": result, "x": 0, "y": 0, "resize_source": False,
                        "mask": masks[3][0],  # grey has already been edited in part
                    },
                )  # fmt: skip
                nodes, result = [*nodes, pasted], pasted[0]
            else:
                taken = Node(
                    "LatentLayersChangeThreshold",
                    "Unchanged pixels back",
                    colour=KEY_NODE,
                    inputs={"previous": picture[0], "new": result},
                )
                nodes, result = [*nodes, taken], taken[0]
            title = f"Try me: {example.title[0].lower()}{example.title[1:]}" if toy else example.title
            real = PAINTED_TEXTS if painted else PICTURE_REAL
            first = PICTURE_TOY if toy else real.format(smaller=SMALL)
            note = SOFT.format(title=title, first=first, change=example.change)
            return Drawing(
                info,
                [
                    Group("1  Picture", BLUE, note, 420, [[*start, *masks]], width=340),
                    *groups,
                    Group("4  Edit", PURPLE, SIDE, 60, [nodes], width=340),
                    Group("5  Result", GREY, RESULT, 60, [[saved(result, f"latent_layers/{name}")]], width=340),
                ],
            )

        return drawn

    return {f"try_me_{name}": draw(True), name: draw(False)}


def strength_sweep(toy: bool):
    """The same edit at four strengths, side by side."""

    def drawn(info: Info) -> Drawing:
        model, picture, start, _ = beginning(STRENGTHS, toy, False)
        groups, given = timed(STRENGTHS, toy, model, picture)
        columns, pictures = [], []
        for value in SWEPT:
            nodes, result = edited(given, model[2], f"Strength {value:g}", lambda_s=value, hold=0.5)
            columns.append(nodes)
            pictures.append(result)
        row, joined = pictures[0], []
        for other in pictures[1:]:
            stitched = Node(
                "ImageStitch",
                inputs={
                    "image1": row, "image2": other, "direction": "right", "match_image_size": True, "spacing_width": 0,
                    "spacing_color": "white",
                },
            )  # fmt: skip
            joined.append(stitched)
            row = stitched[0]
        title = "Try me: strength sweep" if toy else STRENGTHS.title
        first = PICTURE_TOY if toy else PICTURE_REAL.format(smaller=SMALL)
        note = SOFT.format(title=title, first=first, change=STRENGTHS.change)
        return Drawing(
            info,
            [
                Group("1  Picture", BLUE, note, 420, [start], width=340),
                *groups,
                Group("4  Four strengths", PURPLE, SIDE, 60, columns, width=320),
                Group("5  Side by side", RED, RESULT, 60, [joined]),
                Group("6  Result", GREY, "## From the picture to the edit", 60,
                      [[saved(row, "latent_layers/strengths")]], width=640),
            ],
        )  # fmt: skip

    return drawn


GRAPHS = {
    **soft_edit(ADJECTIVE, "change_adjective"),
    **soft_edit(SHAPE, "change_shape"),
    **soft_edit(PAINTED, "soft_region", painted=True),
    "try_me_strength_sweep": strength_sweep(True),
    "strength_sweep": strength_sweep(False),
}
