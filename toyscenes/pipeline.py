"""The toy model in use: what the benchmarks run, with the same calls as the nodes make."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..inversion.host import invert, sample_recording
from ..inversion.trajectory import Trajectory
from .host import image_tensor
from .model import load
from .scenes import Scene

STEPS = 50
SCHEDULER = "normal"


class Toy:
    """Model, text encoder and autoencoder, and a count of the UNet's evaluations."""

    def __init__(self) -> None:
        comfy.utils.set_progress_bar_enabled(False)
        model, self.clip, self.vae = load()
        self.model = model.clone()
        self.samples = 0  # pictures that went through the UNet
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "latent_layers_count", self._count)

    def _count(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.samples += len(x)
        return executor(x, *args, **kwargs)

    def condition(self, text: str = "") -> list:
        """Conditioning of a prompt."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sigmas(self, steps: int = STEPS) -> Tensor:
        """The host's schedule (steps + 1), descending to 0."""
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), SCHEDULER, steps)

    def encode(self, images: Tensor) -> Tensor:
        """IMAGE (B, H, W, 3) to latents (B, C, H/8, W/8)."""
        return self.vae.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to IMAGE."""
        return self.vae.decode(latents)

    def invert(
        self,
        latents: Tensor,
        steps: int = STEPS,
        refinements: int = 0,
        sigmas: Tensor | None = None,
        usual: bool = False,
    ) -> Trajectory:
        """Trajectory of pictures over a whole schedule, or the given part of one, with the empty prompt."""
        levels = self.sigmas(steps) if sigmas is None else sigmas
        return invert(self.model, self.condition(), latents, levels, refinements, usual=usual)

    def sample(self, model: Any, trajectory: Trajectory, sampler: str = "euler", seed: int = 0) -> Tensor:
        """Latents that a patched model makes of a trajectory, with the empty prompt and no text guidance."""
        return self.run(model, trajectory, trajectory.sigmas, sampler, seed)[1]

    def run(
        self, model: Any, trajectory: Trajectory, sigmas: Tensor, sampler: str = "euler", seed: int = 0
    ) -> tuple[Trajectory, Tensor]:
        """As `sample`, over a part of the schedule; also returns what was passed through."""
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": self.condition()})
        guider.set_cfg(1.0)
        return sample_recording(guider, comfy.samplers.sampler_object(sampler), sigmas, trajectory, seed)

    def inpaint(self, latents: Tensor, mask: Tensor, seeds: Iterable[int], steps: int = STEPS) -> Tensor:
        """The host's own way: SetLatentNoiseMask, then KSampler from full noise (denoise 1), cfg 1, empty prompt."""
        noise = seeded_noise(latents, seeds)
        return comfy.sample.sample(
            self.model, noise, steps, 1.0, "euler", SCHEDULER, self.condition(), self.condition(), latents,
            denoise=1.0, noise_mask=mask[:, None], disable_pbar=True,
        )  # fmt: skip


def seeded_noise(latents: Tensor, seeds: Iterable[int]) -> Tensor:
    """Noise like `latents` (B, C, H, W), of one seed for each picture, as KSampler draws it."""
    noises: list[Any] = [comfy.sample.prepare_noise(latents[:1], seed) for seed in seeds]
    return torch.cat(noises)


def images(scenes: Iterable[Scene]) -> Tensor:
    """IMAGE (B, H, W, 3) of scenes."""
    return torch.cat([image_tensor(scene.image()) for scene in scenes])


def batches(items: list, size: int = 16) -> Iterator[list]:
    """Consecutive parts of a list."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def mean(values: Iterable[float]) -> float:
    """Average, rounded for a report."""
    return round(float(np.mean(list(values))), 3)
