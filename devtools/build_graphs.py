"""Write the example graphs, each for the page (workflows/) and for the API (workflows/api/).

    python devtools/build_graphs.py               the graphs
    python devtools/build_graphs.py --thumbnails  and run the toy graph for their pictures

Needs the environment that `python dev.py` sets up.
"""

import argparse
import io
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from draw_graphs import Drawing, Group, Info, Node, Port
from host_client import Client
from host_server import HostServer, temporary_server
from pack import ROOT
from PIL import Image

HERE = ROOT / "workflows"
STEPS = 50
SCHEDULER = "normal"
PREVIEW = 290  # height of a node that shows a picture

BLUE, GREEN, YELLOW, PURPLE, RED, GREY = "#3f789e", "#88aa66", "#b58b2a", "#8a5fa8", "#a1566a", "#666666"
KEY_NODE = "#233"  # of the pack's own nodes, which do the work

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
**Keep Source** holds everything outside the mask in place.

**Change:** *guidance* up to 10 when the object shines through, down to 3 when the filling looks overdone. \
Paint other objects into *ignore_mask* when they are copied into the hole."""

SAMPLE = """## Draw it again

From the noise back to a picture, now without the object.

**Change:** nothing: *euler* follows the way back most closely."""

FINISH_TOY = """## Put it into the picture

Only the masked area is taken from the new picture. **Every pixel outside the mask stays exactly as it was.**

The result is saved to ComfyUI's output folder."""

FINISH_REAL = (
    FINISH_TOY
    + """

Not what you wanted? A larger mask helps most, then *guidance*, then *ignore_mask*."""
)


def remove_object_groups(model: Port, clip: Port, vae: Port, image: Port, mask: Port) -> tuple[list[Group], Port]:
    """From mask to sampled latent, decoded: groups, and the result's port."""
    invert_text = Node("CLIPTextEncode", "Empty prompt", height=110, inputs={"clip": clip, "text": ""})
    encoded = Node("VAEEncode", inputs={"pixels": image, "vae": vae})
    schedule = Node("BasicScheduler", inputs={"model": model, "scheduler": SCHEDULER, "steps": STEPS, "denoise": 1.0})
    inverted = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model, "conditioning": invert_text[0], "latent": encoded[0], "sigmas": schedule[0]},
    )
    hidden = Node("LatentLayersKeyMaskedSelfAttention", colour=KEY_NODE, inputs={"model": model, "mask": mask})
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
            "destination": image, "source": decoded[0], "x": 0, "y": 0, "resize_source": False, "mask": mask,
        },
    )  # fmt: skip
    groups = [
        Group("3  Noise", YELLOW, INVERT, 190, [[invert_text, encoded, schedule, inverted]]),
        Group("4  Edit", PURPLE, FORGET, 230, [[hidden, kept, guider]], width=340),
        Group("5  Sample", RED, SAMPLE, 130, [[sampler, sampled, decoded, result]]),
    ]
    return groups, result[0]


def preview(title: str, image: Port, width_to_height: int = PREVIEW) -> Node:
    """A node that shows a picture."""
    return Node("PreviewImage", title, width_to_height, {"images": image})


def saved(image: Port, prefix: str) -> Node:
    """The result, shown and saved."""
    return Node("SaveImage", "Result", PREVIEW + 40, {"images": image, "filename_prefix": prefix})


def grown_mask(mask: Port, pixels: int) -> Node:
    """The paper grows masks by 20 pixels at 1024."""
    return Node("GrowMask", inputs={"mask": mask, "expand": pixels, "tapered_corners": False})


def try_me_remove_object(info: Info) -> Drawing:
    """The toy model removes an object from a toy scene."""
    model = Node("LatentLayersToyModel", colour=KEY_NODE)
    scene = Node("LatentLayersToyScene", colour=KEY_NODE)
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
    checkpoint = Node("CheckpointLoaderSimple", inputs={"ckpt_name": "sd_xl_base_1.0.safetensors"})
    loaded = Node("LoadImage", height=360, inputs={"image": "example.png"})
    scaled = Node(
        "ImageScaleToTotalPixels",
        "Scale to the model's size",
        inputs={"image": loaded[0], "upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 8},
    )
    resized = Node(
        "ResizeImageMaskNode",
        "Scale the mask likewise",
        inputs={
            "input": loaded[1], "resize_type": "match size", "resize_type.match": scaled[0],
            "resize_type.crop": "disabled", "scale_method": "bilinear",
        },
    )  # fmt: skip
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


GRAPHS = {"try_me_remove_object": try_me_remove_object, "remove_object": remove_object}


def files(info: Info) -> dict[Path, str]:
    """Every graph file and what is in it."""
    written = {}
    for name, graph in GRAPHS.items():
        drawing = graph(info)
        page = {**drawing.page(), "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"latent-layers/{name}"))}
        written[HERE / f"{name}.json"] = as_text(page)
        written[HERE / "api" / f"{name}.json"] = as_text(drawing.api())
    return written


def as_text(graph: dict[str, Any]) -> str:
    """JSON as it is kept in the files."""
    return json.dumps(graph, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the example graphs.")
    parser.add_argument("--thumbnails", action="store_true", help="run the toy graph for the pictures too")
    options = parser.parse_args(arguments)
    with temporary_server("build") as server:
        for path, text in files(Client(server.url).get("/object_info")).items():
            path.write_text(text, encoding="utf-8")
        if options.thumbnails:
            write_thumbnails(server)


def write_thumbnails(server: HostServer) -> None:
    """Before and after, side by side; a real checkpoint's graph is shown with toy pictures too."""
    client = Client(server.url)
    graph = json.loads((HERE / "api" / "try_me_remove_object.json").read_text(encoding="utf-8"))
    outputs = client.run(graph).outputs
    titles = {node["_meta"]["title"]: key for key, node in graph.items()}
    pictures = [
        Image.open(io.BytesIO(client.image(outputs[titles[title]]["images"][0]))).convert("RGB")
        for title in ("Source", "Result")
    ]
    sheet = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
    sheet.paste(pictures[0], (0, 0))
    sheet.paste(pictures[1], (pictures[0].width, 0))
    for name in GRAPHS:
        sheet.save(HERE / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main(sys.argv[1:])
