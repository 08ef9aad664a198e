"""Round trip of inversion and sampling, with the empty prompt."""

import torch

from ..inversion.ddim import ddim_inversion_step
from .measure import psnr
from .pipeline import Toy, batches, images, mean
from .scenes import random_scene

WAYS = {"psnr_0": (0, False), "psnr_2": (2, False), "psnr_0_usual": (0, True)}  # refinements, published inversion


def run(seeds: range) -> dict:
    """Mean PSNR of decode(round trip) against decode(encoded source), and parity with the published equation."""
    toy = Toy()
    results: dict[str, list[float]] = {name: [] for name in WAYS}
    for part in batches(list(seeds)):
        latents = toy.encode(images(random_scene(seed) for seed in part))
        sources = toy.decode(latents).numpy()
        for name, (refinements, usual) in WAYS.items():
            trajectory = toy.invert(latents, refinements=refinements, usual=usual)
            pictures = toy.decode(toy.sample(toy.model, trajectory)).numpy()
            results[name] += [psnr(p, s) for p, s in zip(pictures, sources, strict=True)]
    return {"seeds": f"{seeds[0]}-{seeds[-1]}", **{name: mean(values) for name, values in results.items()},
            "parity_rel": parity(toy)}  # fmt: skip


def parity(toy: Toy) -> float:
    """Largest relative error of our steps against DDIM's equation in float64, on the same ε function.

    The published form works on the variance-preserving latent y = x/√(σ²+1), ā = 1/(σ²+1):
    y' = √ā'·(y − √(1−ā)·ε)/√ā + √(1−ā')·ε.
    """
    levels = toy.sigmas().flip(0)
    start = torch.randn(2, 3, 9, 13, generator=torch.Generator().manual_seed(0))

    def noise(y, sigma):  # stands for the network: any smooth function of its input and level
        return torch.sin(3 * y + sigma) + 0.5 * y.flip(-1)

    x, y = start.clone(), start.double() / float(levels[0] ** 2 + 1) ** 0.5
    worst = 0.0
    for low, high in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        x = ddim_inversion_step(x, low, high, lambda v, s: noise(v / (s**2 + 1) ** 0.5, s))
        a, b = 1 / (low**2 + 1), 1 / (high**2 + 1)
        epsilon = noise(y, high)
        y = b**0.5 * (y - (1 - a) ** 0.5 * epsilon) / a**0.5 + (1 - b) ** 0.5 * epsilon
        truth = y * (high**2 + 1) ** 0.5
        worst = max(worst, float((x - truth).abs().max() / truth.abs().max()))
    return worst


def table(figures: dict) -> str:
    """The figures for people."""
    names = {"psnr_0_usual": "published inversion", "psnr_0": "Invert", "psnr_2": "Invert, 2 refinements"}
    rows = [f"| {name} | {figures[key]:.1f} dB | {50 * (1 + WAYS[key][0])} |" for key, name in names.items()]
    head = [f"Round trip over 50 steps, seeds {figures['seeds']}", "", "| | PSNR | evaluations to invert |"]
    return "\n".join(
        [
            *head,
            "|---|---|---|",
            *rows,
            f"\nDDIM equation in float64: largest relative error {figures['parity_rel']:.1e}",
        ]
    )
