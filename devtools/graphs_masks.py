"""Example graphs of masks that make themselves: by words, by points, soft ones, and many turns."""

from typing import Any

from draw_graphs import Drawing, Group, Info, Node, Port
from graphs_common import (
    BLUE,
    CFG,
    GREEN,
    GREY,
    KEY_NODE,
    PURPLE,
    RED,
    SCHEDULER,
    STEPS,
    TOY_CFG,
    WORD_FILL,
    WORD_GROW,
    WORD_STEPS,
    YELLOW,
    checkpoint_node,
    grown_mask,
    preview,
    saved,
    start_nodes,
    text_node,
)
from graphs_layers import RESULT as LAYERED
from graphs_removal import remove_object_groups

PICTURE_TOY = "Press **Run**. No download is needed: **Toy Model** is a small model that knows only such scenes."

PICTURE_REAL = """1. **Load Checkpoint:** choose an SDXL checkpoint. (SD 1.5 works too: then set {smaller}.)
2. **Load Image:** choose your picture.
3. Say in the texts what it shows, and what it should show. Press **Run**."""

PAINTED_REAL = """1. **Load Checkpoint:** choose an SDXL checkpoint. (SD 1.5 works too: then set {smaller}.)
2. **Load Image:** choose your picture. Right-click it, *Open in MaskEditor*, paint where it should change, and save.
3. Say what it should show. Press **Run**."""

SMALLER = "*megapixels* to 0.25"
SMALLER_MASK = f"{SMALLER} and *expand* to {{}}"

WORDS = """# {title}

{first}

**Instant Attention Mask** changes the picture a little way towards the text and sees where the words look. No mask \
is painted. *source_text* says what the picture shows now.

**Change:** the text. *roles* shows what each word was taken for; *words* overrides it: +star, -background."""

SECOND = """## Draw it again inside the mask

The area is drawn again from the picture's own noise, so that shapes stay where they were, by the text; **Keep \
Source** holds everything else in place, at every step.

**Change:** *cfg*; in *Basic Scheduler*, *denoise*: how far back towards noise the area goes."""

INPAINTING = """## Fill it with an inpainting checkpoint

Inside the mask everything is drawn anew, from noise, by a checkpoint that was trained to fill. Choose one of the same \
picture size as the first: an SDXL or an SD 1.5 inpainting checkpoint.

**Change:** *cfg*, *seed*."""

RESULT = """## The result

Only the masked area is taken. **Every pixel outside it is as it was.**"""

NAMED_REAL = PICTURE_REAL.replace(
    "Say in the texts what it shows, and what it should show.",
    "Say in **Word Mask** what it shows (*text*), and what of it is to go (*words*).",
)

DECORATIONS = """# {title}

{first}

**Word Mask** finds what the words name in the picture itself, along the way from picture to noise: good for things \
too scattered to paint.

**Change:** *words*; *threshold* (-1 finds it by itself); the pixels that the mask grows."""

SOFT = """# {title}

{first}

**Soft Mask** mixes the mask itself, its blurred surroundings and its box. Grey is changed a little, white wholly.

**Change:** the three weights; *cfg*."""

SAM = """# {title}

1. Put a Segment Anything checkpoint (sam_vit_b, _l or _h) into *models/sams* and choose it.
2. **Load Checkpoint:** an SDXL checkpoint. **Load Image:** your picture.
3. *positive*: a point on the object, in pixels of the scaled picture. Press **Run**."""

# What the toy graphs show: scenes and texts that make clear pictures.
WORDS_SEED, WORDS_TEXT = 4, "a purple star on a checkered background"
DECORATION_SEED, DECORATION_WORDS = 13, "star"
SOFT_SEED, SOFT_TEXT = 11, "a red triangle on a plain background"


def fill_groups(
    number: int,
    model: Node,
    image: Port,
    mask: Port,
    text: Port | str,
    cfg: float,
    pasted: Port | None = None,
    **schedule: Any,
) -> tuple[list[Group], Port]:
    """Inside the mask the picture drawn again by a text; outside the source: groups, and the result's port.

    `pasted` is the area that is taken from the new picture, where that is not the mask itself; `schedule` changes
    the settings of Basic Scheduler.
    """
    empty = text_node(model[1], "", "Empty prompt")
    prompt = Node("CLIPTextEncode", "Edit prompt", height=110, inputs={"clip": model[1], "text": text})
    encoded = Node("VAEEncode", inputs={"pixels": image, "vae": model[2]})
    levels = Node(
        "BasicScheduler",
        inputs={"model": model[0], "scheduler": SCHEDULER, "steps": STEPS, "denoise": 1.0, **schedule},
    )
    inverted = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model[0], "conditioning": empty[0], "latent": encoded[0], "sigmas": levels[0]},
    )
    kept = Node(
        "LatentLayersKeepSource",
        colour=KEY_NODE,
        inputs={"model": model[0], "trajectory": inverted[0], "mask": mask},
    )
    guider = Node("CFGGuider", inputs={"model": kept[0], "positive": prompt[0], "negative": empty[0], "cfg": cfg})
    sampler = Node("KSamplerSelect", inputs={"sampler_name": "euler"})
    sampled = Node(
        "LatentLayersSample",
        colour=KEY_NODE,
        inputs={"guider": guider[0], "sampler": sampler[0], "sigmas": levels[0], "trajectory": inverted[0]},
    )
    decoded = Node("VAEDecode", inputs={"samples": sampled[1], "vae": model[2]})
    result = Node(
        "ImageCompositeMasked",
        "Only the masked area",
        inputs={
            "destination": image, "source": decoded[0], "x": 0, "y": 0, "resize_source": False,
            "mask": mask if pasted is None else pasted,
        },
    )  # fmt: skip
    groups = [
        Group(
            f"{number}  Noise", YELLOW, "## The picture's own way to noise", 60, [[empty, encoded, levels, inverted]]
        ),
        Group(f"{number + 1}  Edit", PURPLE, SECOND, 190, [[prompt, kept, guider]], width=340),
        Group(f"{number + 2}  Sample", RED, "## From noise to the picture", 60, [[sampler, sampled, decoded, result]]),
    ]
    return groups, result[0]


def edit_by_words(toy: bool):
    """A text changes an object; where it is, the model finds out."""

    def draw(info: Info) -> Drawing:
        title = "Try me: edit by words" if toy else "Edit by words"
        cfg = TOY_CFG if toy else CFG
        model, picture, start, _ = start_nodes(toy, seed=WORDS_SEED, objects=1)
        empty = text_node(model[1], "", "Nothing to avoid")
        text = Node(
            "PrimitiveStringMultiline",
            "What it should show",
            120,
            {"value": WORDS_TEXT if toy else "a dog on the grass"},
        )
        encoded = Node("VAEEncode", inputs={"pixels": picture[0], "vae": model[2]})
        found = Node(
            "LatentLayersInstantAttentionMask",
            height=760,
            colour=KEY_NODE,
            inputs={
                "model": model[0], "clip": model[1], "text": text[0], "latent": encoded[0], "negative": empty[0],
                "source_text": picture[3] if toy else "a cat on the grass", "steps": WORD_STEPS, "cfg": cfg,
            },
        )  # fmt: skip
        roles = Node("PreviewAny", "Roles of the words", 140, {"source": found[3]})
        mask = grown_mask(found[0], WORD_GROW // 4 if toy else WORD_GROW)
        shown = Node("MaskToImage", inputs={"mask": mask[0]})
        middle, result = fill_groups(3, model, picture[0], mask[0], text[0], cfg, **WORD_FILL)
        note = WORDS.format(
            title=title, first=PICTURE_TOY if toy else PICTURE_REAL.format(smaller=SMALLER_MASK.format(WORD_GROW // 2))
        )
        groups = [
            Group("1  Picture", BLUE, note, 330, [start], width=340),
            Group(
                "2  Mask", GREEN, "## Where the words look", 60,
                [[text, empty, encoded, found], [roles, mask, shown, preview("Mask", shown[0])]], width=340,
            ),
            *middle,
            Group("6  Result", GREY, RESULT, 130, [[saved(result, "latent_layers/by_words")]], width=340),
        ]  # fmt: skip
        return Drawing(info, groups)

    return draw


def edit_by_words_inpainting(info: Info) -> Drawing:
    """The same mask, filled by a checkpoint that was trained to fill."""
    model, picture, start, _ = start_nodes(False)
    before, after = "a cat on the grass", "a dog on the grass"
    empty = text_node(model[1], "", "Nothing to avoid")
    text = Node("PrimitiveStringMultiline", "What it should show", 120, {"value": after})
    encoded = Node("VAEEncode", inputs={"pixels": picture[0], "vae": model[2]})
    found = Node(
        "LatentLayersInstantAttentionMask",
        height=760,
        colour=KEY_NODE,
        inputs={
            "model": model[0], "clip": model[1], "text": text[0], "latent": encoded[0], "negative": empty[0],
            "source_text": before, "steps": WORD_STEPS,
        },
    )  # fmt: skip
    roles = Node("PreviewAny", "Roles of the words", 140, {"source": found[3]})
    mask = grown_mask(found[0], 48)
    shown = Node("MaskToImage", inputs={"mask": mask[0]})
    filler = checkpoint_node("Load Inpainting Checkpoint")
    prompt = Node("CLIPTextEncode", "Edit prompt", height=110, inputs={"clip": filler[1], "text": text[0]})
    avoided = text_node(filler[1], "", "Empty prompt")
    prepared = Node(
        "InpaintModelConditioning",
        inputs={
            "positive": prompt[0], "negative": avoided[0], "vae": filler[2], "pixels": picture[0], "mask": mask[0],
            "noise_mask": True,
        },
    )  # fmt: skip
    sampled = Node(
        "KSampler",
        inputs={
            "model": filler[0], "positive": prepared[0], "negative": prepared[1], "latent_image": prepared[2],
            "seed": 1, "steps": 30, "cfg": CFG, "sampler_name": "euler", "scheduler": SCHEDULER, "denoise": 1.0,
        },
    )  # fmt: skip
    decoded = Node("VAEDecode", inputs={"samples": sampled[0], "vae": filler[2]})
    result = Node(
        "ImageCompositeMasked",
        "Only the masked area",
        inputs={
            "destination": picture[0], "source": decoded[0], "x": 0, "y": 0, "resize_source": False, "mask": mask[0],
        },
    )  # fmt: skip
    note = WORDS.format(
        title="Edit by words, with an inpainting checkpoint",
        first=PICTURE_REAL.format(smaller=SMALLER_MASK.format(24)),
    )
    groups = [
        Group("1  Picture", BLUE, note, 330, [start], width=340),
        Group(
            "2  Mask", GREEN, "## Where the words look", 60,
            [[text, empty, encoded, found], [roles, mask, shown, preview("Mask", shown[0])]], width=340,
        ),
        Group("3  Edit", PURPLE, INPAINTING, 190, [[filler, prompt, avoided, prepared]], width=340),
        Group("4  Sample", RED, "## From noise to the picture", 60, [[sampled, decoded, result]]),
        Group("5  Result", GREY, RESULT, 130, [[saved(result[0], "latent_layers/by_words")]], width=340),
    ]  # fmt: skip
    return Drawing(info, groups)


def remove_decorations(toy: bool):
    """What a word names is found in the picture and removed."""

    def draw(info: Info) -> Drawing:
        title = "Try me: remove what a word names" if toy else "Remove decorations by words"
        model, picture, start, _ = start_nodes(toy, seed=DECORATION_SEED, objects=3)
        empty = text_node(model[1], "", "Empty prompt")
        encoded = Node("VAEEncode", "Encode to read", inputs={"pixels": picture[0], "vae": model[2]})
        schedule = Node(
            "BasicScheduler", "Schedule to read",
            inputs={"model": model[0], "scheduler": SCHEDULER, "steps": STEPS, "denoise": 1.0},
        )  # fmt: skip
        inverted = Node(
            "LatentLayersInvert",
            colour=KEY_NODE,
            inputs={"model": model[0], "conditioning": empty[0], "latent": encoded[0], "sigmas": schedule[0]},
        )
        text: Any = picture[3] if toy else "a dress with embroidered flowers"
        found = Node(
            "LatentLayersWordMask",
            height=420,
            colour=KEY_NODE,
            inputs={
                "model": model[0], "clip": model[1], "trajectory": inverted[0], "text": text,
                "words": DECORATION_WORDS if toy else "flowers",
            },
        )  # fmt: skip
        mask = grown_mask(found[0], 5 if toy else 20)
        shown = Node("MaskToImage", inputs={"mask": mask[0]})
        middle, result = remove_object_groups(model[0], model[1], model[2], picture[0], mask[0])
        note = DECORATIONS.format(
            title=title, first=PICTURE_TOY if toy else NAMED_REAL.format(smaller=SMALLER_MASK.format(10))
        )
        groups = [
            Group("1  Picture", BLUE, note, 330, [start], width=340),
            Group(
                "2  Mask", GREEN, "## Where the words are", 60,
                [[empty, encoded, schedule, inverted], [found, mask, shown, preview("Mask", shown[0])]], width=340,
            ),
            *middle,
            Group("6  Result", GREY, RESULT, 130, [[saved(result, "latent_layers/undecorated")]], width=340),
        ]  # fmt: skip
        return Drawing(info, groups)

    return draw


def soft_mask_edit(toy: bool):
    """An edit whose strength follows a soft mask."""

    def draw(info: Info) -> Drawing:
        title = "Try me: a soft mask" if toy else "Soft-mask edit"
        model, picture, start, painted = start_nodes(toy, seed=SOFT_SEED, objects=1)
        soft = Node("LatentLayersSoftMask", colour=KEY_NODE, inputs={"mask": painted})
        shown = Node("MaskToImage", inputs={"mask": soft[0]})
        # the greys have done their work in the sampling: pasted is all that could change
        whole = Node("ThresholdMask", "All that may change", inputs={"mask": soft[0], "value": 0.0})
        area = Node("MaskToImage", "Area as a picture", inputs={"mask": whole[0]})
        text = SOFT_TEXT if toy else "a wooden house in the snow"
        middle, result = fill_groups(3, model, picture[0], soft[0], text, TOY_CFG if toy else CFG, whole[0])
        note = SOFT.format(title=title, first=PICTURE_TOY if toy else PAINTED_REAL.format(smaller=SMALLER))
        masks = [soft, shown, preview("Strength", shown[0]), whole, area, preview("Mask", area[0])]
        if not toy:
            masks.insert(0, painted.node)
        groups = [
            Group("1  Picture", BLUE, note, 330, [start], width=340),
            Group("2  Mask", GREEN, "## How strongly each pixel may change", 60, [masks], width=340),
            *middle,
            Group("6  Result", GREY, RESULT, 130, [[saved(result, "latent_layers/soft")]], width=340),
        ]
        return Drawing(info, groups)

    return draw


def points_to_layers(info: Info) -> Drawing:
    """Points make masks, masks make layers, and a layer moves."""
    model, picture, start, _ = start_nodes(False)
    sam = Node("LatentLayersSamLoader", colour=KEY_NODE)
    found = Node(
        "LatentLayersSegmentAnything",
        height=340,
        colour=KEY_NODE,
        inputs={"sam": sam[0], "image": picture[0], "positive": "512, 512"},
    )
    layer = Node(
        "LatentLayersAddLayer", colour=KEY_NODE, inputs={"mask": found[0], "name": "object", "moves": "20%, 0"}
    )
    text = text_node(model[1], "", "Empty prompt")
    edit = Node(
        "LatentLayersLayeredEdit",
        height=640,
        colour=KEY_NODE,
        inputs={
            "model": model[0], "vae": model[2], "conditioning": text[0], "image": picture[0], "layers": layer[0],
        },
    )  # fmt: skip
    groups = [
        Group("1  Picture", BLUE, SAM.format(title="Points to layers"), 260, [start], width=340),
        Group(
            "2  Mask", GREEN, "## Cut the object out by a point", 60,
            [[sam, found, preview("What was found", found[2])]], width=340,
        ),
        Group("3  Layer", PURPLE, "## Say what becomes of it", 60, [[layer, text, edit]], width=340),
        Group("4  Result", GREY, LAYERED, 130, [[saved(edit[0], "latent_layers/points")]], width=340),
    ]  # fmt: skip
    return Drawing(info, groups)


GRAPHS = {
    "try_me_edit_by_words": edit_by_words(True),
    "edit_by_words": edit_by_words(False),
    "edit_by_words_inpainting": edit_by_words_inpainting,
    "try_me_remove_decorations": remove_decorations(True),
    "remove_decorations": remove_decorations(False),
    "try_me_soft_mask": soft_mask_edit(True),
    "soft_mask": soft_mask_edit(False),
    "points_to_layers": points_to_layers,
}
