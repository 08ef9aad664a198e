"""Layered edits as graphs of the pack's and the host's nodes, so that the host caches every step."""

from dataclasses import dataclass, replace
from typing import Any

import comfy.patcher_extension
import comfy.utils
import latent_preview
import torch
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ..inversion.trajectory import Trajectory
from ..masks.lookalikes import LIKENESS
from .geometry import CELL
from .layered import Content, Layout, digest

_PROGRESS_KEY = "latent_layers_progress"

Link = Any  # [node id, output number]


@dataclass(frozen=True)
class EditSettings:
    """How a layered edit is sampled; see the nodes that the numbers go to."""

    steps: int = 50
    scheduler: str = "normal"
    sampler: str = "euler"
    harmonize: float = 0.2  # share of the steps, the last ones, in which the fused layers blend
    mode: str = "multiply"
    guidance: float = 7.5
    blocks: str = "all"
    refinements: int = 0
    ignore_layers: bool = False  # hide what the other layers show from the areas that are filled
    forget_lookalikes: bool = True  # while places are filled, what looks like the layers that leave them
    keep_pixels: bool = True  # layers show their own pixels in the end, their surroundings lose no detail to the VAE

    @property
    def filled(self) -> int:
        """K, the number of steps before the fusion."""
        return max(1, min(self.steps - 1, round(self.steps * (1 - self.harmonize))))


@dataclass(frozen=True)
class Stage:
    """A part of a long edit for a progress bar over the whole: it begins at `done` of `total` steps."""

    done: int
    total: int


class EditGraph:
    """Builds the nodes of one layered edit."""

    def __init__(self, layout: Layout, settings: EditSettings, model: Link, vae: Link, conditioning: Link) -> None:
        """`model`, `vae` and `conditioning` are links to outputs of the graph that is expanded."""
        self.layout, self.settings = layout, settings
        self.vae, self.conditioning, self.plain_model = vae, conditioning, model
        self.graph = GraphBuilder()
        self.stages: list[tuple[Any, int]] = []

    def build(self, artifact_mask: Tensor | None, full_source: Tensor) -> tuple[Link, dict]:
        """Link to the edited IMAGE, and the nodes."""
        layout, settings = self.layout, self.settings
        schedule = self.graph.node(
            "BasicScheduler", model=self.plain_model, scheduler=settings.scheduler, steps=settings.steps, denoise=1.0
        ).out(0)
        split = self.graph.node("SplitSigmas", sigmas=schedule, step=settings.filled)
        high, low = split.out(0), split.out(1)
        fills = layout.hole is not None or layout.occluded is not None
        whole = (schedule, settings.steps) if fills else (low, settings.steps - settings.filled)
        encoded = self.graph.node("VAEEncode", pixels=self._value(layout.source), vae=self.vae).out(0)
        key = f"{digest(layout.source)} {settings.scheduler} {settings.steps} {settings.refinements} {whole[1]}"
        source = self._remembered(f"inverted {key}", self._invert(encoded, *whole))
        canvas, behind = source, self._value(layout.source)
        if layout.hole is not None:
            ignored = self._ignored(layout.hole)
            artifacts = None if artifact_mask is None else self._value(artifact_mask)
            if settings.forget_lookalikes:
                artifacts = self._lookalikes(encoded, layout.hole, artifacts)
            filled = self._fill(canvas, source, layout.hole, high, artifacts, ignored)
            masks = [mask is not None and digest(mask) for mask in (layout.hole, ignored, artifact_mask)]
            key = f"filled {key} {replace(settings, keep_pixels=True)} {masks}"
            canvas = self._remembered(key, filled)
            behind = self._composite(behind, self._decoded(self._predicted(canvas)), layout.hole)
        laid = placed = None
        if layout.placed:
            inverted = (low, settings.steps - settings.filled) if layout.occluded is None else whole
            laid = self._laid(behind)
            placed = self.graph.node("VAEEncode", pixels=laid, vae=self.vae).out(0)
            canvas = self._fuse(canvas, source, placed, inverted)
        if layout.occluded is not None:
            artifacts = None if artifact_mask is None else self._value(artifact_mask)
            canvas = self._fill(canvas, canvas, layout.occluded, high, artifacts, None)
        model = self._keep(self._model(settings.steps - settings.filled), source, layout.edited)
        latent = self._sample(model, low, canvas).out(1)
        decoded = self._decoded(latent)
        if settings.keep_pixels and layout.placed:
            detailed = self.graph.node(
                "LatentLayersDetail", decoded=decoded, laid=laid, round_trip=self._decoded(placed)
            ).out(0)
            # what is completed is not in the picture that was laid out
            if layout.completed is not None:
                detailed = self._composite(detailed, decoded, layout.completed)
            own, kept = layout.own_pixels()
            decoded = self._composite(detailed, self._value(own), kept)
        final = self._composite(self._value(full_source), decoded, layout.edited)
        self._share_progress()
        return final, self.graph.finalize()

    def _value(self, value: Any) -> Link:
        return self.graph.node("LatentLayersValue", content=Content(value)).out(0)

    def _remembered(self, key: str, value: Link) -> Link:
        return self.graph.node(
            "LatentLayersRemember", key=key, model=self.plain_model, vae=self.vae, conditioning=self.conditioning,
            value=value,
        ).out(0)  # fmt: skip

    def _model(self, steps: int) -> Link:
        """The model for a stage of so many steps, which reports to the whole edit's progress bar."""
        node = self.graph.node("LatentLayersStage", model=self.plain_model, stage="")
        self.stages.append((node, steps))
        return node.out(0)

    def _share_progress(self) -> None:
        total, done = sum(steps for _, steps in self.stages), 0
        for node, steps in self.stages:
            node.set_input("stage", Content(Stage(done, total)))
            done += steps

    def _invert(self, latent: Link, sigmas: Link, steps: int) -> Link:
        refinements = self.settings.refinements
        return self.graph.node(
            "LatentLayersInvert", model=self._model(steps), conditioning=self.conditioning, latent=latent,
            sigmas=sigmas, refinements=refinements,
        ).out(0)  # fmt: skip

    def _ignored(self, hole: Tensor) -> Tensor | None:
        """What of the layers is not removed: with `ignore_layers` their look must not leak into the hole."""
        if not self.settings.ignore_layers:
            return None
        masks = [layer.mask for layer in self.layout.layers if layer.image is None and layer.stays]
        ignored = torch.stack(masks).amax(0) * (hole == 0) if masks else None
        return ignored if ignored is not None and bool((ignored > 0).any()) else None

    def _lookalikes(self, latent: Link, hole: Tensor, artifacts: Link | None) -> Link:
        """What looks like the layers that go, and what else is to be forgotten."""
        more = {} if artifacts is None else {"artifact_mask": artifacts}
        return self.graph.node(
            "LatentLayersLookalikeMask", latent=latent, mask=self._value(hole), likeness=LIKENESS, **more
        ).out(0)  # fmt: skip

    def _fill(
        self, canvas: Link, around: Link, hole: Tensor, sigmas: Link, artifacts: Link | None, ignored: Tensor | None
    ) -> Link:
        settings, mask = self.settings, self._value(hole)
        extra = {} if artifacts is None else {"artifact_mask": artifacts}
        if ignored is not None:
            extra["ignore_mask"] = self._value(ignored)
        masked = self.graph.node(
            "LatentLayersKeyMaskedSelfAttention", model=self._model(settings.filled), mask=mask, mode=settings.mode,
            guidance=settings.guidance, start_percent=0.0, end_percent=1.0, artifact_end=0.5, guidance_end=-1.0,
            blocks=settings.blocks, **extra,
        ).out(0)  # fmt: skip
        return self._sample(self._keep(masked, around, hole), sigmas, canvas).out(0)

    def _keep(self, model: Link, trajectory: Link, mask: Tensor) -> Link:
        return self.graph.node(
            "LatentLayersKeepSource", model=model, trajectory=trajectory, mask=self._value(mask),
            start_percent=0.0, end_percent=1.0,
        ).out(0)  # fmt: skip

    def _sample(self, model: Link, sigmas: Link, trajectory: Link) -> Any:
        guider = self.graph.node("BasicGuider", model=model, conditioning=self.conditioning).out(0)
        sampler = self.graph.node("KSamplerSelect", sampler_name=self.settings.sampler).out(0)
        return self.graph.node(
            "LatentLayersSample", guider=guider, sampler=sampler, sigmas=sigmas, trajectory=trajectory, noise_seed=0
        )

    def _predicted(self, trajectory: Link) -> Link:
        return self.graph.node("LatentLayersTrajectoryToLatent", trajectory=trajectory, step=0, predict=True).out(0)

    def _decoded(self, latent: Link) -> Link:
        return self.graph.node("VAEDecode", samples=latent, vae=self.vae).out(0)

    def _composite(self, below: Link, above: Link, mask: Tensor) -> Link:
        return self.graph.node(
            "ImageCompositeMasked", destination=below, source=above, x=0, y=0, resize_source=False,
            mask=self._value(mask),
        ).out(0)  # fmt: skip

    def _fuse(self, canvas: Link, source: Link, placed: Link, sigmas: tuple[Link, int]) -> Link:
        """Lay the latent of what has the layers on it over the canvas.

        Pieces of the source that only move by whole cells bring their own noise with them.
        Where one is resampled, the picture with all layers is inverted once, as far as needed.
        """
        layout = self.layout
        if layout.needs_inversion:
            own = self._invert(placed, *sigmas)
            return self.graph.node(
                "LatentLayersFuseLayer", canvas=canvas, layer=own, mask=self._value(layout.covered), moves="0, 0",
                placed=placed,
            ).out(0)  # fmt: skip
        for part in layout.placed:
            moves = "; ".join(f"{CELL * right}, {CELL * down}" for right, down in part.moves)
            canvas = self.graph.node(
                "LatentLayersFuseLayer", canvas=canvas, layer=source, mask=self._value(part.on_canvas.mask),
                moves=moves, placed=placed,
            ).out(0)  # fmt: skip
        return canvas

    def _laid(self, behind: Link) -> Link:
        """The layers laid on what is behind them, in pixels, back to front."""
        for part in self.layout.placed:
            behind = self.graph.node("LatentLayersLayOn", canvas=behind, part=Content(part, part.key)).out(0)
        return behind


def in_model_units(trajectory: Trajectory, samples: Tensor) -> Tensor:
    """A LATENT's samples in the units of a trajectory's latents, float32 in system memory."""
    scaled = samples if trajectory.latent_format is None else trajectory.latent_format.process_in(samples)
    return scaled.to(device="cpu", dtype=torch.float32)


def with_progress(model: Any, stage: Stage) -> Any:
    """A clone of a model whose sampling runs report as part of a whole edit, with the host's previews."""
    patched = model.clone()

    def outer_sample(
        executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Any, callback: Any,
        *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        previewer = latent_preview.get_previewer(patched.load_device, patched.model.latent_format)
        bar = comfy.utils.ProgressBar(stage.total)

        def report(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            preview = previewer.decode_latent_to_preview_image("JPEG", denoised) if previewer else None
            bar.update_absolute(stage.done + step + 1, stage.total, preview)

        return executor(noise, latent, sampler, sigmas, mask, report, *args, **kwargs)

    wrappers = comfy.patcher_extension.WrappersMP
    patched.add_wrapper_with_key(wrappers.OUTER_SAMPLE, _PROGRESS_KEY, outer_sample)
    return patched
