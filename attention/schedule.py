"""When a patch acts and how strongly: the host's percent convention, and guidance over it."""

from typing import Any

from torch import Tensor


def guidance_at(progress: float, guidance: float, guidance_end: float) -> float:
    """G on the way through its range: linear from `guidance` (progress 0) to `guidance_end` (1)."""
    progress = min(max(progress, 0.0), 1.0)
    return guidance + (guidance_end - guidance) * progress


def guided(result: Tensor, masked: Tensor, plain: Tensor, guidance: float) -> Tensor:
    """Result + g * (masked - plain): key-mask guidance of DesignEdit's released code.

    With result = plain this is eps = eps_plain + g * (eps_masked - eps_plain); the same
    holds for denoised predictions, which differ from eps by a sign and a factor. At a text
    CFG above 1 `result` is the CFG result: the two guidances add up and stay independent.
    """
    return result + guidance * (masked - plain)


class PercentRange:
    """Part of the noise schedule, in the host's convention: 0.0 is pure noise, 1.0 the end.

    `sampling` is the model's model_sampling. Both ends belong to the range, as they do for
    the host's ConditioningSetTimestepRange.
    """

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end
        self._bounds: tuple[Any, float, float] | None = None

    def bounds(self, sampling: Any) -> tuple[float, float]:
        """(highest, lowest) sigma of the range."""
        # asking the host may read a number from the GPU, so it is done once per run
        if self._bounds is None or self._bounds[0] is not sampling:
            highest, lowest = (float(sampling.percent_to_sigma(percent)) for percent in (self.start, self.end))
            self._bounds = (sampling, highest, lowest)
        return self._bounds[1:]

    def contains(self, sampling: Any, sigma: float) -> bool:
        """Whether a noise level belongs to the range."""
        highest, lowest = self.bounds(sampling)
        return lowest <= sigma <= highest

    def progress(self, sampling: Any, sigma: float) -> float:
        """How far through the range a noise level is, 0 at the start and 1 at the end, in percent.

        percent_to_sigma falls steadily, so it is inverted by halving the interval.
        """
        low, high = self.start, self.end
        for _ in range(24):
            middle = (low + high) / 2
            if float(sampling.percent_to_sigma(middle)) > sigma:
                low = middle
            else:
                high = middle
        return ((low + high) / 2 - self.start) / (self.end - self.start)

    def cleanup(self) -> None:
        """Let go of the model."""
        self._bounds = None


def check_range(start: float, end: float, who: str, names: tuple[str, str] = ("start", "end")) -> None:
    """Raise ValueError unless 0 <= start < end <= 1."""
    if not (0.0 <= start <= 1.0 and 0.0 <= end <= 1.0):
        raise ValueError(f"{who}: {names[0]} is {start:g} and {names[1]} is {end:g}; both are parts of 1, from 0 to 1")
    if start >= end:
        raise ValueError(f"{who}: {names[0]} is {start:g} and {names[1]} is {end:g}; it has to start before it ends")
