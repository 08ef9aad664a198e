"""Pan and zoom-out on development scenes: every way to start and to guide, the paper's among them."""

from dataclasses import replace
from itertools import product

import numpy as np
import torch

from .bench_canvas import CanvasSettings, extend, inverted, outpaint, seam, shipped, view
from .measure import psnr
from .pipeline import Toy, batches, mean

STEPS = 20  # enough to tell the ways apart
PAPER = CanvasSettings(fill="original", guidance=7.5)
SETTINGS = {
    "paper: original canvas, g 7.5": PAPER,
    "black canvas": replace(PAPER, fill="black"),
    "white canvas": replace(PAPER, fill="white"),
    "mirror": replace(PAPER, fill="mirror"),
    "edge": replace(PAPER, fill="edge"),
    "edge, g 3": replace(PAPER, fill="edge", guidance=3.0),
    "edge, g 1": replace(PAPER, fill="edge", guidance=1.0),
    "edge, g 7.5 to 1": replace(PAPER, fill="edge", guidance_end=1.0),
    "edge, g 3, exclude": replace(PAPER, fill="edge", guidance=3.0, mode="exclude"),
    "edge, g 1, exclude": replace(PAPER, fill="edge", guidance=1.0, mode="exclude"),
    "edge, g 1, exclude, objects ignored": replace(
        PAPER, fill="edge", guidance=1.0, mode="exclude", ignore_objects=True
    ),
    "edge, g 3, objects ignored": replace(PAPER, fill="edge", guidance=3.0, ignore_objects=True),
    "edge, g 3, fresh noise": replace(PAPER, fill="edge", guidance=3.0, fresh=True),
    "mirror, g 3, fresh noise": replace(PAPER, fill="mirror", guidance=3.0, fresh=True),
}


def run(seeds: range) -> dict:
    """Mean PSNR over the exposed area (dB) and seam around it, for pan 0.2 and zoom 1/1.25."""
    toy = Toy()
    ways = {"host's outpainting": None, **SETTINGS, "shipped defaults": shipped()}
    columns: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    with torch.inference_mode():
        for task, part in product(("pan", "zoom"), batches(list(seeds))):
            views = [view(seed, task, (256, 256)) for seed in part]
            exposed = torch.cat([v.canvas("black")[1] for v in views])
            reachable = toy.decode(toy.encode(torch.cat([v.truth for v in views])))
            fills = {settings.fill for settings in ways.values() if settings is not None}
            trajectories = {fill: inverted(toy, views, fill, STEPS) for fill in sorted(fills)}
            for name, settings in ways.items():
                if settings is None:
                    pictures = outpaint(toy, views, part, STEPS)
                else:
                    pictures = extend(toy, views, settings, trajectories[settings.fill])
                triples = zip(pictures.numpy(), reachable.numpy(), exposed.numpy(), strict=True)
                columns[name].setdefault(f"psnr_{task}", []).extend(psnr(*triple) for triple in triples)
                columns[name].setdefault(f"seam_{task}", []).extend(seam(pictures, exposed))
            print(task, part[-1], {name: mean(found[f"psnr_{task}"]) for name, found in columns.items()}, flush=True)
    rows = [
        {"settings": name, **{key: round(float(np.mean(values)), 4) for key, values in found.items()}}
        for name, found in columns.items()
    ]
    return {"seeds": f"{seeds[0]}-{seeds[-1]}", "steps": STEPS, "rows": rows}


def table(figures: dict) -> str:
    """The figures for people."""
    lines = [
        f"Pan by 0.2 and zoom to 1/1.25, development seeds {figures['seeds']}, {figures['steps']} steps: PSNR over the "
        "exposed area, seam",
        "",
        "| | pan | seam | zoom | seam |",
        "|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        cells = [f"{row['psnr_pan']:.1f} dB", f"{row['seam_pan']:.4f}"]
        cells += [f"{row['psnr_zoom']:.1f} dB", f"{row['seam_zoom']:.4f}"]
        lines.append(f"| {row['settings']} | {' | '.join(cells)} |")
    return "\n".join(lines)
