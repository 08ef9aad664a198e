"""Keep Source: what lies outside the mask follows the source's own trajectory.

DesignEdit, equation 2: x <- x * M + x_src(sigma) * (1-M) after every step, x_src from the
stored trajectory of the source. A latent cell takes the largest value of the mask in it,
so that a cell which the object only touches is edited whole; the pixel composite at the
end of a graph gives its other pixels back.

A mask between 0 and 1 is the strength of the edit there. Equation 2 with a grey M at every
step would compound: after 50 steps half a mask is hardly an edit. Instead a cell follows
the source for the first 1-M of the steps and is free for the rest, as a picture that is
sampled with a strength (`denoise`) of M is, but cell by cell.

Done at the start of every evaluation of the model, which is the same thing (a step's result
is what the next evaluation gets), for any sampler:

- The sampler's own x is overwritten in place, so that its state follows equation 2 and
  what others record or preview of it does too. Every sampler of the host hands its state
  to the model. Exceptions: where the host blends for a noise mask first, and in uni_pc,
  which works in another scaling, the model is handed a copy; sa_solver corrects its state
  after the evaluation. There the model still sees equation 2, and since samplers work
  pixel by pixel, nothing but what the model sees can pass from a kept pixel to another.
- Samplers with evaluations between points of the schedule (dpm_2, dpmpp_sde, seeds ...)
  meet the trajectory interpolated at that sigma.
- The prediction is set to the clean source where a cell is kept: previews show it, and
  solvers that look back at predictions find it.
- What the sampler returns is blended once more at the schedule's last sigma, so that a
  range up to the end returns the clean source exactly where M is 0.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..inversion.reading import SourceLatents, hands_over_its_state
from ..inversion.trajectory import Trajectory
from ..masks.grid import check_aspect, check_batch, cover
from .schedule import PercentRange

WHO = "Keep Source"


def blend(x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Equation 2, x * M + x_src * (1-M), for x (B, C, H, W) and M (B or 1, 1, H, W).

    Exactly x_src where M is 0 and exactly x where M is 1 (lerp computes it from the nearer end).
    """
    return torch.lerp(source.expand_as(x), x, mask.expand_as(x))


def free(mask: Tensor, done: float, steps: int) -> Tensor:
    """How far cells are free after `done` of `steps` steps: M of equation 2, (B, 1, h, w) as `mask`.

    1 from the step on at which 1 - mask of the steps are done, 0 before; in the step that
    this falls into, the part of it that is left. Masks of 0 and 1 are so at every step.
    """
    return ((mask * steps - (steps - done) + 1).clamp(0, 1) * (mask > 0)).to(mask.dtype)


class KeepSourceRun:
    """One sampling run: masks, and the source's latents where x is."""

    def __init__(
        self,
        trajectory: Trajectory,
        mask: Tensor,
        schedule: list[float],
        acting: list[float],
        like: Tensor,
        pinned: bool = True,
        in_place: bool = True,
    ) -> None:
        """mask: (B or 1, H, W) on the latent grid; schedule: descending sigmas; like: gives device and dtype.

        `acting` are the schedule's sigmas at which the source is kept; `pinned` is that of `SourceLatents`;
        `in_place`: x as the model is given it is the sampler's own.
        """
        self.source = SourceLatents(trajectory, schedule, like, pinned)
        self._acting, self._in_place = acting, in_place
        self._soft = bool(((mask > 0) & (mask < 1)).any())
        self._mask = mask.unsqueeze(1).to(like.device, like.dtype)
        self._clean = self.source.at(0.0) if self.source.lowest == 0 else None

    def mask(self, sigma: float) -> Tensor:
        """M at a noise level, (B or 1, 1, h, w)."""
        if not self._soft or len(self._acting) < 2:
            return self._mask
        return free(self._mask, self._done(sigma), len(self._acting) - 1)

    def _done(self, sigma: float) -> float:
        """Steps that lie behind at a noise level; evaluations between points of the schedule count in part."""
        levels = self._acting
        following = next((i for i, level in enumerate(levels) if level <= sigma), len(levels) - 1)
        if following == 0 or levels[following] == sigma:
            return following
        above, below = levels[following - 1], levels[following]
        return following - min(1.0, max(0.0, (sigma - below) / (above - below)))

    def keep_state(self, x: Tensor, sigma: float) -> Tensor:
        """Equation 2 on the sampler's state (B, C, H, W); in place, returns it."""
        kept = blend(x, self.source.at(sigma), self.mask(sigma))
        if not self._in_place:
            self._moved = kept - x
        return x.copy_(kept)

    def keep_prediction(self, denoised: Tensor, sigma: float) -> Tensor:
        """The clean source where cells are kept, the model's prediction elsewhere.

        A sampler whose state cannot be written measures the prediction D from the copy x' that was,
        and takes it for x - (x' - D): it is given D + x' - x, with the D that leads along the source's way.
        """
        clean = self._clean if self._in_place else self.source.heading(sigma)
        if clean is not None:
            denoised = torch.where(self.mask(sigma) == 0, clean, denoised)
        return denoised if self._in_place else denoised + self._moved

    def finish(self, samples: Tensor, sigma: float, sampling: Any) -> Tensor:
        """Equation 2 on what the sampler returns, at the schedule's last sigma."""
        # samplers return x; models whose x is scaled (flow) have that undone by the host
        end = torch.as_tensor(sigma, dtype=samples.dtype, device=samples.device)
        source = sampling.inverse_noise_scaling(end, self.source.at(sigma))
        return blend(samples, source.to(samples), self.mask(sigma).to(samples))


class KeepSource:
    """Equation 2 as wrappers of the host's sampling, for one model clone.

    Holds what the node was given; what belongs to a run (a `KeepSourceRun`) travels in that
    run's own options, so that an interrupted run leaves nothing behind.
    """

    def __init__(self, trajectory: Trajectory, mask: Tensor, start: float, end: float, pinned: bool) -> None:
        """mask: (B, H, W) float32 at image size, 1 = edit here; start, end in percent of the schedule.

        pinned  the source may be copied to a GPU through page-locked memory
        """
        self.pinned = pinned
        self.trajectory = trajectory
        self.mask = mask
        self.range = PercentRange(start, end)
        # one key per node, so that several can act in the same run
        self._run_key = f"latent_layers_keep_source_{id(self)}"

    def outer_sample(
        self,
        executor: Callable[..., Tensor],
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args,
        **kwargs,
    ) -> Tensor:
        """Before the model is loaded: does everything fit together? Raises ValueError where not."""
        if noise.ndim != 4:
            raise ValueError(f"{WHO}: the latent has {noise.ndim} dimensions; pictures (4) can be kept, not video")
        self.trajectory.check_size(noise.shape, f"{WHO}: trajectory")
        check_batch(self.mask, noise.shape[0], WHO)
        check_aspect(self.mask, noise.shape, WHO)
        sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
        levels = [sigma for sigma in sigmas.tolist() if self.range.contains(sampling, sigma)]
        self.trajectory.check_reaches(levels, WHO, ", or an earlier end")
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)

    def sampler_sample(
        self,
        executor: Callable[..., Tensor],
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Around the sampler: prepare the run, keep the source in what is returned."""
        schedule = sigmas.tolist()
        sampling = guider.inner_model.model_sampling
        mask = cover(self.mask, noise.shape[-2], noise.shape[-1])
        acting = [sigma for sigma in schedule if self.range.contains(sampling, sigma)]
        in_place = hands_over_its_state(executor.class_obj)
        run = KeepSourceRun(self.trajectory, mask, schedule, acting, noise, self.pinned, in_place)
        extra_args["model_options"]["transformer_options"][self._run_key] = run
        # a copy: uni_pc writes into the schedule that it is given, and that may be a node's cached output
        samples = executor(guider, sigmas.clone(), extra_args, callback, noise, *args, **kwargs)
        if self.range.contains(sampling, schedule[-1]):
            samples = run.finish(samples, schedule[-1], sampling)
        return samples

    def predict_noise(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        *args,
        **kwargs,
    ) -> Tensor:
        """Around every evaluation: equation 2 before, the kept prediction after."""
        run: KeepSourceRun | None = model_options.get("transformer_options", {}).get(self._run_key)
        sigma = float(timestep.flatten()[0])
        sampling = executor.class_obj.inner_model.model_sampling
        if run is None or not self.range.contains(sampling, sigma):
            return executor(x, timestep, model_options, *args, **kwargs)
        self.trajectory.check_same_size(x, WHO)
        x = run.keep_state(x, sigma)
        denoised = run.keep_prediction(executor(x, timestep, model_options, *args, **kwargs), sigma)
        run.source.prefetch_after(sigma)
        return denoised

    def cleanup(self) -> None:
        """Let go of the model (called when sampling ends, also on an error)."""
        self.range.cleanup()
