"""Layered edits of toy scenes against the scene drawn again, beside what the host alone can do."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..fusion.fuse import fuse
from ..fusion.geometry import layer_affine, shifted, split_move, transform_layer, warp
from ..fusion.host import EditSettings
from ..fusion.layered import Layout, lay_out
from ..inversion.trajectory import Trajectory
from ..nodes.layered import LayeredEdit
from .bench_canvas import TASKS as CANVAS_TASKS
from .bench_canvas import run_canvas, table_canvas
from .layer_edits import TASKS, SceneEdit
from .layer_run import LayeredRun
from .measure import colour_centroid, psnr
from .pipeline import Toy, batches, mean

ALL_TASKS = (*TASKS, *CANVAS_TASKS)
NEAR = 6  # pixels around an object within which it is looked for by its colour
HALF_PIXEL = 0.5


def node_settings(**changes: Any) -> EditSettings:
    """What Layered Edit does when it is dropped into a graph, with changes."""
    inputs: list[Any] = LayeredEdit.define_schema().inputs
    given = {i.id: i.default for i in inputs if hasattr(i, "default")}
    names = (
        "steps",
        "scheduler",
        "sampler",
        "harmonize",
        "mode",
        "guidance",
        "refinements",
        "ignore_layers",
        "forget_lookalikes",
        "keep_pixels",
    )
    return replace(EditSettings(**{name: given[name] for name in names}), **changes)


def run(seeds: range, task: str | None = None, size: tuple[int, int] = (256, 256)) -> dict:
    """Figures of one task, or of all; PSNR in dB over old and new places of the edited objects."""
    if task is None:
        return {"seeds": f"{seeds[0]}-{seeds[-1]}", "tasks": {name: run(seeds, name, size) for name in ALL_TASKS}}
    if task not in ALL_TASKS:
        raise SystemExit(f"bench layers: there is no task {task!r}; choose one of {', '.join(ALL_TASKS)}")
    toy = Toy()
    with torch.inference_mode():
        figures = run_canvas(toy, seeds, task, size) if task in CANVAS_TASKS else _layers(toy, seeds, task, size)
    return {"task": task, "seeds": f"{seeds[0]}-{seeds[-1]}", **figures}


def _layers(toy: Toy, seeds: range, task: str, size: tuple[int, int]) -> dict:
    columns: dict[str, list[float]] = {}
    distances: list[float] = []
    blended_distances: list[float] = []
    for part in batches(list(seeds)):
        edits = [TASKS[task](seed, size) for seed in part]
        layouts = [lay_out(edit.source_image, edit.layers) for edit in edits]
        truths = torch.cat([edit.truth_image for edit in edits])
        reachable = toy.decode(toy.encode(truths))
        areas = torch.stack([edit.area for edit in edits])
        before = toy.samples
        done = LayeredRun.start(toy, layouts, node_settings())
        blended = done.blended(layouts)
        pictures = done.composite(layouts, done.detailed(layouts, blended))
        without = done.composite(layouts, blended)
        _add(columns, "evaluations_first", [(toy.samples - before) / len(part)])
        _add(columns, "psnr_edit", _psnrs(pictures, reachable, areas))
        _add(columns, "psnr_edit_raw", _psnrs(pictures, truths, areas))
        _add(columns, "psnr_edit_blended", _psnrs(without, reachable, areas))
        _add(columns, "psnr_edit_blended_raw", _psnrs(without, truths, areas))
        _add(columns, "psnr_source", _psnrs(torch.cat([e.source_image for e in edits]), reachable, areas))
        outside = torch.cat([layout.edited for layout in layouts]) == 0
        changes = (pictures - torch.cat([layout.source for layout in layouts])).abs().amax(3)
        _add(columns, "diff_outside", [float(changes[outside].max())])
        if task == "move":
            distances += _distances(edits, pictures)
            blended_distances += _distances(edits, without)
            _again(toy, columns, done, edits)
            pasted = _host_paste(toy, edits, layouts, part)
            _add(columns, "psnr_host_paste", _psnrs(pasted, reachable, areas))
            _add(columns, "psnr_host_paste_raw", _psnrs(pasted, truths, areas))
        if task in ("resize", "rotate"):
            latent = _latent_level(toy, done, edits, layouts)
            _add(columns, "psnr_latent_level", _psnrs(latent, reachable, areas))
        if task == "occlusion":
            hidden = torch.stack([edit.hidden for edit in edits if edit.hidden is not None])
            _add(columns, "psnr_hidden", _psnrs(pictures, reachable, hidden))
            single = done.finish(layouts, complete=False)
            _add(columns, "psnr_hidden_single", _psnrs(single, reachable, hidden))
    figures = {name: mean(values) for name, values in columns.items()}
    figures["diff_outside"] = max(columns["diff_outside"])
    if distances:
        figures["within_half_px"] = mean(d <= HALF_PIXEL for d in distances)
        figures["within_half_px_blended"] = mean(d <= HALF_PIXEL for d in blended_distances)
        figures["distance_px_median"] = round(float(np.median(distances)), 3)
        figures["trajectory_mib_per_picture"] = round(done.source.nbytes / done.source.batch / 2**20, 2)
    return figures


def _add(columns: dict[str, list[float]], name: str, values: Sequence[float]) -> None:
    columns.setdefault(name, []).extend(values)


def _psnrs(pictures: Tensor, truths: Tensor, areas: Tensor) -> list[float]:
    return [psnr(p, t, a) for p, t, a in zip(pictures.numpy(), truths.numpy(), areas.numpy(), strict=True)]


def _distances(edits: Sequence[SceneEdit], pictures: Tensor) -> list[float]:
    """How far, in pixels, each moved object lies from where the truth has it, found by its colour."""
    result = []
    for edit, picture in zip(edits, pictures.numpy(), strict=True):
        index = edit.edited[0][1]
        assert index is not None
        near = ndimage.binary_dilation(edit.truth.full_mask(index) > 0, iterations=NEAR)
        colour = edit.truth.objects[index].colour
        here = colour_centroid(picture, colour, near)
        there = colour_centroid(edit.truth_image[0].numpy(), colour, near)
        result.append(float("inf") if here is None or there is None else float(np.hypot(*np.subtract(here, there))))
    return result


def _again(toy: Toy, columns: dict[str, list[float]], done: LayeredRun, edits: Sequence[SceneEdit]) -> None:
    """What another move costs after the first: by whole latent cells, and with a remainder."""
    for name, snap in (("evaluations_again", True), ("evaluations_again_subcell", False)):
        layouts = []
        for edit in edits:
            (layer,) = edit.layers
            cells, rest = split_move(layer.moves[0])
            move = (8.0 * cells[0], 8.0 * cells[1]) if snap else layer.moves[0]
            layouts.append(lay_out(edit.source_image, [replace(layer, moves=(move,))]))
        before = toy.samples
        done.finish(layouts)
        _add(columns, name, [(toy.samples - before) / len(edits)])


def _host_paste(toy: Toy, edits: Sequence[SceneEdit], layouts: Sequence[Layout], seeds: Sequence[int]) -> Tensor:
    """Cut and paste in pixels, then the host's inpainting of the hole: IMAGEs (B, H, W, 3)."""
    pictures, holes = [], []
    for edit, layout in zip(edits, layouts, strict=True):
        picture, hole = layout.source, layout.hole
        assert hole is not None
        for layer in edit.layers:
            for move in layer.moves:
                placed = transform_layer(layout.source, layer, move)
                right, down = (8 * cells for cells in placed.cells)
                alpha = shifted(placed.mask, right, down)
                picture = torch.lerp(picture, shifted(placed.picture[0].movedim(2, 0), right, down).movedim(0, 2)[None],
                                     alpha[..., None])  # fmt: skip
                hole = hole * (alpha == 0)
        pictures.append(picture)
        holes.append(hole)
    images, masks = torch.cat(pictures), torch.cat(holes)
    inpainted = toy.decode(toy.inpaint(toy.encode(images), masks, seeds))
    return torch.lerp(images, inpainted, masks[..., None])


def _latent_level(toy: Toy, done: LayeredRun, edits: Sequence[SceneEdit], layouts: Sequence[Layout]) -> Tensor:
    """The paper's ablation: the layer is resampled in the latent, at the fusion's σ, not in the picture."""
    fusion = float(done.sigmas[done.settings.filled])
    results = []
    for number, (edit, layout) in enumerate(zip(edits, layouts, strict=True)):
        (layer,) = edit.layers
        height, width = layout.source.shape[1:3]
        affine = layer_affine(layer, (height, width))
        small = replace(affine, offset=affine.offset / 8)
        x = done.source.at(fusion)[number].movedim(0, 2)
        own = warp(x, small, height // 8, width // 8, order=1).movedim(2, 0)[None]
        canvas = Trajectory([fusion], [done.canvas.at(fusion)[number : number + 1]], done.source.family)
        mask = layout.placed[0].on_canvas.mask
        moves = layout.placed[0].moves
        fused = fuse(
            canvas, Trajectory([fusion], [shifted(own, *(-c for c in moves[0]))], done.source.family), mask, moves
        )
        results.append(fused[0].latents[0])
    edited = torch.cat([layout.edited for layout in layouts])
    from ..attention.host import apply_keep_source

    start = Trajectory([fusion], [torch.cat(results)], done.source.family, done.source.latent_format)
    sigmas = done.sigmas[done.settings.filled :]
    latents = toy.run(apply_keep_source(toy.model, done.source, edited), start, sigmas)[1]
    sources = torch.cat([layout.source for layout in layouts])
    return torch.lerp(sources, toy.decode(latents), edited[..., None])


def table(figures: dict) -> str:
    """The figures for people: one table for layers, one for canvases."""
    tasks = figures["tasks"] if "tasks" in figures else {figures["task"]: figures}
    lines = []
    layered = {name: f for name, f in tasks.items() if name not in CANVAS_TASKS}
    if layered:
        lines += [
            f"Layered edits, seeds {figures['seeds']}; PSNR over the old and new places of the edited objects",
            "",
            "| task | untouched | Latent Layers | against the raw truth | evaluations | also |",
            "|---|---|---|---|---|---|",
        ]
        for name, f in layered.items():
            row = [f"{f[key]:.1f} dB" for key in ("psnr_source", "psnr_edit", "psnr_edit_raw")]
            lines.append(f"| {name} | {' | '.join(row)} | {f['evaluations_first']:.0f} | {_also(f)} |")
        largest = max(f["diff_outside"] for f in layered.values())
        lines += ["", f"Largest difference outside the edited area: {largest:g}"]
    canvases = {name: f for name, f in tasks.items() if name in CANVAS_TASKS}
    return "\n".join(lines + ([""] if lines and canvases else []) + (table_canvas(canvases) if canvases else []))


def _also(figures: dict) -> str:
    texts = {
        "within_half_px": "within half a pixel {:.0%}",
        "psnr_edit_blended": "without keeping the layers' own pixels {:.1f} dB",
        "psnr_edit_blended_raw": "against the raw truth {:.1f} dB",
        "within_half_px_blended": "of these within half a pixel {:.0%}",
        "evaluations_again": "moved again {:.0f} evaluations",
        "evaluations_again_subcell": "by parts of a cell {:.0f}",
        "psnr_host_paste": "cut, paste and host's inpainting {:.1f} dB",
        "psnr_host_paste_raw": "against the raw truth {:.1f} dB",
        "psnr_latent_level": "resampled in the latent {:.1f} dB",
        "psnr_hidden": "hidden part {:.1f} dB",
        "psnr_hidden_single": "without the second pass {:.1f} dB",
    }
    return ", ".join(text.format(figures[key]) for key, text in texts.items() if key in figures)
