"""The toy model with prompts: many pictures at once, each with its own."""

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..inversion.host import sample_recording
from ..inversion.trajectory import Trajectory
from ..masks.grid import cover
from .pipeline import Toy, seeded_noise


def conditions(toy: Toy, prompts: Sequence[str]) -> list:
    """One CONDITIONING with a row for each prompt."""
    encoded = [toy.condition(prompt)[0] for prompt in prompts]
    return [[torch.cat([tensor for tensor, _ in encoded]), encoded[0][1]]]


def guided(
    toy: Toy, model: Any, start: Trajectory, sigmas: Tensor, prompts: Sequence[str], cfg: float,
    negatives: Sequence[str] | None = None,
) -> Tensor:  # fmt: skip
    """Latents (B, C, h, w) that a patched model makes of a trajectory by euler, a prompt for each picture.

    Negative prompts are empty unless they are given. What the node Sample does with a CFG guider.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditions(toy, prompts), conditions(toy, negatives or [""] * len(prompts)))
    guider.set_cfg(cfg)
    return sample_recording(guider, comfy.samplers.sampler_object("euler"), sigmas, start)[1]


def fresh_start(source: Trajectory, masks: Tensor, seeds: Sequence[int]) -> Trajectory:
    """A source's trajectory that begins with new noise inside the masks (B, H, W), one seed for each picture."""
    noise = seeded_noise(source.noisiest, seeds) * source.sigmas[0]
    where = cover(masks, *source.size)[:, None]
    return source.continued(source.sigmas[:1], [torch.lerp(source.noisiest, noise, where)])
