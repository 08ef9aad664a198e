"""Soft edits in use: a source picture with its trajectory, real or generated, and every way to edit it."""

from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import numpy as np
import torch
from torch import Tensor

from ..attention.adaptive_host import HOLD, adaptive_guider
from ..attention.timings import WordTimings
from ..attention.timings_host import word_timings
from ..inversion.host import invert, model_family, sample_recording
from ..inversion.trajectory import Trajectory
from .pipeline import Toy, seeded_noise
from .soft_edits import Outcome, SoftEdit, shown

STEPS = 20
CFG = 3.0  # with more, the toy model keeps less of a picture and follows no better
FROM_CAPTION = 1.5  # where the negative is the picture's own caption: with more, colours overshoot
EVERYWHERE = torch.ones(1, 256, 256)  # a soft mask that replaces S_V by 1


@dataclass(frozen=True, eq=False)
class Source:
    """A picture to edit.

    edit        what is to become of it
    trajectory  its own, of one picture, with its caption
    picture     what the trajectory's clean latent decodes to, (H, W, 3)
    negative    CONDITIONING; None: guidance leads from the caption to the prompt, as suits real pictures
    """

    edit: SoftEdit
    trajectory: Trajectory
    picture: np.ndarray
    negative: list | None

    @property
    def usable(self) -> bool:
        """Whether the picture shows what is to be edited as the caption has it."""
        return shown(self.edit, self.picture)


def plain_guider(model: Any, positive: list, negative: list, cfg: float) -> Any:
    """CFG with one prompt, as the host has it."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def sample(guider: Any, start: Trajectory, sigmas: Tensor) -> tuple[Trajectory, Tensor]:
    """What the node Sample Trajectory does, with euler."""
    return sample_recording(guider, comfy.samplers.sampler_object("euler"), sigmas, start)


def decoded(toy: Toy, latent: Tensor) -> np.ndarray:
    """The picture (H, W, 3) of a latent (1, C, h, w)."""
    return toy.decode(latent)[0].clamp(0, 1).numpy()


def real(toy: Toy, edit: SoftEdit, steps: int = STEPS) -> Source:
    """A scene, inverted with its caption."""
    latent = toy.encode(edit.source_image)
    trajectory = invert(toy.model, toy.condition(edit.caption), latent, toy.sigmas(steps))
    return Source(edit, trajectory, decoded(toy, latent), None)


def generated(toy: Toy, edit: SoftEdit, seed: int, steps: int = STEPS) -> Source:
    """What the model makes of the caption."""
    sigmas = toy.sigmas(steps)
    start = noise(toy, edit, seed, sigmas)
    guider = plain_guider(toy.model, toy.condition(edit.caption), toy.condition(), CFG)
    trajectory, latent = sample(guider, start, sigmas)
    return Source(edit, trajectory, decoded(toy, latent), toy.condition())


def noise(toy: Toy, edit: SoftEdit, seed: int, sigmas: Tensor) -> Trajectory:
    """The noise of a seed as the beginning of a trajectory."""
    family = model_family(toy.model, "soft edit")
    like = torch.zeros(1, family.channels, edit.scene.height // 8, edit.scene.width // 8)
    start = seeded_noise(like, [seed]) * sigmas[0]
    latent_format: Any = toy.model.get_model_object("latent_format")
    return Trajectory(sigmas[:1], [start], family, latent_format)


def prompt_only(toy: Toy, source: Source, model: Any = None, negative: list | None = None) -> tuple[Trajectory, Tensor]:
    """The edit prompt alone from the source's noise, by CFG with an empty negative unless the caption is given."""
    against, cfg = (toy.condition(), CFG) if negative is None else (negative, FROM_CAPTION)
    guider = plain_guider(toy.model if model is None else model, toy.condition(source.edit.prompt), against, cfg)
    return sample(guider, source.trajectory, source.trajectory.sigmas)


def timings_of(toy: Toy, source: Source, read: Trajectory, **settings: Any) -> WordTimings:
    """Word Timings of a source; `read` is the trajectory that is looked at."""
    edit = source.edit
    return word_timings(toy.model, toy.clip, edit.caption, edit.prompt, read, **settings).timings


def with_tau(timings: WordTimings, tau: float) -> WordTimings:
    """The same tau for every word, as prompt-to-prompt has it."""
    return replace(timings, timings=tuple(replace(timing, tau=tau) for timing in timings.timings))


def soft(toy: Toy, source: Source, timings: WordTimings, model: Any = None, **settings: Any) -> Tensor:
    """The latent (1, C, h, w) that the node Adaptive Attention Guider makes of a source, with its defaults."""
    settings = {"negative": source.negative, "hold": HOLD, **settings}
    settings.setdefault("cfg", FROM_CAPTION if settings["negative"] is None else CFG)
    guider = adaptive_guider(
        toy.model if model is None else model, toy.condition(source.edit.caption), toy.condition(source.edit.prompt),
        settings.pop("negative"), settings.pop("cfg"), timings, trajectory=source.trajectory, **settings,
    )  # fmt: skip
    return sample(guider, source.trajectory, source.trajectory.sigmas)[1]


def outcome(toy: Toy, source: Source, latent: Tensor) -> Outcome:
    """What became of a source."""
    return Outcome(source.edit, source.picture, decoded(toy, latent))


def everywhere(**settings: Any) -> dict[str, Any]:
    """Settings of the guider without the spatial weight: S_V is 1."""
    return {"mask": EVERYWHERE, "mask_mode": "replace", "lambda_s": 1.0, **settings}
