"""Pan and zoom-out of toy scenes against the same world seen through another window."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attention.host import apply_keep_source, apply_key_mask
from ..fusion.canvas import pan_and_zoom, window_of
from ..inversion.trajectory import Trajectory
from ..masks.grid import cover, dilate
from ..masks.soft import soft_mask
from .host import image_tensor
from .measure import psnr
from .pipeline import STEPS, Toy, batches
from .scenes import Scene, Window, random_scene

TASKS = ("pan", "zoom", "zoom_far")
SHIFT = 0.2
ZOOMS = {"zoom": 1 / 1.25, "zoom_far": 1 / 1.5}
GRAPH = Path(__file__).parent.parent / "workflows" / "api" / "pan.json"
DILATION = 30 / 1024  # of the width: DesignEdit's for pan and zoom


@dataclass(frozen=True)
class CanvasSettings:
    """How the exposed area is filled."""

    fill: str = "original"
    mode: str = "multiply"
    guidance: float = 7.5
    guidance_end: float | None = None
    end: float = 0.8
    fresh: bool = False  # start from fresh noise in the exposed area
    ignore_objects: bool = False
    dilation: float = DILATION


@dataclass(frozen=True)
class View:
    """A scene, and its world seen through another window."""

    scene: Scene
    shift: tuple[float, float]
    zoom: float

    def canvas(self, fill: str) -> tuple[Tensor, Tensor]:
        """IMAGE and MASK of Pan And Zoom."""
        return pan_and_zoom(image_tensor(self.scene.image()), *self.shift, self.zoom, fill=fill)

    @property
    def truth(self) -> Tensor:
        """IMAGE (1, H, W, 3) of what should be seen."""
        x, y, zoom = window_of(self.scene.width, self.scene.height, *self.shift, self.zoom)
        return image_tensor(self.scene.image(Window(x, y, zoom)))


def view(seed: int, task: str, size: tuple[int, int]) -> View:
    """A scene whose objects all lie inside the first view, panned by 0.2 in some direction, or zoomed."""
    rng = np.random.default_rng([7, seed])
    scene = random_scene(seed, *size, objects=(1, 3))
    if task == "pan":
        angle = rng.integers(8) * np.pi / 4
        return View(scene, (float(SHIFT * np.round(np.cos(angle))), float(SHIFT * np.round(np.sin(angle)))), 1.0)
    return View(scene, (0.0, 0.0), ZOOMS[task])


def inverted(toy: Toy, views: Sequence[View], fill: str, steps: int = STEPS) -> Trajectory:
    """Canvases with their exposed area filled in some way, inverted."""
    return toy.invert(toy.encode(torch.cat([v.canvas(fill)[0] for v in views])), steps)


def extend(
    toy: Toy, views: Sequence[View], settings: CanvasSettings, trajectory: Trajectory | None = None, seed: int = 0
) -> Tensor:
    """The pack's way: Pan And Zoom, then a removal of the exposed area. IMAGEs (B, H, W, 3).

    `trajectory` is what `inverted` gives for the settings' fill; made when it is missing.
    """
    canvases, exposed = (torch.cat(parts) for parts in zip(*(v.canvas(settings.fill) for v in views), strict=True))
    holes = dilate(exposed, settings.dilation)
    trajectory = inverted(toy, views, settings.fill) if trajectory is None else trajectory
    start = trajectory
    if settings.fresh:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(trajectory.shape, generator=generator) * trajectory.sigmas[0]
        where = cover(holes, *trajectory.size)[:, None]
        start = trajectory.continued(trajectory.sigmas[:1], [torch.lerp(trajectory.noisiest, noise, where)])
    ignored = None
    if settings.ignore_objects:
        parts = []
        for v in views:
            x, y, zoom = window_of(v.scene.width, v.scene.height, *v.shift, v.zoom)
            window = Window(x, y, zoom)
            parts.append(np.max([v.scene.full_mask(i, window) for i in range(len(v.scene.objects))], axis=0))
        ignored = torch.from_numpy(np.stack(parts))
    masked = apply_key_mask(
        toy.model, holes, mode=settings.mode, guidance=settings.guidance, guidance_end=settings.guidance_end,
        end=settings.end, ignore_mask=ignored,
    )  # fmt: skip
    latents = toy.run(apply_keep_source(masked, trajectory, holes), start, trajectory.sigmas)[1]
    return put_in(canvases, toy.decode(latents), exposed)


def put_in(canvases: Tensor, drawn: Tensor, exposed: Tensor) -> Tensor:
    """What was drawn where it is exposed, fading into the canvas around it: IMAGEs (B, H, W, 3)."""
    given = _given("LatentLayersSoftMask")
    faded = soft_mask(exposed, radius=given["radius"], blur_sigma=given["blur"])
    return torch.lerp(canvases, drawn, faded[..., None])


def outpaint(toy: Toy, views: Sequence[View], seeds: Sequence[int], steps: int = STEPS) -> Tensor:
    """The host's way: pad with grey (as ImagePadForOutpaint does), then inpaint from full noise.

    What is drawn anew is the padding, grown as for the pack's own way, and put in as there.
    """
    canvases, exposed = (torch.cat(parts) for parts in zip(*(v.canvas("black") for v in views), strict=True))
    padded, holes = canvases + 0.5 * exposed[..., None], dilate(exposed, DILATION)
    return put_in(canvases, toy.decode(toy.inpaint(toy.encode(padded), holes, seeds, steps)), exposed)


def seam(pictures: Tensor, exposed: Tensor) -> list[float]:
    """Of each picture, the mean absolute step of colour across the most visible line around what is exposed.

    Lines run at every distance from the border of what is exposed (B, H, W) to that of what is drawn anew.
    """
    reach = round(DILATION * exposed.shape[-1])
    around = [exposed, *(dilate(exposed, float(distance)) for distance in range(1, reach + 1))]
    return [max(_step(picture, line) for line in lines) for picture, *lines in zip(pictures, *around, strict=True)]


def _step(picture: Tensor, mask: Tensor) -> float:
    """Mean absolute step of colour across the border of a mask."""
    steps = []
    for axis in (0, 1):
        border = mask.diff(dim=axis).abs() > 0
        steps.append(picture.diff(dim=axis).abs().mean(2)[border])
    return float(torch.cat(steps).mean())


def shipped() -> CanvasSettings:
    """What the shipped graphs of pan and zoom-out do, read from one of them."""
    given = _given("LatentLayersPanAndZoom", "LatentLayersKeyMaskedSelfAttention")
    return CanvasSettings(given["fill"], given["mode"], given["guidance"], end=given["end_percent"])


def _given(*nodes: str) -> dict[str, Any]:
    """Inputs of the shipped graph's nodes of these types."""
    given: dict[str, Any] = {}
    for node in json.loads(GRAPH.read_text(encoding="utf-8")).values():
        if node["class_type"] in nodes:
            given |= node["inputs"]
    return given


def run_canvas(toy: Toy, seeds: range, task: str, size: tuple[int, int]) -> dict:
    """Mean figures over the seeds' scenes; PSNR in dB over the exposed area."""
    columns: dict[str, list[float]] = {}
    for part in batches(list(seeds)):
        views = [view(seed, task, size) for seed in part]
        truths = torch.cat([v.truth for v in views])
        reachable = toy.decode(toy.encode(truths))
        exposed = torch.cat([v.canvas("black")[1] for v in views])
        before = toy.samples
        ours = extend(toy, views, shipped())
        evaluations = (toy.samples - before) / len(part)
        host = outpaint(toy, views, part)
        for name, pictures in (("psnr_exposed", ours), ("psnr_host_outpaint", host)):
            values = [
                psnr(p, t, m) for p, t, m in zip(pictures.numpy(), reachable.numpy(), exposed.numpy(), strict=True)
            ]
            columns.setdefault(name, []).extend(values)
        for name, pictures in (("seam", ours), ("seam_host", host), ("seam_truth", truths)):
            columns.setdefault(name, []).extend(seam(pictures, exposed))
        columns.setdefault("evaluations_first", []).append(evaluations)
    return {name: round(float(np.mean(values)), 4 if "seam" in name else 3) for name, values in columns.items()}


def table_canvas(tasks: dict[str, dict]) -> list[str]:
    """The figures for people."""
    seeds = next(iter(tasks.values()))["seeds"]
    lines = [
        f"Pan and zoom-out, seeds {seeds}; PSNR over the exposed area; seam: mean step of colour across the most "
        "visible line between what is exposed and what is drawn anew around it",
        "",
        "| task | host's outpainting | Latent Layers | seam: host | seam: ours | seam: truth | evaluations |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, f in tasks.items():
        lines.append(
            f"| {name} | {f['psnr_host_outpaint']:.1f} dB | {f['psnr_exposed']:.1f} dB | {f['seam_host']:.3f} | "
            f"{f['seam']:.3f} | {f['seam_truth']:.3f} | {f['evaluations_first']:.0f} |"
        )
    return lines
