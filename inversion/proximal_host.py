"""Proximal Guidance on ComfyUI's models: after CFG of any pack's making, beside other guidances.

The threshold acts as a post-CFG function, by taking w * (delta - prox(delta)) away from the
result: what other packs have added to the guidance, or add after it, stays, and their own
reference, the host's plain positive prediction, is not touched. `sampler_cfg_function`, of
which a model has only one, is left free.

Reconstruction pulls the sampler's own x in place, before the next evaluation sees it and once
more on what the sampler returns: for euler that is the state after each step, as published.
Of samplers that hand over a copy (UniPC) the evaluation alone sees what is pulled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..attention.schedule import PercentRange
from .host import model_family, pins
from .proximal import check_settings, edited_region, magnitude_quantile, proximal, reconstruct
from .reading import SourceLatents, hands_over_its_state
from .trajectory import Trajectory

WHO = "Proximal Guidance"
KEY = "latent_layers_proximal_guidance"


@dataclass(frozen=True)
class Settings:
    """How guidance is thresholded and how the source is pulled back to.

    mode       l0: keep what exceeds the threshold; l1: shrink by it; none: follow all
    quantile   of |delta|, each picture's own, that is the threshold
    dilation   latent cells by which M_edit grows
    strength   share of the way to the source that a step is pulled outside M_edit
    start      from where in the schedule on, in the host's percent; 0.6 is t < 400 of 1000
    """

    mode: str = "l0"
    quantile: float = 0.75
    dilation: int = 2
    strength: float = 0.1
    start: float = 0.6


class ProximalRun:
    """What belongs to one sampling run: the area of the last evaluation, and the source on the device."""

    def __init__(self, trajectory: Trajectory, schedule: list[float], like: Tensor, sampler: Any) -> None:
        self.source = SourceLatents(trajectory, schedule, like, pins())
        self.in_place = hands_over_its_state(sampler)
        self.edited: Tensor | None = None  # M_edit, (B, C, H, W)

    def pull(self, x: Tensor, sigma: float, strength: float) -> Tensor:
        """Reconstruction guidance of x (B, C, H, W) at a noise level with the last evaluation's area; in place."""
        if self.edited is None:
            return x
        return x.copy_(reconstruct(x, self.source.at(sigma), self.edited.to(x), strength))

    def prefetch_after(self, sigma: float) -> None:
        """Fetch the latent of the schedule's next level, if it will be pulled to."""
        if self.edited is not None:
            self.source.prefetch_after(sigma)


class ProximalGuidance:
    """Proximal guidance as patches of one model clone.

    Holds what the node was given; what belongs to a run (a `ProximalRun`) travels in that
    run's own options, so that an interrupted run leaves nothing behind.
    """

    def __init__(self, trajectory: Trajectory, settings: Settings) -> None:
        self.trajectory, self.settings = trajectory, settings
        self.range = PercentRange(settings.start, 1.0)
        # one key per node, so that several can act in the same run
        self._run_key = f"{KEY}_{id(self)}"

    def attach(self, model: ModelPatcher) -> None:
        """Put the patches on a model clone of one's own; none where there is nothing to do."""
        if self.settings.mode == "none" and self.settings.strength == 0:
            return
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.outer_sample)
        model.set_model_sampler_post_cfg_function(self.post_cfg)
        if self.settings.strength > 0:
            model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.sampler_sample)
            model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict_noise)
        model.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, lambda patcher: self.range.cleanup())

    def outer_sample(
        self,
        executor: Callable[..., Tensor],
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Before the model is loaded: does everything fit together? Raises ValueError where not."""
        if noise.ndim != 4:
            raise ValueError(f"{WHO}: the latent has {noise.ndim} dimensions; it works on pictures (4), not on video")
        self.trajectory.check_size(noise.shape, f"{WHO}: trajectory")
        if self.settings.strength > 0:
            sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
            levels = [sigma for sigma in sigmas.tolist() if self.range.contains(sampling, sigma)]
            self.trajectory.check_reaches(levels, WHO, ", or set recon_strength to 0")
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)

    def sampler_sample(
        self, executor: Callable[..., Tensor], guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any,
        noise: Tensor, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Around the sampler: prepare the run, and pull what is returned as every step's result is."""
        schedule = sigmas.tolist()
        run = ProximalRun(self.trajectory, schedule, noise, executor.class_obj)
        extra_args["model_options"]["transformer_options"][self._run_key] = run
        # a copy: uni_pc writes into the schedule that it is given, and that may be a node's cached output
        samples = executor(guider, sigmas.clone(), extra_args, callback, noise, *args, **kwargs)
        return run.pull(samples.clone(), schedule[-1], self.settings.strength)

    def predict_noise(
        self, executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Around every evaluation: first pull with the area of the one before."""
        run: ProximalRun | None = model_options.get("transformer_options", {}).get(self._run_key)
        if run is None:
            return executor(x, timestep, model_options, *args, **kwargs)
        self.trajectory.check_same_size(x, WHO)
        sigma = float(timestep.flatten()[0])
        x = run.pull(x if run.in_place else x.clone(), sigma, self.settings.strength)
        run.edited = None  # no area where this evaluation has no guidance
        denoised = executor(x, timestep, model_options, *args, **kwargs)
        run.prefetch_after(sigma)
        return denoised

    def post_cfg(self, args: dict[str, Any]) -> Tensor:
        """After CFG: take away what prox drops, and note where guidance is followed."""
        result: Tensor = args["denoised"]
        if args["uncond"] is None:
            return result  # at scale 1 the host does not evaluate the negative: there is no delta
        delta = args["cond_denoised"] - args["uncond_denoised"]
        threshold = magnitude_quantile(delta, self.settings.quantile)
        run: ProximalRun | None = args["model_options"].get("transformer_options", {}).get(self._run_key)
        if run is not None and self.range.contains(args["model"].model_sampling, float(args["sigma"].flatten()[0])):
            run.edited = edited_region(delta, threshold, self.settings.dilation)
        if self.settings.mode == "none":
            return result
        return result - args["cond_scale"] * (delta - proximal(delta, threshold, self.settings.mode))


def apply_proximal_guidance(
    model: ModelPatcher, trajectory: Trajectory, settings: Settings = Settings()
) -> ModelPatcher:
    """A clone of a model whose CFG follows only the strongest of what the prompt asks for (ProxEdit).

    trajectory   of the source, made with the schedule that is sampled; it is pulled back to

    Raises ValueError for settings out of range and a trajectory of another model; one of
    another size, schedule or batch is found when sampling begins, before the model is loaded.
    """
    check_settings(settings.quantile, settings.dilation, settings.strength, settings.start, settings.mode, WHO)
    trajectory.check_model(model_family(model, WHO), f"{WHO}: trajectory")
    patched = model.clone()
    ProximalGuidance(trajectory, settings).attach(patched)
    return patched
