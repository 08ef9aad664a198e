"""Inversion and recorded sampling under ComfyUI's own guiders and samplers.

Both run through `CFGGuider.sample`, so that model loading, low-VRAM offloading, hooks,
ControlNets, other packs' wrappers, interrupts, previews and progress are the host's.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import comfy.cli_args
import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from . import ddim
from .hook_keyframes import keyframes_by_noise
from .trajectory import ModelFamily, Trajectory, descending, same_sigma

MAX_REFINEMENTS = 5
_WRAPPER_KEY = "latent_layers_recording"
_Wrappers = comfy.patcher_extension.WrappersMP


def model_family(model: comfy.model_patcher.ModelPatcher, where: str) -> ModelFamily:
    """Fingerprint of a model whose x(σ) is z + σ·ε.

    `where` names the node in errors. Raises ValueError for other families, whose x(σ)
    follows another equation than inversion and sampling from a trajectory assume.
    """
    sampling: Any = model.get_model_object("model_sampling")
    # The host mixes schedule and prediction into a class of its own: ask which base predicts.
    prediction = next(base for base in type(sampling).__mro__ if "calculate_denoised" in vars(base))
    if prediction not in (comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION):
        raise ValueError(
            f"{where}: the model predicts {prediction.__name__}; only ε- and v-prediction models can be inverted: "
            "use a checkpoint of the SD 1.x, SD 2.x or SDXL family"
        )
    latent_format = _latent_format(model)
    return ModelFamily(
        latent_format=type(latent_format).__name__,
        channels=latent_format.latent_channels,
        prediction=prediction.__name__,
        sigma_max=float(sampling.sigma_max),
    )


def _latent_format(model: comfy.model_patcher.ModelPatcher) -> Any:
    return model.get_model_object("latent_format")


def pins() -> bool:
    """Whether the user lets copies to and from a GPU go through page-locked memory."""
    return not comfy.cli_args.args.disable_pinned_memory


class _Tape:
    """Records (σ, x) during a run, without making the device wait for the copies."""

    def __init__(self) -> None:
        self._sigmas: list[Tensor] = []
        self._latents: list[Tensor] = []

    def record(self, sigma: Tensor, x: Tensor) -> None:
        """Receives σ (one element, or one per image, all equal) and x (B, C, H, W)."""
        # Page-locked memory lets the copy run beside the next evaluation.
        pinned = x.device.type == "cuda" and pins()
        latent = torch.empty(x.shape, dtype=torch.float32, pin_memory=pinned)
        latent.copy_(x, non_blocking=pinned)
        self._latents.append(latent)
        # A copy: some samplers write into the schedule they are given.
        self._sigmas.append(sigma.reshape(-1)[0].to(torch.float32, copy=True))

    def read(self) -> list[tuple[float, Tensor]]:
        """All (σ, x) in the order of recording, x in pageable system memory."""
        # This transfer waits for everything the device was given before it: the latents too.
        sigmas = torch.stack(self._sigmas).tolist()
        latents = (latent.clone() if latent.is_pinned() else latent for latent in self._latents)
        return list(zip(sigmas, latents, strict=True))


class DDIMInversion(comfy.samplers.Sampler):
    """The host's sampler interface, walking its schedule upwards and recording."""

    def __init__(self, refinements: int, tape: _Tape, usual: bool = False) -> None:
        self.refinements = refinements
        self.tape = tape
        self.usual = usual

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """From `latent_image`, x at sigmas[-1], to x at sigmas[0], (B, C, H, W); σs descend as in the host.

        `noise` and `denoise_mask` belong to the interface; inversion has no use for them.
        """
        levels = sigmas.flip(0)
        per_image = latent_image.new_ones([latent_image.shape[0]])
        model_sampling = model_wrap.inner_model.model_sampling
        one = latent_image.new_ones([1])
        denoised = latent_image

        def predict_noise(x: Tensor, sigma: ddim.Sigma) -> Tensor:
            nonlocal denoised
            denoised = model_wrap(x, sigma * per_image, **extra_args)
            return (x - denoised) / sigma

        def input_scale(sigma: ddim.Sigma) -> ddim.Sigma:
            return model_sampling.calculate_input(sigma, one)

        steps = len(levels) - 1
        x = latent_image
        self.tape.record(levels[0], x)
        upwards = ddim.invert(x, levels, predict_noise, self.refinements, input_scale, self.usual)
        with keyframes_by_noise(model_wrap.conds):
            for step in comfy.k_diffusion.sampling.trange(steps, disable=disable_pbar):
                x = next(upwards)
                self.tape.record(levels[step + 1], x)
                if callback is not None:
                    callback(step, denoised, x, steps)
        return x


def invert(
    model: comfy.model_patcher.ModelPatcher,
    conditioning: list,
    latent: Tensor,
    sigmas: Tensor,
    refinements: int = 0,
    where: str = "Invert",
    usual: bool = False,
) -> Trajectory:
    """Trajectory of a picture by DDIM inversion, without guidance.

    Receives `latent` (B, C, H, W) in LATENT's units, taken to be at the schedule's lowest
    σ, and `sigmas` (T+1) in either direction. Evaluates the UNet T·(1 + refinements)
    times, with `conditioning` as the only condition. `usual` is the published inversion,
    for comparison (see `ddim`).
    Raises ValueError for what cannot be inverted, before anything is loaded.
    """
    family = model_family(model, where)
    levels = descending(sigmas, f"{where}: sigmas")
    if not 0 <= refinements <= MAX_REFINEMENTS:
        raise ValueError(f"{where}: refinements is {refinements}; it must be 0 to {MAX_REFINEMENTS}")
    if not conditioning:
        raise ValueError(f"{where}: conditioning is empty; connect CLIP Text Encode (an empty prompt will do)")
    if levels[0] > family.sigma_max * 1.01:
        raise ValueError(
            f"{where}: sigmas start at {levels[0]:.4g}, above the model's highest noise level {family.sigma_max:.4g}; "
            "make the schedule with this model"
        )
    if latent.is_nested or latent.ndim != 4 or latent.shape[1] != family.channels:
        raise ValueError(
            f"{where}: latent has shape {tuple(latent.shape)}, the model takes (batch, {family.channels}, height, "
            "width); encode the picture with the VAE of this checkpoint"
        )
    tape = _Tape()
    guider: Any = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning})
    guider.set_cfg(1.0)
    # Without a negative and at scale 1 the host evaluates the positive condition only.
    sample_counted(
        guider, torch.zeros_like(latent), latent, DDIMInversion(refinements, tape, usual), levels, seed=0, where=where
    )
    recorded = [x for _, x in tape.read()]
    return Trajectory(levels, recorded[::-1], family, _latent_format(model))


def sample_recording(
    guider: comfy.samplers.CFGGuider,
    sampler: comfy.samplers.Sampler,
    sigmas: Tensor,
    trajectory: Trajectory,
    seed: int = 0,
    where: str = "Sample",
) -> tuple[Trajectory, Tensor]:
    """Denoise from the trajectory's x(sigmas[0]) with any of the host's samplers, recording.

    Receives descending `sigmas` (T+1), all or part of the trajectory's schedule. No noise
    is added at the start; `seed` serves the samplers that add noise on the way.
    Returns the new trajectory (the old one above sigmas[0], then what was sampled) and its
    last latent in LATENT's units (B, C, H, W) on the host's intermediate device.

    The recorded x(σ_i) is the one that the sampler evaluates at σ_i. Solvers that step
    over points of the schedule (dpm_fast, dpm_adaptive, churn) have those interpolated.
    Raises ValueError for a trajectory of another model or schedule, before anything is
    loaded.
    """
    family = model_family(guider.model_patcher, where)
    trajectory.check_model(family, f"{where}: trajectory")
    levels = descending(sigmas, f"{where}: sigmas")
    if float(sigmas[0]) < float(sigmas[-1]):
        raise ValueError(f"{where}: sigmas go up, towards noise; remove FlipSigmas (Invert is the way up)")
    trajectory.check_schedule(levels, f"{where}: sigmas")

    start = trajectory.at(levels[0])
    tape = _Tape()
    recording = copy.copy(guider)  # the caller's guider stays as it is, also after an interrupt
    recording.model_options = _recording_options(guider.model_options, start, tape)
    # Inpainting checkpoints look at the latent image: show them the picture, not noise.
    picture = trajectory.latent_at_step(0) if trajectory.sigmas[-1] == 0 else torch.zeros_like(start)
    torch.manual_seed(seed)  # as the host's noise nodes: some samplers draw from the global generator
    samples, _ = sample_counted(recording, torch.zeros_like(start), picture, sampler, levels, seed, where)
    recorded = _at_levels(tape.read(), levels, start)
    return trajectory.continued(levels, recorded), intermediate(samples)


def latent_at_step(
    trajectory: Trajectory, step: int, predict: bool = False, where: str = "Trajectory To Latent"
) -> Tensor:
    """The latent (B, C, H, W) `step` steps of noise above the picture, as a LATENT holds it.

    With `predict`, the clean latent that the trajectory heads for at that step.
    Raises ValueError for a step that the trajectory does not have.
    """
    try:
        samples = trajectory.latent_at_step(step, predict)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return intermediate(samples)


def intermediate(samples: Tensor) -> Tensor:
    """Where and how the host keeps what travels between nodes."""
    return samples.to(
        device=comfy.model_management.intermediate_device(), dtype=comfy.model_management.intermediate_dtype()
    )


def _recording_options(model_options: dict[str, Any], start: Tensor, tape: _Tape) -> dict[str, Any]:
    """A copy of a guider's options that makes any sampler start at x = `start` and records its way.

    Our wrappers are put first, i.e. outside of those of other nodes: what is recorded is
    what the guider is finally asked and what the sampling finally returns.
    """
    evaluated: list[Tensor] = []

    def watch(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        evaluated[:] = (timestep, x)
        return executor(x, timestep, *args, **kwargs)

    def start_and_record(
        executor: Any,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        end = sigmas[-1].clone()  # uni_pc overwrites the last σ

        def record(step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
            # Every sampler of the host reports after the first evaluation of a step. What
            # it evaluated is its state; what it reports is not always (ipndm, ipndm_v and
            # deis report their start at every step, uni_pc another scaling).
            tape.record(*(evaluated or (sigmas[step], x)))
            if callback is not None:
                callback(step, denoised, x, total_steps)

        # Samplers start at noise·σ + latent: no noise and x for the latent is x, exactly.
        x = start.to(device=noise.device, copy=True)
        samples = executor(model_wrap, sigmas, extra_args, record, torch.zeros_like(x), x, *args, **kwargs)
        tape.record(end, samples)
        return samples

    options = comfy.model_patcher.create_model_options_clone(model_options)
    wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    for kind, wrapper in ((_Wrappers.SAMPLER_SAMPLE, start_and_record), (_Wrappers.PREDICT_NOISE, watch)):
        wrappers[kind] = {_WRAPPER_KEY: [wrapper], **wrappers.get(kind, {})}
    return options


def _at_levels(recorded: list[tuple[float, Tensor]], levels: Sequence[float], start: Tensor) -> list[Tensor]:
    """The latents at the schedule's points from those that a sampler passed through, in any order."""
    by_sigma = {levels[0]: start}
    for sigma, x in recorded:
        if same_sigma(sigma, levels[0]) and torch.allclose(x, start, atol=1e-5 * sigma):
            continue  # the start itself, or uni_pc's rounding of it: share the trajectory's own
        known = next((other for other in by_sigma if same_sigma(other, sigma)), sigma)
        by_sigma[known] = x
    ordered = sorted(by_sigma, reverse=True)
    passed = Trajectory(ordered, [by_sigma[sigma] for sigma in ordered])
    return [passed.at(level) for level in levels]


def sample_counted(
    guider: comfy.samplers.CFGGuider,
    noise: Tensor,
    latent: Tensor,
    sampler: comfy.samplers.Sampler,
    levels: Sequence[float],
    seed: int,
    where: str,
    pictures: int | None = None,
) -> tuple[Tensor, int]:
    """`guider.sample` as SamplerCustomAdvanced calls it, with its progress bar and previews.

    Receives the noise and latent (B, C, H, W) that `guider.sample` takes, and descending levels.
    Returns what it returns, and how many pictures went through the UNet. What that is for each
    of `pictures`, by default the batch, goes to the host's log. `guider` must be a copy of our
    own: its options are replaced.
    """
    evaluated = 0

    def count(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal evaluated
        evaluated += len(x)
        return executor(x, *args, **kwargs)

    guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    wrappers = guider.model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    wrappers[_Wrappers.APPLY_MODEL] = {_WRAPPER_KEY: [count], **wrappers.get(_Wrappers.APPLY_MODEL, {})}
    callback = latent_preview.prepare_callback(guider.model_patcher, len(levels) - 1)
    samples = guider.sample(
        noise,
        latent,
        sampler,
        torch.tensor(levels, dtype=torch.float32),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    logging.info("Latent Layers %s: %d model evaluations per picture", where, evaluated // (pictures or len(latent)))
    return samples, evaluated
