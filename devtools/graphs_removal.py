"""Example graphs of removals: an object, and what a pan or a zoom-out exposes."""

from typing import Any

from draw_graphs import Drawing, Group, Info, Node, Port
from graphs_common import (
    BLUE,
    CANVAS_FILL,
    FADE,
    GREEN,
    GREY,
    KEY_NODE,
    PURPLE,
    RED,
    SCHEDULER,
    STEPS,
    YELLOW,
    checkpoint_node,
    grown_mask,
    matched_mask,
    preview,
    saved,
    scaled_picture,
)

START_TOY = """# Try me: remove an object

Press **Run**. After some seconds *Result*, on the far right, shows the scene without one of its objects, \
*Truth* shows how it really looks behind it.

No download is needed: **Toy Model** is a small model that knows only such scenes.

**Change:** *seed* for another scene, *object* for another object in it (1 is in front)."""

START_REAL = """# Remove an object from a picture

1. **Load Checkpoint:** choose an SDXL checkpoint. (SD 1.5 works too: then set *megapixels* to 0.25 and *expand* to 10.)
2. **Load Image:** choose your picture. Right-click it, *Open in MaskEditor*, paint over the object, and save.
3. Press **Run**.

The picture is scaled to about 1024 × 1024 pixels, the size that SDXL knows, in its own proportions."""

MASK = """## The area to remove

White is removed. The mask has to be **larger than the object**, with its shadow and reflection: what is left of \
them would be taken up again.

**Change:** *expand*, the pixels added all round, when a rim of the object stays."""

INVERT = """## Find the picture's noise

**Invert** goes back from the picture to the noise it could have been made from. That is what keeps everything else \
in place.

**Change:** nothing. Leave the text empty. *steps* 50 is the careful choice, 25 is twice as fast."""

FORGET = """## Forget the object, keep the rest

**Key-Masked Self-Attention** hides the masked area from the model, so it is filled from its surroundings. \
**Keep Source** holds everything outside the mask in place. **Lookalike Mask** finds twins of the object, which would \
be copied into the hole.

**Change:** *guidance* up to 10 when the object shines through, down to 3 when the filling looks overdone. \
Paint other objects into *ignore_mask* when they are copied into the hole."""

SAMPLE = """## Draw it again

From the noise back to a picture, filled where the mask is.

**Change:** nothing: *euler* follows the way back most closely."""

FINISH_TOY = """## Put it into the picture

Only the masked area is taken from the new picture. **Every pixel outside the mask stays exactly as it was.**

The result is saved to ComfyUI's output folder."""

FINISH_REAL = (
    FINISH_TOY
    + """

Not what you wanted? A larger mask helps most, then *guidance*, then *ignore_mask*."""
)


START_CANVAS = """# {title}

{first}

**Pan And Zoom** puts the picture at its new place on its own canvas and masks what this exposes."""

FIRST_TOY = "Press **Run**. No download is needed: **Toy Model** is a small model that knows only such scenes."

FIRST_REAL = """1. **Load Checkpoint:** choose an SDXL checkpoint. (SD 1.5 works too: then set *megapixels* to 0.25 \
and *expand* to 15.)
2. **Load Image:** choose your picture.
3. Press **Run**."""

CANVAS_MASK = """## What has to be filled

White is exposed. It is grown a little, so that the old border disappears. At the end **Soft Mask** \
fades the new picture into the old one there.

**Change:** *shift* and *zoom* in **Pan And Zoom**."""

FILL = """## Fill it from the rest

**Key-Masked Self-Attention** hides the exposed area from the model; **Keep Source** holds the picture in place.

**Change:** *guidance*: raise it to 3 or, as the paper, 7.5 when streaks of the border stay. *ignore_mask*: objects \
that must not be repeated."""

FINISH_CANVAS = """## The result

Further in than the grown border, every pixel is that of the moved or shrunk picture."""


def remove_object_groups(
    model: Port,
    clip: Port,
    vae: Port,
    image: Port,
    mask: Port,
    forget: str = FORGET,
    twins: bool = True,
    faded: Node | None = None,
    **settings: Any,
) -> tuple[list[Group], Port]:
    """From mask to sampled latent, decoded: groups, and the result's port.

    `twins`: what looks like the removed object is forgotten too; `faded`: makes the mask by which the result
    is put into the picture, if that is not `mask`; `settings` are of the key mask.
    """
    invert_text = Node("CLIPTextEncode", "Empty prompt", height=110, inputs={"clip": clip, "text": ""})
    encoded = Node("VAEEncode", inputs={"pixels": image, "vae": vae})
    schedule = Node("BasicScheduler", inputs={"model": model, "scheduler": SCHEDULER, "steps": STEPS, "denoise": 1.0})
    inverted = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model, "conditioning": invert_text[0], "latent": encoded[0], "sigmas": schedule[0]},
    )
    hidden = Node(
        "LatentLayersKeyMaskedSelfAttention", colour=KEY_NODE, inputs={"model": model, "mask": mask, **settings}
    )
    alike = Node("LatentLayersLookalikeMask", colour=KEY_NODE, inputs={"latent": encoded[0], "mask": mask})
    if twins:
        hidden.inputs["artifact_mask"] = alike[0]
    kept = Node(
        "LatentLayersKeepSource",
        colour=KEY_NODE,
        inputs={"model": hidden[0], "trajectory": inverted[0], "mask": mask},
    )
    guider = Node("BasicGuider", inputs={"model": kept[0], "conditioning": invert_text[0]})
    sampler = Node("KSamplerSelect", inputs={"sampler_name": "euler"})
    sampled = Node(
        "LatentLayersSample",
        colour=KEY_NODE,
        inputs={"guider": guider[0], "sampler": sampler[0], "sigmas": schedule[0], "trajectory": inverted[0]},
    )
    decoded = Node("VAEDecode", inputs={"samples": sampled[1], "vae": vae})
    result = Node(
        "ImageCompositeMasked",
        "Only the masked area",
        inputs={
            "destination": image, "source": decoded[0], "x": 0, "y": 0, "resize_source": False,
            "mask": mask if faded is None else faded[0],
        },
    )  # fmt: skip
    groups = [
        Group("3  Noise", YELLOW, INVERT, 190, [[invert_text, encoded, schedule, inverted]]),
        Group("4  Edit", PURPLE, forget, 230, [[*([alike] if twins else []), hidden, kept, guider]], width=340),
        Group("5  Sample", RED, SAMPLE, 130, [[sampler, sampled, decoded, *([faded] if faded else []), result]]),
    ]
    return groups, result[0]


def try_me_remove_object(info: Info) -> Drawing:
    """The toy model removes an object from a toy scene."""
    model = Node("LatentLayersToyModel", colour=KEY_NODE)
    scene = Node("LatentLayersToyScene", colour=KEY_NODE, inputs={"seed": 4})
    mask = grown_mask(scene[1], 5)
    picture = Node("MaskToImage", inputs={"mask": mask[0]})
    middle, result = remove_object_groups(model[0], model[1], model[2], scene[0], mask[0])
    groups = [
        Group("1  Picture", BLUE, START_TOY, 260, [[model, scene, preview("Source", scene[0])]]),
        Group("2  Mask", GREEN, MASK, 200, [[mask, picture, preview("Mask", picture[0])]]),
        *middle,
        Group(
            "6  Result", GREY, FINISH_TOY, 170, [[saved(result, "latent_layers/removed"), preview("Truth", scene[2])]]
        ),
    ]
    return Drawing(info, groups)


def remove_object(info: Info) -> Drawing:
    """A Stable Diffusion XL checkpoint removes what is painted over in a picture."""
    checkpoint = checkpoint_node()
    loaded = Node("LoadImage", height=360, inputs={"image": "example.png"})
    scaled = scaled_picture(loaded)
    resized = matched_mask(loaded[1], scaled[0])
    mask = grown_mask(resized[0], 20)
    picture = Node("MaskToImage", inputs={"mask": mask[0]})
    middle, result = remove_object_groups(checkpoint[0], checkpoint[1], checkpoint[2], scaled[0], mask[0])
    groups = [
        Group("1  Picture", BLUE, START_REAL, 330, [[checkpoint, loaded, scaled]], width=340),
        Group("2  Mask", GREEN, MASK, 200, [[resized, mask, picture, preview("Mask", picture[0])]]),
        *middle,
        Group("6  Result", GREY, FINISH_REAL, 230, [[saved(result, "latent_layers/removed")]], width=400),
    ]
    return Drawing(info, groups)


def canvas_graph(title: str, toy: bool, name: str, seed: int = 0, **settings: Any):
    """Pan or zoom-out, with the toy model or a checkpoint."""

    def draw(info: Info) -> Drawing:
        if toy:
            model = Node("LatentLayersToyModel", colour=KEY_NODE)
            picture = Node("LatentLayersToyScene", colour=KEY_NODE, inputs={"seed": seed})
            start = [model, picture, preview("Source", picture[0])]
        else:
            model = checkpoint_node()
            loaded = Node("LoadImage", height=360, inputs={"image": "example.png"})
            picture = scaled_picture(loaded)
            start = [model, loaded, picture]
        canvas = Node("LatentLayersPanAndZoom", colour=KEY_NODE, inputs={"image": picture[0], **settings})
        mask = grown_mask(canvas[1], 8 if toy else 30)
        faded = Node("LatentLayersSoftMask", colour=KEY_NODE, inputs={"mask": canvas[1], **FADE})
        shown = Node("MaskToImage", inputs={"mask": mask[0]})
        middle, result = remove_object_groups(
            model[0], model[1], model[2], canvas[0], mask[0], FILL, False, faded, **CANVAS_FILL
        )
        text = START_CANVAS.format(title=title, first=FIRST_TOY if toy else FIRST_REAL)
        masks = [canvas, preview("Canvas", canvas[0]), mask, shown, preview("Mask", shown[0])]
        groups = [
            Group("1  Picture", BLUE, text, 300, [start], width=340),
            Group("2  Canvas", GREEN, CANVAS_MASK, 180, [masks]),
            *middle,
            Group("6  Result", GREY, FINISH_CANVAS, 130, [[saved(result, f"latent_layers/{name}")]], width=340),
        ]
        return Drawing(info, groups)

    return draw


PAN: dict[str, Any] = {"shift_x": 0.2, "shift_y": 0.0, "zoom": 1.0}
ZOOM: dict[str, Any] = {"zoom": 0.75}

GRAPHS = {
    "try_me_remove_object": try_me_remove_object,
    "remove_object": remove_object,
    "try_me_zoom_out": canvas_graph("Try me: zoom out", True, "zoomed", seed=7, **ZOOM),
    "zoom_out": canvas_graph("Zoom out", False, "zoomed", **ZOOM),
    "try_me_pan": canvas_graph("Try me: Pan", True, "panned", seed=19, **PAN),
    "pan": canvas_graph("Pan", False, "panned", **PAN),
}
