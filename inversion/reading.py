"""A trajectory's latents where a sampling run is: one at a time on its device, the next one fetched in advance."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .trajectory import Trajectory

_COPIES = ("sample_unipc", "sample_unipc_bh2")


def function_name(sampler: Any) -> str:
    """Name of the function that a SAMPLER of the host's calls; empty for other kinds."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def hands_over_its_state(sampler: Any) -> bool:
    """Whether a sampler evaluates the model on its own x, so that what is written there stays.

    UniPC hands over a copy, scaled, and measures the prediction against it.
    """
    return function_name(sampler) not in _COPIES


class SourceLatents:
    """x_src(σ) for one sampling run.

    The latent for the schedule's next σ is fetched when the model has been given its work, so the
    copy runs beside the computation.
    """

    def __init__(self, trajectory: Trajectory, schedule: Sequence[float], like: Tensor, pinned: bool) -> None:
        """schedule: the run's descending σs; like: gives device and dtype.

        pinned: latents go to a GPU through page-locked memory.
        """
        self._pinned = pinned and like.device.type == "cuda"
        self._trajectory, self._schedule = trajectory, schedule
        self._device, self._dtype = like.device, like.dtype
        self._highest, self.lowest = float(trajectory.sigmas[0]), float(trajectory.sigmas[-1])
        self.fetched: tuple[float, Tensor] | None = None

    def at(self, sigma: float) -> Tensor:
        """x_src(σ), (B or 1, C, H, W), on the run's device."""
        if self.fetched is None or self.fetched[0] != sigma:
            self.fetched = (sigma, self._fetch(sigma))
        return self.fetched[1]

    def prefetch_after(self, sigma: float) -> None:
        """Fetch the latent of the schedule's next σ below this one, where the trajectory has it."""
        following = self._next(sigma)
        if following is not None and following >= self.lowest:
            self.at(following)

    def heading(self, sigma: float) -> Tensor:
        """The prediction at σ by which an Euler step leads from the source's latent there to its next one."""
        following, here = self._next(sigma), self.at(sigma)
        if following is None:
            return here
        return here - sigma / (sigma - following) * (here - self.at(following))

    def _next(self, sigma: float) -> float | None:
        return next((level for level in self._schedule if level < sigma), None)

    def _fetch(self, sigma: float) -> Tensor:
        # solvers that compute σs by logarithms, or add churn, land a little outside
        latent = self._trajectory.at(max(min(sigma, self._highest), self.lowest))
        if self._pinned:
            latent = latent.pin_memory()
        return latent.to(self._device, self._dtype, non_blocking=True)
