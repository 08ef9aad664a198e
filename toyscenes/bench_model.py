"""How good the toy model is: its autoencoder, and whether pictures follow their captions."""

import comfy.sample
import torch

from .measure import find_objects, follows_caption, psnr
from .model import WEIGHTS, settings
from .pipeline import SCHEDULER, Toy, batches, images, mean
from .scenes import random_scene

SAMPLER, STEPS, CFG = "dpmpp_2s_ancestral", 30, 4.0


def generate(toy: Toy, captions: list[str], seeds: list[int]) -> torch.Tensor:
    """IMAGEs of captions, each as the host's KSampler makes it of its seed: dpmpp_2s_ancestral, 30 steps, cfg 4."""
    empty = torch.zeros(1, toy.vae.latent_channels, 32, 32)
    latents = [
        comfy.sample.sample(
            toy.model, comfy.sample.prepare_noise(empty, seed), STEPS, CFG, SAMPLER, SCHEDULER,
            toy.condition(caption), toy.condition(), empty, disable_pbar=True, seed=seed,
        )
        for caption, seed in zip(captions, seeds, strict=True)
    ]  # fmt: skip
    return toy.decode(torch.cat(latents))


def run(seeds: range) -> dict:
    """Figures on the captions and pictures of scenes that training never saw."""
    toy = Toy()
    rebuilt, follows, objects, found, truly = [], [], 0, 0, []
    for part in batches(list(seeds)):
        scenes = [random_scene(seed) for seed in part]
        sources = images(scenes)
        rebuilt += [psnr(a, b) for a, b in zip(toy.decode(toy.encode(sources)).numpy(), sources.numpy(), strict=True)]
        pictures = generate(toy, [scene.caption() for scene in scenes], part)
        for scene, picture, source in zip(scenes, pictures.numpy(), sources.numpy(), strict=True):
            follows.append(follows_caption(scene, picture))
            truly.append(follows_caption(scene, source))
            seen = [(f.colour, f.shape) for f in find_objects(picture)]
            for thing in scene.objects:
                objects += 1
                if (thing.colour, thing.shape) in seen:
                    seen.remove((thing.colour, thing.shape))
                    found += 1
    return {
        "seeds": f"{seeds[0]}-{seeds[-1]}",
        "vae_psnr": mean(rebuilt),
        "caption_accuracy": mean(follows),
        "object_accuracy": round(found / max(1, objects), 3),
        "measured_on_truth": mean(truly),
        "weights_mib": round(WEIGHTS.stat().st_size / 2**20, 2),
        "training": settings(),
    }


def table(figures: dict) -> str:
    """The figures for people."""
    rows = {
        "autoencoder, PSNR": f"{figures['vae_psnr']:.1f} dB",
        "pictures with every named object at the named count": f"{figures['caption_accuracy']:.0%}",
        "named objects found": f"{figures['object_accuracy']:.0%}",
        "the same measurement on the true pictures": f"{figures['measured_on_truth']:.0%}",
        "weights": f"{figures['weights_mib']:.1f} MiB",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(
        [f"Toy model, captions and pictures of seeds {figures['seeds']}", "", "| | |", "|---|---|", *lines]
    )
