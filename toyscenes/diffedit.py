"""DiffEdit, what instant attention masks are compared with, on the same model.

Couairon et al., "DiffEdit: Diffusion-based semantic image editing with mask guidance"
(ICLR 2023), section 3: (1) noise the picture, predict that noise with the edit prompt and
with a reference prompt, and take where the predictions differ as mask: average over ten
noises, remove extreme values, scale to [0, 1], cut at 0.5; (2) invert the picture by DDIM
without a prompt; (3) decode with the edit prompt, and put the inverted latents back outside
the mask at every step.

The article does not say what an extreme value is. Here it is one above three times the mean,
as in the implementation that most people use; without that step the mask shrinks to the few
cells that differ most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..attention.host import apply_keep_source
from ..masks.grid import dilate
from .pipeline import STEPS, Toy, seeded_noise
from .text_run import conditions, guided

STRENGTH = 0.5  # share of the schedule that is noised, for the mask and for the edit
SAMPLES = 10  # noises over which the difference is averaged
THRESHOLD = 0.5
EXTREME = 3.0  # times the mean: larger differences count as that


@dataclass(frozen=True)
class DiffEdit:
    """What came out. Masks are (B, H, W) at the size of the pictures."""

    difference: Tensor  # (B, h, w) on the latent's grid, mean over colours and noises
    mask: Tensor  # 0 or 1
    pictures: Tensor  # IMAGE (B, H, W, 3), not composited
    mask_evaluations: float  # of the UNet, per picture
    evaluations: float  # of mask and edit together


class _Once(comfy.samplers.Sampler):
    """One evaluation of the model at the schedule's first σ; keeps the predicted noise ε."""

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, latent_image: Tensor,
        denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        x = latent_image + sigmas[0] * noise
        denoised = model_wrap(x, sigmas[0] * x.new_ones([len(x)]), **extra_args)
        self.predicted = (x - denoised) / sigmas[0]
        return denoised


def predicted_noise(toy: Toy, latents: Tensor, noise: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
    """ε (B, C, h, w) that the model sees in latents with σ·noise added, without guidance."""
    guider: Any = comfy.samplers.CFGGuider(toy.model)
    guider.inner_set_conds({"positive": conditions(toy, prompts)})
    guider.set_cfg(1.0)
    once: Any = _Once()
    guider.sample(noise, latents, once, torch.stack([sigma, sigma.new_zeros([])]), disable_pbar=True, seed=0)
    return once.predicted.cpu()


def noise_difference(
    toy: Toy, latents: Tensor, sigma: Tensor, references: Sequence[str], edits: Sequence[str], seeds: Sequence[int],
    samples: int = SAMPLES,
) -> Tensor:  # fmt: skip
    """Where two prompts see different noise: (B, h, w), absolute, mean over channels and over noises."""
    total = torch.zeros(len(latents), *latents.shape[-2:])
    for number in range(samples):
        noise = seeded_noise(latents, [seed * samples + number for seed in seeds])
        edit, reference = (predicted_noise(toy, latents, noise, sigma, texts) for texts in (edits, references))
        total += (edit - reference).abs().mean(1)
    return total / samples


def binary(difference: Tensor, size: Sequence[int], extreme: float | None = EXTREME) -> Tensor:
    """Mask (B, H, W), 0 or 1, of a difference (B, h, w): scaled to [0, 1] by its least and largest value.

    Values above `extreme` times the mean count as that before they are scaled; None leaves
    them. Of a difference that is the same everywhere nothing is mask.
    """
    if extreme is not None:
        difference = difference.minimum(extreme * difference.mean((1, 2), keepdim=True))
    least, largest = difference.amin((1, 2), keepdim=True), difference.amax((1, 2), keepdim=True)
    scaled = (difference - least) / (largest - least).clamp(min=1e-12)
    cells = (scaled > THRESHOLD).float()
    return torch.nn.functional.interpolate(cells[:, None], size=list(size), mode="nearest-exact")[:, 0]


def diffedit(
    toy: Toy, sources: Tensor, references: Sequence[str], edits: Sequence[str], seeds: Sequence[int], cfg: float,
    steps: int = STEPS, strength: float = STRENGTH, grow: int = 0,
) -> DiffEdit:  # fmt: skip
    """Mask and edit of pictures, IMAGE (B, H, W, 3), by a prompt of what they show and one of what they should.

    Args:
        cfg: text guidance of the decoding.
        steps: of the whole schedule, of which the noisiest 1 - strength are left out.
        strength: share of the schedule that the picture is noised, and inverted.
        grow: pixels by which the mask is grown for the edit, not in what is returned.
    """
    before, count = toy.samples, len(sources)
    sigmas = toy.sigmas(steps)[steps - round(strength * steps) :]
    latents = toy.encode(sources)
    difference = noise_difference(toy, latents, sigmas[0], references, edits, seeds)
    mask = binary(difference, sources.shape[1:3])
    for_mask = (toy.samples - before) / count
    trajectory = toy.invert(latents, sigmas=sigmas)
    keep = apply_keep_source(toy.model, trajectory, dilate(mask, grow))
    pictures = toy.decode(guided(toy, keep, trajectory, sigmas, edits, cfg))
    return DiffEdit(difference, mask, pictures, for_mask, (toy.samples - before) / count)
