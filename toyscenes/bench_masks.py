"""Masks that make themselves: instant masks and word masks of toy scenes, beside DiffEdit on the same model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.capture import Capture
from ..attention.capture_host import apply_capture, blocks_near, read_prompt
from ..inversion.trajectory import Trajectory
from ..masks.grid import dilate
from ..masks.instant import min_max, otsu, resize, word_maps
from ..masks.instant_host import InstantMask
from ..masks.threshold import threshold_changes
from .bench_turns import ramp, turns, turns_table
from .diffedit import binary, diffedit
from .mask_run import Shipped, composite, fill, one_of
from .pipeline import Toy, batches, mean
from .word_edits import TASKS, Outcome, WordEdit, overlap, word_edit, words

MARGIN = 8  # pixels around the true mask within which an edit may change something
GROW = 20  # pixels that the second stage's mask is larger, as in the blueprint Edit By Words: 80 at a width of 1024
DRAWN = 25  # steps of the second stage, which begins at half the noise, as in the blueprint
ABLATED = 16  # scenes on which the ablations run, from the first seed on
ARTICLE = {"lambda1": 0.9, "lambda2": 0.6, "phi": 0.2, "correlation": False, "edges": False, "compares": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "without the source's text": {"compares": False},
    "the article's settings": ARTICLE,
    "blurred, not along the picture's edges": {"edges": False},
    "blurred, without the source's text": {"edges": False, "compares": False},
    "cosine in place of correlation": {"correlation": False},
    "start token inverted": {"invert_start": True},
    "start token not inverted": {"invert_start": False},
    "no position vector (index word alone)": {"refine": False},
    "strength 0.4": {"strength": 0.4},
    "strength 0.5": {"strength": 0.5},
    "strength 0.6": {"strength": 0.6},
    "phi 0.1": {"phi": 0.1},
    "phi 0.2": {"phi": 0.2},
    "phi 0.3": {"phi": 0.3},
    "running mean of the attention": {"running_mean": True},
    "current step's attention": {"running_mean": False},
    "one seed": {"seeds": 1},
    "three seeds": {"seeds": 3},
}


class WordWatch:
    """Of every word of the caption its own map at every evaluation of a run, beside what the run does with them."""

    def __init__(self, toy: Toy, edit: WordEdit, latent: Tensor) -> None:
        prompt = read_prompt(toy.clip, edit.caption, "bench masks")
        self.words, self.kinds, self.size = prompt.words, edit.kinds(), latent.shape[-2:]
        if len(self.words) != len(self.kinds):
            raise RuntimeError(f"bench masks: {edit.caption!r} is read as the words {[w.text for w in self.words]}")
        self.capture = Capture(blocks_near(toy.model, latent.shape, "bench masks"), prompt.length, "negative")
        self.model = apply_capture(toy.model, self.capture, "bench masks")
        self.model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "latent_layers_word_watch", self._watch)
        self.steps: list[Tensor] = []  # of each evaluation, maps of the words (N, h, w)

    def _watch(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        result = executor(*args, **kwargs)
        maps = word_maps(self.capture.take().mean(0), [word.tokens for word in self.words])
        self.steps.append(min_max(resize(maps.cpu(), *self.size)))
        return result

    def overlaps(self, truth: Tensor) -> list[list[float]]:
        """IoU with a mask (H, W) of each word's map above its own Otsu threshold, for every evaluation."""
        return [[overlap(_enlarged(plane > otsu(plane), truth), truth) for plane in maps] for maps in self.steps]


@dataclass
class Report:
    """Figures by name, and those of words and steps."""

    columns: dict[str, list[float]] = field(default_factory=dict)
    words: dict[str, list[float]] = field(default_factory=dict)  # IoU of single words, by what they are about
    positions: dict[str, list[float]] = field(default_factory=dict)  # ... by their position in the run
    roles: dict[str, list[int]] = field(default_factory=dict)  # positions that each kind of word got
    steps: list[list[float]] = field(default_factory=list)  # IoU of M_t, by step

    def add(self, name: str, values: Sequence[float]) -> None:
        """More values of one figure."""
        self.columns.setdefault(name, []).extend(values)

    def add_run(self, found: InstantMask, watch: WordWatch, truth: Tensor) -> None:
        """What a run says about words and steps; truth (H, W)."""
        for number, mask in enumerate(found.masks):
            if number == len(self.steps):
                self.steps.append([])
            self.steps[number].append(overlap(_enlarged(mask, truth), truth))
        by_word = torch.tensor(watch.overlaps(truth)).mean(0).tolist()
        for kind, role, value in zip(watch.kinds, found.roles["source_text"], by_word, strict=True):
            self.words.setdefault(kind, []).append(value)
            self.positions.setdefault(f"{role.position:+d}" if role.position else "0", []).append(value)
            self.roles.setdefault(kind, []).append(role.position)

    def figures(self) -> dict:
        """For JSON."""
        return {
            **{name: mean(values) for name, values in self.columns.items()},
            "iou_per_step": [mean(values) for values in self.steps],
            "iou_per_word": {kind: mean(values) for kind, values in self.words.items()},
            "iou_per_role": {position: mean(values) for position, values in sorted(self.positions.items())},
            "roles": {
                kind: {f"{p:+d}" if p else "0": mean(v == p for v in values) for p in (1, 0, -1)}
                for kind, values in self.roles.items()
            },
        }


def _enlarged(cells: Tensor, like: Tensor) -> Tensor:
    """A mask (h, w) on the latent's grid at the size of a picture (H, W)."""
    planes = cells[None, None].float()
    return torch.nn.functional.interpolate(planes, size=list(like.shape), mode="nearest-exact")[0, 0]


def run(seeds: range) -> dict:
    """Mean figures over the seeds' scenes; masks as intersection over union with the object's true mask."""
    toy, report = Toy(), Report()
    shipped = Shipped(toy)
    with torch.inference_mode():
        for part in batches(list(seeds)):
            _masks(shipped, part, report)
        return {
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            **report.figures(),
            "diff_outside": max(report.columns["diff_outside"]),
            "diff_outside_mask": max(report.columns["diff_outside_mask"]),
            "ablations": ablations(shipped, seeds[:ABLATED]),
            "ablation_scenes": len(seeds[:ABLATED]),
            **turns(toy, seeds, shipped.cfg),
            **ramp(toy, seeds, shipped.cfg),
        }


def _masks(shipped: Shipped, seeds: Sequence[int], report: Report) -> None:
    """Everything that is measured on one batch of edits."""
    toy, cfg = shipped.toy, shipped.cfg
    edits = [word_edit(seed) for seed in seeds]
    sources = torch.cat([edit.source_image for edit in edits])
    truths = torch.cat([edit.mask for edit in edits])
    areas = torch.cat([edit.area for edit in edits])
    prompts = [edit.prompt for edit in edits]
    latents = toy.encode(sources)

    def spent(before: int) -> float:
        return (toy.samples - before) / len(edits)

    before, edited, hard = toy.samples, [], []
    for number, (edit, seed) in enumerate(zip(edits, seeds, strict=True)):
        watch = WordWatch(toy, edit, latents)
        found = shipped.instant_mask(watch.model, edit, latents[number : number + 1], seed)
        hard.append(found.hard)
        edited.append(found.edited)
        report.add_run(found, watch, truths[number])
    instant_cost = spent(before)
    masks = torch.cat(hard)
    _add_overlaps(report, "iou_instant", edits, masks, truths)
    report.add("evaluations_instant", [instant_cost])

    before = toy.samples
    half = toy.invert(latents, sigmas=toy.sigmas(2 * DRAWN)[DRAWN:])
    inversion_cost = spent(before)
    before = toy.samples
    source = toy.invert(latents, shipped.instant["steps"])
    whole_inversion_cost = spent(before)
    _words(shipped, edits, source, truths, report)

    grown = torch.where(masks.amax((1, 2), keepdim=True) > 0, dilate(masks, GROW), masks)
    before = toy.samples
    filled = fill(toy, half, sources, grown, prompts, cfg)
    report.add("evaluations_instant_filled", [instant_cost + inversion_cost + spent(before)])
    # what the VAE alone changes is no change
    reference = composite(sources, toy.decode(latents), grown)
    filled = threshold_changes(sources, filled, reference=reference).image
    beyond = dilate(areas, MARGIN) == 0
    change = (filled - sources).abs().amax(-1)
    report.add("diff_outside", [float(change[beyond].max())])
    report.add("diff_outside_mask", [float((change * (grown == 0)).max())])
    report.add("identical_outside", [float((c[b] == 0).float().mean()) for c, b in zip(change, beyond, strict=True)])
    _add_successes(report, "", edits, filled)
    _add_successes(report, "_one_stage", edits, composite(sources, toy.decode(torch.cat(edited)), masks))
    before = toy.samples
    _add_successes(report, "_fresh", edits, fill(toy, source, sources, grown, prompts, cfg, seeds))
    report.add("evaluations_fresh", [instant_cost + whole_inversion_cost + spent(before)])
    _add_successes(report, "_true_mask", edits, fill(toy, half, sources, dilate(areas, MARGIN), prompts, cfg))

    rival = diffedit(toy, sources, [edit.caption for edit in edits], prompts, seeds, cfg, grow=GROW)
    _add_overlaps(report, "iou_diffedit", edits, rival.mask, truths)
    plain = binary(rival.difference, sources.shape[1:3], extreme=None)
    _add_overlaps(report, "iou_diffedit_with_extremes", edits, plain, truths)
    _add_successes(report, "_diffedit", edits, composite(sources, rival.pictures, dilate(rival.mask, GROW)))
    report.add("evaluations_diffedit", [rival.mask_evaluations])
    report.add("evaluations_diffedit_edit", [rival.evaluations])


def _words(shipped: Shipped, edits: Sequence[WordEdit], source: Trajectory, truths: Tensor, report: Report) -> None:
    """Word Mask on the sources themselves: of colour and shape together, and of each alone."""
    for number, edit in enumerate(edits):
        trajectory, truth = one_of(source, number), truths[number]
        colour, *shape = edit.named
        for name, named in (("iou_word", edit.named), ("iou_word_colour", [colour]), ("iou_word_shape", shape)):
            before = shipped.toy.samples
            report.add(name, [overlap(shipped.word_mask(edit, trajectory, named)[0], truth)])
            if name == "iou_word":
                report.add("evaluations_word", [shipped.toy.samples - before])


def _add_overlaps(report: Report, name: str, edits: Sequence[WordEdit], masks: Tensor, truths: Tensor) -> None:
    for edit, mask, truth in zip(edits, masks, truths, strict=True):
        value = overlap(mask, truth)
        report.add(name, [value])
        report.add(f"{name}_{edit.task}", [value])


def _add_successes(report: Report, suffix: str, edits: Sequence[WordEdit], pictures: Tensor) -> None:
    for edit, picture in zip(edits, pictures.clamp(0, 1).numpy(), strict=True):
        outcome = Outcome.of(edit, picture)
        report.add(f"edit_success{suffix}", [outcome.changed])
        report.add(f"edit_success{suffix}_{edit.task}", [outcome.changed])
        report.add(f"edit_as_prompted{suffix}", [outcome.as_prompted])


def variants(shipped: Shipped) -> dict[str, Callable[[WordEdit], dict[str, Any]]]:
    """What the ablations change of an edit's settings; what is shipped anyway is run once."""
    changed = {
        name: change
        for name, change in VARIANTS.items()
        if any(shipped.instant.get(key, True) != value for key, value in change.items())
    }
    result: dict[str, Callable[[WordEdit], dict[str, Any]]] = {"as shipped": lambda edit: {}}
    result |= {name: lambda edit, change=change: change for name, change in changed.items()}
    result["changed words given +1"] = lambda edit: {"words": _given(edit.changed)}
    result["changed words alone"] = lambda edit: {"words": _given(edit.changed, words(edit.prompt))}
    result["the object's words alone"] = lambda edit: {"words": _given(edit.named_after, words(edit.prompt))}
    return result


def _given(wanted: Sequence[str], without: Sequence[str] = ()) -> str:
    """Roles for Instant Attention Mask: no part for some words, then +1 for those that are wanted."""
    return ", ".join([*(f"~{word}" for word in without), *(f"+{word}" for word in wanted)])


def ablations(shipped: Shipped, seeds: Sequence[int]) -> list[dict]:
    """IoU of the instant mask with one setting changed at a time, on the same scenes and noises."""
    toy = shipped.toy
    edits = [word_edit(seed) for seed in seeds]
    latents = [toy.encode(edit.source_image) for edit in edits]
    rows = []
    for name, change in variants(shipped).items():
        before, values = toy.samples, []
        for edit, latent, seed in zip(edits, latents, seeds, strict=True):
            found = shipped.instant_mask(toy.model, edit, latent, seed, **change(edit))
            values.append((edit.task, overlap(found.hard[0], edit.mask[0])))
        row: dict[str, Any] = {"name": name, "iou": mean(value for _, value in values)}
        for task in TASKS:
            chosen = [value for kind, value in values if kind == task]
            row[f"iou_{task}"] = mean(chosen) if chosen else None
        rows.append({**row, "evaluations": round((toy.samples - before) / len(edits), 1)})
    return rows


def table(figures: dict) -> str:
    """The figures for people."""
    f = figures
    lines = [
        f"Masks by words, seeds {f['seeds']}; intersection over union with the object's true mask",
        "",
        "| mask | all | colour edits | shape edits | evaluations: mask | mask and picture |",
        "|---|---|---|---|---|---|",
        _row("Instant Attention Mask", f, "iou_instant", f["evaluations_instant"], f["evaluations_instant"]),
        _row("DiffEdit", f, "iou_diffedit", f["evaluations_diffedit"], f["evaluations_diffedit_edit"]),
        _row("DiffEdit, extreme values left in", f, "iou_diffedit_with_extremes", f["evaluations_diffedit"], None),
        "",
        f"Word Mask of the source's own words, {f['evaluations_word']:.0f} evaluations along the trajectory: colour "
        f"and shape {f['iou_word']:.2f}, colour alone {f['iou_word_colour']:.2f}, shape alone "
        f"{f['iou_word_shape']:.2f}",
        "",
        "| local edit | named colour or shape | of colour edits | of shape edits | colour and shape | evaluations |",
        "|---|---|---|---|---|---|",
        _success("instant mask, then drawn again from the own noise", f, "", f["evaluations_instant_filled"]),
        _success("the same from new noise (the article)", f, "_fresh", f["evaluations_fresh"]),
        _success("instant mask, its own denoising only", f, "_one_stage", f["evaluations_instant"]),
        _success("true mask, drawn again from the own noise", f, "_true_mask", None),
        _success("DiffEdit", f, "_diffedit", f["evaluations_diffedit_edit"]),
        "",
        f"More than {MARGIN} px from the true mask: {f['identical_outside']:.1%} of the pixels bit-identical, largest "
        f"difference {f['diff_outside']:g}. Outside the mask itself: largest difference {f['diff_outside_mask']:g}.",
        "",
        f"One setting changed at a time ({f['ablation_scenes']} scenes):",
        "",
        "| setting | all | colour edits | shape edits | evaluations |",
        "|---|---|---|---|---|",
    ]
    for row in f["ablations"]:
        cells = [_number(row[key]) for key in ("iou", *(f"iou_{task}" for task in TASKS))]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['evaluations']:.0f} |")
    if "capture_ratio" in f:
        lines += ["", f"Reading the attention costs a pass of an SD 1.5-size UNet {f['capture_ratio']:.2f} times its "
                  f"time and {f['capture_memory_ratio']:.2f} times its peak memory."]  # fmt: skip
    return "\n".join([*lines, "", *_words_table(f), "", *turns_table(f)])


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _row(name: str, figures: dict, key: str, mask: float, whole: float | None) -> str:
    cells = [_number(figures.get(k)) for k in (key, *(f"{key}_{task}" for task in TASKS))]
    return f"| {name} | {' | '.join(cells)} | {mask:.0f} | {'' if whole is None else f'{whole:.0f}'} |"


def _success(name: str, figures: dict, suffix: str, evaluations: float | None) -> str:
    keys = (f"edit_success{suffix}", *(f"edit_success{suffix}_{task}" for task in TASKS), f"edit_as_prompted{suffix}")
    cells = [f"{figures[key]:.0%}" if key in figures else "" for key in keys]
    return f"| {name} | {' | '.join(cells)} | {'' if evaluations is None else f'{evaluations:.0f}'} |"


def _words_table(figures: dict) -> list[str]:
    lines = [
        "Single words of the caption, each one's map alone above its Otsu threshold, mean over the steps, and the "
        "roles they got:",
        "",
        "| word | overlap | +1 | 0 | -1 |",
        "|---|---|---|---|---|",
    ]
    for kind, value in figures["iou_per_word"].items():
        shares = " | ".join(f"{share:.0%}" for share in figures["roles"][kind].values())
        lines.append(f"| {kind} | {value:.2f} | {shares} |")
    roles = ", ".join(f"{role}: {value:.2f}" for role, value in figures["iou_per_role"].items())
    steps = figures["iou_per_step"]
    shown = ", ".join(f"{number + 1}: {steps[number]:.2f}" for number in range(0, len(steps), max(1, len(steps) // 8)))
    return [*lines, "", f"Overlap of single words by role: {roles}.", f"Overlap of M_t by step: {shown}."]
