"""Layered edits of many pictures at once: the calls that Layered Edit's graph makes, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.host import apply_keep_source, apply_key_mask
from ..fusion.fuse import fuse
from ..fusion.host import EditSettings
from ..fusion.layered import Layout, with_detail
from ..inversion.trajectory import Trajectory
from ..masks.lookalikes import lookalikes
from .pipeline import Toy


@dataclass
class LayeredRun:
    """Sources that were inverted, and whose holes were filled; edits of them can be finished again and again.

    All layouts have a hole, or none has.
    """

    toy: Toy
    settings: EditSettings
    sigmas: Tensor
    source: Trajectory
    canvas: Trajectory

    @classmethod
    def start(cls, toy: Toy, layouts: Sequence[Layout], settings: EditSettings) -> "LayeredRun":
        """Invert the sources and fill the holes."""
        sigmas = toy.sigmas(settings.steps)
        holes = [layout.hole for layout in layouts if layout.hole is not None]
        fills = bool(holes) or any(layout.occluded is not None for layout in layouts)
        latents = toy.encode(torch.cat([layout.source for layout in layouts]))
        part = sigmas if fills else sigmas[settings.filled :]
        source = toy.invert(latents, refinements=settings.refinements, sigmas=part)
        run = cls(toy, settings, sigmas, source, source)
        if holes:
            hole = torch.cat(holes)
            run.canvas = run.fill(
                source, source, hole, lookalikes(latents, hole) if settings.forget_lookalikes else None
            )
        return run

    def fill(self, start: Trajectory, around: Trajectory, holes: Tensor, artifacts: Tensor | None = None) -> Trajectory:
        """K steps in which the holes (B, H, W) are forgotten; elsewhere `around` is followed."""
        settings = self.settings
        masked = apply_key_mask(
            self.toy.model, holes, mode=settings.mode, guidance=settings.guidance, end=1.0, artifact_mask=artifacts
        )
        sigmas = self.sigmas[: settings.filled + 1]
        return self.toy.run(apply_keep_source(masked, around, holes), start, sigmas, settings.sampler)[0]

    def finish(self, layouts: Sequence[Layout], complete: bool = True) -> Tensor:
        """Lay the layers on and blend them in: IMAGEs (B, H, W, 3). `complete`: fill what was occluded."""
        blended = self.blended(layouts, complete)
        return self.composite(layouts, self.detailed(layouts, blended) if self.settings.keep_pixels else blended)

    def blended(self, layouts: Sequence[Layout], complete: bool = True) -> Tensor:
        """What the model makes of sources and layers, decoded: IMAGEs (B, H, W, 3)."""
        occluded = [layout.occluded for layout in layouts if layout.occluded is not None] if complete else []
        canvas = self._fused(layouts, self.toy.encode(self._laid(layouts)), everywhere=bool(occluded))
        if occluded:
            canvas = self.fill(canvas, canvas, torch.cat(occluded))
        edited = torch.cat([layout.edited for layout in layouts])
        model = apply_keep_source(self.toy.model, self.source, edited)
        latents = self.toy.run(model, canvas, self.sigmas[self.settings.filled :], self.settings.sampler)[1]
        return self.toy.decode(latents)

    def detailed(self, layouts: Sequence[Layout], blended: Tensor) -> Tensor:
        """Blended pictures with the detail of what was laid out, and the layers' own pixels."""
        laid = self._laid(layouts)
        detailed = with_detail(blended, laid, self.toy.decode(self.toy.encode(laid)))
        nothing = torch.zeros_like(layouts[0].edited)
        completed = torch.cat([nothing if x.completed is None else x.completed for x in layouts])
        own, kept = (torch.cat(part) for part in zip(*(x.own_pixels() for x in layouts), strict=True))
        return torch.lerp(torch.lerp(detailed, blended, completed[..., None]), own, kept[..., None])

    @staticmethod
    def composite(layouts: Sequence[Layout], pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) over the sources where these were edited."""
        sources, edited = (torch.cat([getattr(x, name) for x in layouts]) for name in ("source", "edited"))
        return torch.lerp(sources, pictures, edited[..., None])

    def _laid(self, layouts: Sequence[Layout]) -> Tensor:
        """The layers laid on sources whose holes are filled, IMAGEs (B, H, W, 3)."""
        behind = torch.cat([layout.source for layout in layouts])
        if layouts[0].hole is not None:
            holes = torch.cat([layout.hole for layout in layouts if layout.hole is not None])
            fusion = float(self.sigmas[self.settings.filled])
            predicted = self.toy.decode(self.canvas.part(low=fusion).predicted())
            behind = torch.lerp(behind, predicted, holes[..., None])
        return torch.cat([layout.laid_on(behind[i : i + 1]) for i, layout in enumerate(layouts)])

    def _fused(self, layouts: Sequence[Layout], placed: Tensor, everywhere: bool) -> Trajectory:
        """Canvases with layers on them, at σ of the fusion, or at every σ from there up."""
        fusion = float(self.sigmas[self.settings.filled])
        canvas = self.canvas.part(low=fusion) if everywhere else self.canvas.part(fusion, fusion)
        own = self._inverted(layouts, placed, everywhere)
        results = []
        for number, layout in enumerate(layouts):
            picture, clean = _picture(canvas, number), placed[number : number + 1]
            if number in own:
                picture, _ = fuse(picture, own[number], layout.covered, [(0, 0)], clean)
            else:
                for part in layout.placed:
                    layer = _picture(self.source, number)
                    picture, _ = fuse(picture, layer, part.on_canvas.mask, part.moves, clean)
            results.append(picture)
        levels = results[0].sigmas
        latents = [torch.cat([r.latents[i] for r in results]) for i in range(len(levels))]
        return Trajectory(levels, latents, canvas.family, canvas.latent_format)

    def _inverted(self, layouts: Sequence[Layout], placed: Tensor, everywhere: bool) -> dict[int, Trajectory]:
        """Trajectories of the pictures in which some layer was resampled, by their number."""
        numbers = [i for i, layout in enumerate(layouts) if layout.needs_inversion]
        if not numbers:
            return {}
        part = self.sigmas if everywhere else self.sigmas[self.settings.filled :]
        inverted = self.toy.invert(placed[numbers], refinements=self.settings.refinements, sigmas=part)
        return {number: _picture(inverted, i) for i, number in enumerate(numbers)}


def _picture(trajectory: Trajectory, number: int) -> Trajectory:
    """One picture's own trajectory."""
    latents = [x[number : number + 1] for x in trajectory.latents]
    return Trajectory(trajectory.sigmas, latents, trajectory.family, trajectory.latent_format)
