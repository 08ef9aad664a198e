"""Removal on toy scenes: one object goes, and the truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..attention.host import apply_keep_source, apply_key_mask
from ..inversion.trajectory import Trajectory
from ..masks.grid import dilate
from ..masks.lookalikes import lookalikes
from .measure import psnr
from .pipeline import STEPS, Toy, images
from .scenes import Scene, random_scene

DILATION = 20 / 1024  # of the width, the paper's
FAILURE = 20.0  # dB inside the mask below which a removal has failed


@dataclass
class RemovalSet:
    """Scenes with 1 to 3 objects of which the one drawn by the seed is removed."""

    scenes: list[Scene]
    sources: Tensor  # IMAGE (B, H, W, 3)
    truths: Tensor  # IMAGE, as rendered
    masks: Tensor  # MASK (B, H, W), 0 or 1: the visible part, dilated
    others: Tensor  # MASK (B, H, W): the remaining objects
    latents: Tensor
    reachable: Tensor  # IMAGE: the truth as the autoencoder returns it, what a perfect edit decodes to
    trajectories: dict[tuple[int, int], Trajectory] = field(default_factory=dict)

    def trajectory(self, toy: Toy, steps: int = STEPS, refinements: int = 0) -> Trajectory:
        """Inverted once for every setting."""
        key = (steps, refinements)
        if key not in self.trajectories:
            self.trajectories[key] = toy.invert(self.latents, steps, refinements)
        return self.trajectories[key]

    def psnrs(self, pictures: Tensor, raw: bool = False) -> list[float]:
        """PSNR inside the mask of each picture, against the reachable truth or the raw one."""
        truths = self.truths if raw else self.reachable
        inside = zip(pictures.numpy(), truths.numpy(), self.masks.numpy(), strict=True)
        return [psnr(picture, truth, mask) for picture, truth, mask in inside]


def removal_set(toy: Toy, seeds: Sequence[int]) -> RemovalSet:
    """The benchmark's scenes."""
    scenes = [random_scene(seed, objects=(1, 3)) for seed in seeds]
    chosen = [
        int(np.random.default_rng([2, seed]).integers(len(s.objects))) for seed, s in zip(seeds, scenes, strict=True)
    ]
    visible = [torch.from_numpy(s.visible_mask(i)) for s, i in zip(scenes, chosen, strict=True)]
    masks = dilate((torch.stack(visible) > 0).float(), DILATION)
    remaining = [s.without(i) for s, i in zip(scenes, chosen, strict=True)]
    others = [
        torch.from_numpy(np.max([r.full_mask(i) for i in range(len(r.objects))] or [np.zeros(masks.shape[1:], "f")], 0))
        for r in remaining
    ]
    sources, truths = images(scenes), images(remaining)
    latents = toy.encode(sources)
    reachable = toy.decode(toy.encode(truths))
    return RemovalSet(scenes, sources, truths, masks, torch.stack(others), latents, reachable)


def remove(
    toy: Toy, data: RemovalSet, *, steps: int = STEPS, seed: int = 0, sampler: str = "euler", **settings
) -> Tensor:
    """The pack's removal, as the shipped graph does it; `settings` go to Key-Masked Self-Attention.

    Returns composited IMAGEs (B, H, W, 3).
    """
    trajectory = data.trajectory(toy, steps)
    settings = {"artifact_mask": lookalikes(data.latents, data.masks), **settings}
    patched = apply_keep_source(apply_key_mask(toy.model, data.masks, **settings), trajectory, data.masks)
    return composite(data, toy.decode(toy.sample(patched, trajectory, sampler, seed)))


def composite(data: RemovalSet, pictures: Tensor) -> Tensor:
    """ImageCompositeMasked: the edit inside the mask, the source's own pixels outside."""
    masks = data.masks[..., None]
    return masks * pictures + (1 - masks) * data.sources
