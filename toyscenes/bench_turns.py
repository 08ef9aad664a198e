"""Many turns of editing, and soft masks: what drifts where nothing was to change, and how strength follows a mask."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..attention.host import apply_keep_source
from ..masks.grid import dilate
from ..masks.threshold import threshold_changes
from .backgrounds import KINDS
from .pipeline import Toy, batches, images, mean
from .scenes import COLOURS, SHAPES, Scene, random_scene
from .text_run import fresh_start, guided

TURNS = 10
STEPS = 25  # of each turn's inversion and of its edit
SCENES = 32  # of the seeds
COLUMNS, ROWS = 4, 3  # places for edits
PLACE = (32, 48)  # width and height in pixels
MARGIN = 8  # pixels around a place that an edit in it may change, as elsewhere in the masks' benchmark
_STREAM, _RAMP = 9, 10  # keep these draws apart from other tasks' of the same seed

Turn = Callable[[Tensor, int], Tensor]  # pictures and number of the turn -> new pictures


def places(width: int, height: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the places: apart from each other, their borders on latent cells."""
    result = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            left = round(((column + 0.5) * width / COLUMNS - PLACE[0] / 2) / 8) * 8
            top = round(((row + 0.5) * height / ROWS - PLACE[1] / 2) / 8) * 8
            result.append((slice(top, top + PLACE[1]), slice(left, left + PLACE[0])))
    return result


def conversation(scene: Scene, seed: int) -> list[tuple[Tensor, str]]:
    """Masks (H, W) and prompts of a seed's turns: each asks for an object in a place that had no turn yet."""
    rng = np.random.default_rng([_STREAM, seed])
    result = []
    for place in rng.permutation(ROWS * COLUMNS)[:TURNS]:
        mask = torch.zeros(scene.height, scene.width)
        mask[places(scene.width, scene.height)[place]] = 1
        colour, shape = (str(rng.choice(names)) for names in (list(COLOURS), SHAPES))
        article = "an" if colour[0] in "aeiou" else "a"
        result.append((mask, f"{article} {colour} {shape} on a {scene.background.kind} background"))
    return result


def take_turns(start: Tensor, turn: Turn, threshold: bool, round_trip: Turn | None = None) -> tuple[Tensor, Tensor]:
    """Ten turns from some pictures, IMAGE (B, H, W, 3), each from the last one's result: the first and the last.

    With `round_trip` the threshold measures from what that makes of the last turn.

    What is handed on has 8 bits, as in a picture's file: otherwise hardly a pixel would ever
    stay the same without the threshold.
    """
    results = [start]
    for number in range(TURNS):
        new = _eight_bits(turn(results[-1], number))
        if threshold:
            reference = None if round_trip is None else _eight_bits(round_trip(results[-1], number))
            new = threshold_changes(results[-1], new, reference=reference).image
        results.append(new)
    return results[1], results[-1]


def _eight_bits(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round() / 255


def turns(toy: Toy, seeds: Sequence[int], cfg: float) -> dict:
    """Drift outside all edited places after ten edits, and after ten round trips through the autoencoder.

    Since the first trip through an autoencoder changes a picture more than all later ones, the
    last turn is compared with the source and with the first turn.
    """
    seeds = seeds[:SCENES]
    scenes = [random_scene(seed, objects=(1, 3)) for seed in seeds]
    talks = [conversation(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)]
    start = images(scenes)
    areas = torch.stack([torch.stack([mask for mask, _ in talk]).amax(0) for talk in talks])
    beside, untouched = areas == 0, dilate(areas, MARGIN) == 0

    def edit(pictures: Tensor, number: int) -> Tensor:
        edited = []
        for part in batches(list(range(len(seeds)))):
            masks = torch.stack([talks[i][number][0] for i in part])
            source = toy.invert(toy.encode(pictures[part]), STEPS)
            keep = apply_keep_source(toy.model, source, masks)
            noisy = fresh_start(source, masks, [seeds[i] + number for i in part])
            prompts = [talks[i][number][1] for i in part]
            edited.append(toy.decode(guided(toy, keep, noisy, source.sigmas, prompts, cfg)))
        return torch.cat(edited)

    def round_trip(pictures: Tensor, number: int) -> Tensor:
        return toy.decode(toy.encode(pictures))

    figures: dict = {"turns": TURNS, "turn_scenes": len(seeds)}
    for key, turn in (("drift", edit), ("vae_drift", round_trip)):
        for way, threshold in (("", True), ("_plain", False)):
            first, last = take_turns(start, turn, threshold, round_trip)
            figures[f"{key}_free_pixels{way}"] = unchanged(start, last, untouched)
            figures[f"{key}_free_pixels_beside{way}"] = unchanged(start, last, beside)
            figures[f"{key}_free_pixels_since_first{way}"] = unchanged(first, last, untouched)
            figures[f"{key}_mean{way}"] = round(float((last - start).abs().sum(-1)[untouched].mean()), 5)
    return figures


def unchanged(before: Tensor, after: Tensor, where: Tensor) -> float:
    """Share of pixels that are the same bit for bit, IMAGEs (B, H, W, 3) within bool (B, H, W), mean over pictures."""
    same = (before == after).all(-1)
    return mean(float(s[w].float().mean()) for s, w in zip(same, where, strict=True))


def ramp(toy: Toy, seeds: Sequence[int], cfg: float) -> dict:
    """How the strength of an edit follows a mask that grows evenly from left (0) to right (1).

    The edit is of the background, which is everywhere, drawn again from the scene's own noise,
    once under the ramp and once under no mask. Strength is how far, of the way to the second,
    the first has gone from the source: the least-squares share of each column of latent cells,
    over all scenes.
    """
    seeds = seeds[:SCENES]
    scenes = [random_scene(seed, objects=(1, 3)) for seed in seeds]
    prompts = []
    for scene, seed in zip(scenes, seeds, strict=True):
        kind = scene.background.kind
        others = [other for other in KINDS if other != kind]
        other = others[np.random.default_rng([_RAMP, seed]).integers(len(others))]
        prompts.append(scene.caption().replace(f"{kind} background", f"{other} background"))
    sources = images(scenes)
    height, width = sources.shape[1:3]
    reachable, whole, soft = [], [], []  # what no edit at all decodes to, and both edits
    for part in batches(list(range(len(seeds)))):
        latents = toy.encode(sources[part])
        source = toy.invert(latents)
        masks = torch.linspace(0, 1, width).expand(len(part), height, width)
        asked = [prompts[i] for i in part]
        reachable.append(toy.decode(latents))
        whole.append(toy.decode(guided(toy, toy.model, source, source.sigmas, asked, cfg)))
        keep = apply_keep_source(toy.model, source, masks)
        soft.append(toy.decode(guided(toy, keep, source, source.sigmas, asked, cfg)))
    profile = strength(torch.cat(reachable), torch.cat(whole), torch.cat(soft))
    steps = torch.linspace(0, 1, width).reshape(-1, 8).mean(1)
    return {
        "ramp_correlation": round(float(np.corrcoef(profile.numpy(), steps.numpy())[0, 1]), 3),
        "ramp_profile": [round(float(share), 3) for share in profile],
        "ramp_scenes": len(seeds),
    }


def strength(sources: Tensor, edits: Tensor, between: Tensor, cell: int = 8) -> Tensor:
    """Share of the way from sources to edits that pictures have gone, (W / cell), all IMAGE (B, H, W, 3).

    The least-squares share of each column of `cell` pixels, over all pictures.
    """
    whole, part = (
        (pictures - sources).unflatten(2, (-1, cell)).movedim(2, 0).flatten(1).double() for pictures in (edits, between)
    )
    return (whole * part).sum(1) / (whole * whole).sum(1).clamp(min=1e-12)


def turns_table(figures: dict) -> list[str]:
    """The figures for people."""
    lines = [
        f"{figures['turns']} turns on {figures['turn_scenes']} scenes, each edit in another place. Pixels more than "
        f"{MARGIN} px from all of these places that the last turn has left bit for bit as they were in the source, and "
        "as they were after the first turn, when they had been through the autoencoder once; their mean change from "
        "the source (sum over red, green and blue); and the share for all pixels beside the places, to their very "
        "border:",
        "",
        "| | as in the source | as after the first turn | mean change | to the border |",
        "|---|---|---|---|---|",
    ]
    for name, key in (("edits", "drift"), ("round trips through the autoencoder alone", "vae_drift")):
        for what, way in (("with Change Threshold", ""), ("without", "_plain")):
            free, since, beside = (figures[f"{key}_free_pixels{kind}{way}"] for kind in ("", "_since_first", "_beside"))
            changed = figures[f"{key}_mean{way}"]
            lines.append(f"| {name}, {what} | {free:.1%} | {since:.1%} | {changed:.4f} | {beside:.1%} |")
    return [*lines, "", f"Edit strength under a ramp mask: correlation {figures['ramp_correlation']:.2f}."]
