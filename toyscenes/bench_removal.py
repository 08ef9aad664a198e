"""Removal with the shipped defaults, beside the host's own inpainting on the same model, steps and prompt."""

from typing import Any

import torch
from torch import Tensor

from ..nodes.attention import KeyMaskedSelfAttention
from .pipeline import STEPS, Toy, batches, mean
from .removal import FAILURE, RemovalSet, composite, removal_set, remove


def node_defaults() -> dict:
    """The settings that Key-Masked Self-Attention has when it is dropped into a graph."""
    inputs: list[Any] = KeyMaskedSelfAttention.define_schema().inputs
    given = {i.id: i.default for i in inputs if hasattr(i, "default")}
    return {
        "mode": given["mode"],
        "guidance": given["guidance"],
        "guidance_end": given["guidance_end"] if given["guidance_end"] >= 0 else None,
        "start": given["start_percent"],
        "end": given["end_percent"],
    }


def failures(values: list[float]) -> float:
    """Share of scenes that a removal spoiled."""
    return mean(value < FAILURE for value in values)


def difference_outside(data: RemovalSet, pictures: Tensor) -> float:
    """Largest change of a pixel where the mask is 0."""
    return float((pictures - data.sources).abs()[data.masks == 0].max())


def run(seeds: range) -> dict:
    """Mean figures over the seeds' scenes; PSNR in dB inside the mask."""
    toy, settings = Toy(), node_defaults()
    inside: dict[str, list[float]] = {name: [] for name in ("ours", "ours_raw", "source", "host", "host_raw")}
    outside, evaluations = 0.0, []
    with torch.inference_mode():
        for part in batches(list(seeds)):
            data = removal_set(toy, part)
            before = toy.samples
            ours = remove(toy, data, **settings)
            evaluations.append((toy.samples - before) / len(part))
            host = composite(data, toy.decode(toy.inpaint(data.latents, data.masks, part)))
            for name, pictures in (("ours", ours), ("host", host)):
                inside[name] += data.psnrs(pictures)
                inside[f"{name}_raw"] += data.psnrs(pictures, raw=True)
            inside["source"] += data.psnrs(data.sources)
            outside = max(outside, difference_outside(data, ours))
    return {
        "seeds": f"{seeds[0]}-{seeds[-1]}",
        "settings": settings,
        "psnr_inside": mean(inside["ours"]),
        "psnr_inside_raw": mean(inside["ours_raw"]),
        "psnr_source": mean(inside["source"]),
        "psnr_host_inpaint": mean(inside["host"]),
        "psnr_host_inpaint_raw": mean(inside["host_raw"]),
        "failures": failures(inside["ours"]),
        "failures_host_inpaint": failures(inside["host"]),
        "diff_outside": outside,
        "evaluations": mean(evaluations),
        "evaluations_host_inpaint": STEPS,
    }


def table(figures: dict) -> str:
    """The figures for people."""
    rows = [
        ("untouched source", figures["psnr_source"], None, 1.0, 0),
        ("host's inpainting", figures["psnr_host_inpaint"], figures["psnr_host_inpaint_raw"],
         figures["failures_host_inpaint"], figures["evaluations_host_inpaint"]),
        ("Latent Layers", figures["psnr_inside"], figures["psnr_inside_raw"], figures["failures"],
         figures["evaluations"]),
    ]  # fmt: skip
    lines = [
        f"Removal, seeds {figures['seeds']}, {STEPS} steps, empty prompt; PSNR inside the mask",
        "",
        "| | against the truth as the autoencoder returns it | against the raw truth | below 20 dB | evaluations |",
        "|---|---|---|---|---|",
    ]
    for name, reachable, raw, failed, evaluations in rows:
        raw_text = "" if raw is None else f"{raw:.1f} dB"
        lines.append(f"| {name} | {reachable:.1f} dB | {raw_text} | {failed:.0%} | {evaluations:.0f} |")
    lines += ["", f"Largest difference outside the mask after the composite: {figures['diff_outside']:g}"]
    return "\n".join(lines)
