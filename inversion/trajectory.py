"""Trajectory: the noisy latents of one image (or image batch) at every σ of a schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

# Two σ closer than this (relative) are the same point: float32 arithmetic on schedules,
# e.g. a trip through log σ, moves a value by about 1e-6.
SIGMA_TOLERANCE = 1e-5

# At or below this σ a latent counts as clean: for 0 the host's FlipSigmas writes 0.0001, and its
# uni_pc 0.001.
CLEAN_SIGMA = 1.01e-3


class LatentFormat(Protocol):
    """What a trajectory needs of the host's latent format: model space to LATENT."""

    def process_in(self, latent: Tensor) -> Tensor: ...

    def process_out(self, latent: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ModelFamily:
    """A cheap fingerprint: models that differ in it cannot share a trajectory."""

    latent_format: str
    channels: int
    prediction: str
    sigma_max: float

    def matches(self, other: "ModelFamily") -> bool:
        """Same latent space, prediction type and noise range."""
        names = (self.latent_format, self.channels, self.prediction)
        other_names = (other.latent_format, other.channels, other.prediction)
        return names == other_names and math.isclose(self.sigma_max, other.sigma_max, rel_tol=1e-3)

    def __str__(self) -> str:
        return f"{self.latent_format}, {self.channels} channels, {self.prediction}, σ up to {self.sigma_max:.4g}"


def descending(sigmas: Tensor | Sequence[float], where: str) -> list[float]:
    """The σs of a schedule, noisiest first, for a schedule given in either direction.

    A lowest σ that only stands for 0 (FlipSigmas writes 0.0001) becomes 0.
    `where` names node and input in errors, e.g. "Invert: sigmas".
    Raises ValueError for fewer than two σs, a negative or non-finite one, or a schedule
    that does not go strictly in one direction.
    """
    levels = [float(sigma) for sigma in sigmas]
    if len(levels) < 2:
        raise ValueError(f"{where} has {len(levels)} value(s); a schedule needs at least 2 (one step)")
    if levels[0] < levels[-1]:
        levels.reverse()
    if not all(math.isfinite(level) and level >= 0 for level in levels):
        raise ValueError(f"{where} has a negative or non-finite value; connect a scheduler's output")
    for upper, lower in pairwise(levels):
        if upper <= lower:
            raise ValueError(
                f"{where} is not strictly monotonic: {upper:.6g} is followed by {lower:.6g}; "
                "connect a scheduler's output, unmodified or split"
            )
    if levels[-1] <= CLEAN_SIGMA:
        levels[-1] = 0.0
    return levels


def same_sigma(a: float, b: float) -> bool:
    """Whether two σs are one point of a schedule; everything that counts as clean is one point."""
    return math.isclose(a, b, rel_tol=SIGMA_TOLERANCE) or 0 <= min(a, b) <= max(a, b) <= CLEAN_SIGMA


class Trajectory:
    """The noisy latents x(σ_i) of an image at every σ_i of a schedule. Immutable.

    x is the model's own noisy latent (x = z + σ·ε), not LATENT's units: nothing has to be
    undone before a model can be evaluated at it. The σs are sorted as the host's SIGMAS,
    noisiest first. Every x is its own tensor (B, C, H, W), float32, in system memory, so
    parts and merges of trajectories share latents and copy nothing. Whoever reads a latent
    must not write into it.
    """

    def __init__(
        self,
        sigmas: Tensor | Sequence[float],
        latents: Sequence[Tensor],
        family: ModelFamily | None = None,
        latent_format: LatentFormat | None = None,
    ) -> None:
        """Receives strictly descending σs (T+1) and as many latents (B, C, H, W), float32.

        `family` and `latent_format` tell where the latents are from and how they become a
        LATENT; without a format x is the LATENT.
        Raises ValueError when σs and latents do not fit together or to each other.
        """
        levels = tuple(float(sigma) for sigma in sigmas)
        if not levels or len(levels) != len(latents):
            raise ValueError(f"trajectory: {len(levels)} sigmas for {len(latents)} latents; one latent per sigma")
        if any(upper <= lower for upper, lower in pairwise(levels)):
            raise ValueError("trajectory: sigmas must be strictly descending, noisiest first")
        shape = latents[0].shape
        for latent in latents:
            if latent.shape != shape:
                raise ValueError(f"trajectory: latents of {tuple(shape)} and {tuple(latent.shape)}; all must be alike")
            if latent.dtype != torch.float32 or latent.device.type != "cpu":
                raise ValueError("trajectory: latents must be float32 in system memory")
        self._levels = levels
        self._latents = tuple(latents)
        self.family = family
        self.latent_format = latent_format

    def __repr__(self) -> str:
        high, low = self._levels[0], self._levels[-1]
        return f"Trajectory({self.steps} steps, σ {high:.4g} … {low:.4g}, latents {tuple(self.shape)})"

    @property
    def sigmas(self) -> Tensor:
        """The σs (T+1), float32, noisiest first; a copy."""
        return torch.tensor(self._levels, dtype=torch.float32)

    @property
    def latents(self) -> tuple[Tensor, ...]:
        """The latents (B, C, H, W), noisiest first."""
        return self._latents

    @property
    def steps(self) -> int:
        """Number of steps from the noisiest to the cleanest latent (one less than σs)."""
        return len(self._levels) - 1

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W) of every latent."""
        return self._latents[0].shape

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the latent grid."""
        return tuple(self.shape[2:])

    @property
    def nbytes(self) -> int:
        """Bytes of system memory that the latents occupy (shared ones counted here too)."""
        return sum(latent.nbytes for latent in self._latents)

    @property
    def noisiest(self) -> Tensor:
        """The latent at the highest σ, (B, C, H, W)."""
        return self._latents[0]

    @property
    def clean(self) -> Tensor:
        """The latent at σ = 0, (B, C, H, W). Raises ValueError when the trajectory ends earlier."""
        if self._levels[-1] > 0:
            raise ValueError(
                f"trajectory ends at σ {self._levels[-1]:.4g}, it has no clean latent; "
                "sample it down to a schedule's final 0"
            )
        return self._latents[-1]

    def index(self, sigma: float) -> int | None:
        """Position of σ among the schedule's points (0 = noisiest), None when it is not one."""
        for position, level in enumerate(self._levels):
            if same_sigma(level, sigma):
                return position
        return None

    def at(self, sigma: float) -> Tensor:
        """x(σ), (B, C, H, W): as stored at a point of the schedule, else interpolated.

        Between two points x is linear in σ. An Euler step moves along exactly that line
        (x' = x + (σ' − σ)·ε), and a DDIM step is an Euler step in σ, so for DDIM
        trajectories a solver that evaluates between the points meets what the inversion
        passed through.
        Raises ValueError outside the trajectory's range.
        """
        position = self.index(sigma)
        if position is not None:
            return self._latents[position]
        if not self._levels[-1] < sigma < self._levels[0]:
            raise ValueError(
                f"trajectory: σ {sigma:.6g} is outside its range "
                f"{self._levels[0]:.6g} … {self._levels[-1]:.6g}; use (part of) the schedule it was made with"
            )
        upper = max(i for i, level in enumerate(self._levels) if level > sigma)
        high, low = self._levels[upper], self._levels[upper + 1]
        return torch.lerp(self._latents[upper + 1], self._latents[upper], (sigma - low) / (high - low))

    def at_step(self, step: int) -> Tensor:
        """The latent `step` steps above the picture: 0 = cleanest, `steps` = noisiest; (B, C, H, W).

        Raises ValueError for a step that the trajectory does not have.
        """
        if not 0 <= step <= self.steps:
            raise ValueError(
                f"step is {step}, but the trajectory has steps 0 (least noise) to {self.steps} (most noise)"
            )
        return self._latents[self.steps - step]

    def predicted(self, step: int = 0) -> Tensor:
        """The clean latent that the trajectory heads for `step` steps above its end; (B, C, H, W).

        An Euler step goes along a straight line in σ to the model's prediction; the line
        through a point and the noisier one before it, continued to σ = 0, is that prediction.
        At the noisiest it is the line to the next cleaner one.
        Raises ValueError for a step that the trajectory does not have.
        """
        x, position = self.at_step(step), self.steps - step
        if self._levels[position] == 0 or self.steps == 0:
            return x
        below = max(position, 1)
        upper, lower = self._levels[below - 1], self._levels[below]
        before = self._latents[below - 1]
        return before - upper * (before - self._latents[below]) / (upper - lower)

    def latent_at_step(self, step: int, predict: bool = False) -> Tensor:
        """As `at_step`, or `predicted`, in LATENT's units."""
        x = self.predicted(step) if predict else self.at_step(step)
        return x if self.latent_format is None else self.latent_format.process_out(x)

    def part(self, high: float = math.inf, low: float = 0.0) -> "Trajectory":
        """The points with low ≤ σ ≤ high; shares their latents. ValueError when there are none."""
        kept = [
            i
            for i, level in enumerate(self._levels)
            if low <= level <= high or same_sigma(level, high) or same_sigma(level, low)
        ]
        if not kept:
            raise ValueError(f"trajectory: no point of {self!r} lies in σ {high:.4g} … {low:.4g}")
        return self._like([self._levels[i] for i in kept], [self._latents[i] for i in kept])

    def continued(self, sigmas: Tensor | Sequence[float], latents: Sequence[Tensor]) -> "Trajectory":
        """A trajectory that follows this one above sigmas[0] and the given latents from there.

        Receives descending σs and their latents (B, C, H, W). What this trajectory had at
        or below sigmas[0] is left out: it belongs to another picture.
        """
        levels = [float(sigma) for sigma in sigmas]
        kept = [i for i, level in enumerate(self._levels) if level > levels[0] and not same_sigma(level, levels[0])]
        return self._like([self._levels[i] for i in kept] + levels, [self._latents[i] for i in kept] + list(latents))

    def check_schedule(self, sigmas: Tensor | Sequence[float], where: str) -> None:
        """Raise ValueError unless the descending σs start at a point of this trajectory and follow it.

        Below the trajectory's lowest σ the schedule is free: that part is still to be made.
        `where` names node and input, e.g. "Sample: sigmas".
        """
        remedy = (
            "give it the schedule that the trajectory was made with, or a part of it "
            "(same scheduler, steps and denoise; SplitSigmas for a part)"
        )
        for position, sigma in enumerate(float(sigma) for sigma in sigmas):
            if self.index(sigma) is not None or (position > 0 and sigma < self._levels[-1]):
                continue
            nearest = min(self._levels, key=lambda level: abs(level - sigma))
            raise ValueError(
                f"{where}: σ {sigma:.6g} is not a point of the trajectory "
                f"({self.steps} steps, σ {self._levels[0]:.4g} … {self._levels[-1]:.4g}, nearest {nearest:.6g}); "
                + remedy
            )

    def check_reaches(self, sigmas: Sequence[float], who: str, remedy: str) -> None:
        """Raise ValueError unless this trajectory has all of the descending σs, as `check_schedule` and to the last.

        `who` names the node, `remedy` says what to do about one that ends too early.
        """
        if not sigmas:
            return
        self.check_schedule(sigmas, f"{who}: trajectory")
        if sigmas[-1] < self._levels[-1] * 0.999:
            raise ValueError(
                f"{who}: the trajectory ends at sigma {self._levels[-1]:.4g}, but sampling needs it down to "
                f"{sigmas[-1]:.4g}; use a trajectory of the whole schedule{remedy}"
            )

    def check_size(self, shape: Sequence[int], where: str) -> None:
        """Raise ValueError unless latents of `shape` (B, C, H, W) fit: same grid and channels, batch equal or 1."""
        batch, channels, *size = shape
        if channels != self.shape[1]:
            raise ValueError(
                f"{where}: latents have {channels} channels, the trajectory's have {self.shape[1]}; "
                "make both with the same checkpoint and VAE"
            )
        if tuple(size) != self.size:
            raise ValueError(
                f"{where}: latents are {_as_size(size)}, the trajectory's are {_as_size(self.size)}; "
                "invert a picture of the same size"
            )
        if self.batch not in (1, batch):
            raise ValueError(
                f"{where}: {batch} latent(s) in the batch, {self.batch} in the trajectory; "
                "use as many pictures, or a trajectory of one"
            )

    def check_same_size(self, x: Tensor, who: str) -> None:
        """Raise ValueError where a sampler's x (B, C, H, W) has changed its size on the way."""
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(
                f"{who}: the sampler has changed the picture's size on the way, from {_as_size(self.size)} to "
                f"{_as_size(x.shape[-2:])}; choose one that does not"
            )

    def check_model(self, family: ModelFamily, where: str) -> None:
        """Raise ValueError unless a model of `family` can continue this trajectory."""
        if self.family is not None and not self.family.matches(family):
            raise ValueError(
                f"{where}: the model is of another family ({family}) than the one that made the trajectory "
                f"({self.family}); invert the picture with this model"
            )

    def _like(self, sigmas: Sequence[float], latents: Sequence[Tensor]) -> "Trajectory":
        return Trajectory(sigmas, latents, self.family, self.latent_format)


def _as_size(size: Sequence[int]) -> str:
    """(H, W) as artists write it: width×height, in latent pixels."""
    return "×".join(str(side) for side in reversed(size)) + " latent pixels"
