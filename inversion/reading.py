"""A trajectory's latents where a sampling run is: one at a time on its device, the next one fetched in advance."""

from collections.abc import Sequence

from torch import Tensor

from .trajectory import Trajectory


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
        following = next((level for level in self._schedule if level < sigma), None)
        if following is not None and following >= self.lowest:
            self.fetched = (following, self._fetch(following))

    def _fetch(self, sigma: float) -> Tensor:
        # solvers that compute σs by logarithms, or add churn, land a little outside
        latent = self._trajectory.at(max(min(sigma, self._highest), self.lowest))
        if self._pinned:
            latent = latent.pin_memory()
        return latent.to(self._device, self._dtype, non_blocking=True)
