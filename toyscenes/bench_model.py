"""How good the toy model is: its autoencoder, and whether pictures follow their captions."""

import comfy.sample
import torch

from .measure import find_objects, follows_caption, psnr
from .model import WEIGHTS, settings
from .pipeline import SCHEDULER, Toy, batches, images, mean, seeded_noise
from .scenes import random_scene

STEPS, CFG = 30, 3.0


def generate(toy: Toy, captions: list[str], seeds: list[int], width: int = 256, height: int = 256) -> torch.Tensor:
    """IMAGEs of captions by the host's KSampler: dpmpp_2m, 30 steps, cfg 3."""
    positive = [toy.condition(caption) for caption in captions]
    tensors = torch.cat([c[0][0] for c in positive])
    empty = torch.zeros(len(seeds), toy.vae.latent_channels, height // 8, width // 8)
    noise = seeded_noise(empty, seeds)
    conditions = [[tensors, positive[0][0][1]]]
    latents = comfy.sample.sample(
        toy.model, noise, STEPS, CFG, "dpmpp_2m", SCHEDULER, conditions, toy.condition(), empty, disable_pbar=True
    )
    return toy.decode(latents)


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
