"""The pictures of the documentation: removals and layered edits beside the truth, samples of the toy model."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..fusion.layered import lay_out
from ..fusion.preview import layout_preview
from .bench_canvas import extend, shipped, view
from .bench_layers import node_settings
from .bench_model import generate
from .bench_removal import node_defaults
from .host import image_tensor
from .layer_edits import TASKS
from .layer_run import LayeredRun
from .measure import follows_caption
from .pipeline import Toy
from .removal import composite, removal_set, remove
from .scenes import random_scene
from .soft_pictures import soft_pictures

DOCS = Path(__file__).parent.parent / "docs"
HELP = DOCS.parent / "web" / "docs" / "LatentLayersWordTimings"  # where the help page finds its picture
COLUMNS = 8


def run(seeds: range) -> dict:
    """Write docs/remove.png of the first 8 seeds, samples.png of the first 24, layers.png of one each.

    And web/docs/LatentLayersWordTimings/soft_edit.png, which does not depend on them.
    """
    toy = Toy()
    DOCS.mkdir(exist_ok=True)
    with torch.inference_mode():
        data = removal_set(toy, list(seeds[:COLUMNS]))
        marked = data.sources * (1 - 0.6 * data.masks[..., None]) + 0.6 * data.masks[..., None]
        ours = remove(toy, data, **node_defaults())
        host = composite(data, toy.decode(toy.inpaint(data.latents, data.masks, seeds[:COLUMNS])))
        _save([data.sources, marked, ours, host, data.truths], DOCS / "remove.png")
        scenes = [random_scene(seed) for seed in seeds[: 3 * COLUMNS]]
        samples = generate(toy, [scene.caption() for scene in scenes], list(seeds[: len(scenes)]))
        _save(list(samples.split(COLUMNS)), DOCS / "samples.png")
        _save(_layers(toy, seeds), DOCS / "layers.png")
        soft_pictures(toy).save(HELP / "soft_edit.png", optimize=True)
    followed = [follows_caption(scene, sample) for scene, sample in zip(scenes, samples.numpy(), strict=True)]
    return {
        "remove": "rows: source, mask, Latent Layers, the host's inpainting, truth",
        "samples": [{"caption": s.caption(), "followed": f} for s, f in zip(scenes, followed, strict=True)],
    }


def _layers(toy: Toy, seeds: range) -> list[Tensor]:
    """Source, plan, result and truth of one edit of each kind, a pan and a zoom."""
    columns = []
    for task, seed in zip(TASKS, seeds, strict=False):
        edit = TASKS[task](seed, (256, 256))
        layout = lay_out(edit.source_image, edit.layers)
        result = LayeredRun.start(toy, [layout], node_settings()).finish([layout])
        plan = layout_preview(edit.source_image, edit.layers)
        columns.append(torch.cat([edit.source_image, plan, result, edit.truth_image]))
    for task in ("pan", "zoom"):
        one = view(seeds[-1], task, (256, 256))
        image, exposed = one.canvas("black")
        marked = image + 0.5 * exposed[..., None]
        columns.append(torch.cat([image_tensor(one.scene.image()), marked, extend(toy, [one], shipped()), one.truth]))
    return list(torch.stack(columns, 1))


def _save(rows: list[Tensor], path: Path) -> None:
    """Rows of pictures, at half size, with a white line between."""
    lines = [torch.cat([torch.nn.functional.pad(p, (0, 0, 2, 2, 2, 2), value=1.0) for p in row], 1) for row in rows]
    sheet = Image.fromarray((torch.cat(lines).clamp(0, 1).numpy() * 255 + 0.5).astype("uint8"))
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(path, optimize=True)


def table(figures: dict) -> str:
    """The captions of docs/samples.png, row by row."""
    lines = [f"docs/remove.png: {figures['remove']}", "docs/samples.png, row by row (x: not as the caption says):"]
    return "\n".join(lines + [f"{' ' if s['followed'] else 'x'} {s['caption']}" for s in figures["samples"]])
