"""Soft edits by words: what word timings and spatial weights give over plain guidance and fixed times.

Two kinds of sources. Pairs: the model makes the source of its caption, and the edit from the same
noise; only sources that show what their caption says of the attribute count. Real pictures: scenes,
inverted with their caption and edited under Proximal Guidance, as in the graphs. Each edit is judged
by whether the attribute has changed (`Outcome.changed`) and by how much has stayed of what should
have (PSNR to the source where `Outcome.kept`).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attention.adaptive_host import HOLD, LAMBDA_S, LAMBDA_SV
from ..attention.timings import LAMBDA_TAU, WordTimings
from ..inversion.proximal_host import Settings, apply_proximal_guidance
from .bench_turns import strength
from .measure import psnr
from .pipeline import Toy, mean
from .soft_edits import TASKS, Outcome, soft_edit
from .soft_run import EVERYWHERE, Source, everywhere, generated, outcome, prompt_only, real, soft, timings_of, with_tau

TUNING = range(32)  # scenes on which the fixed time is chosen, none of those that judge
FIXED = (0.2, 0.4, 0.6, 0.8)
TUNED, CHANGED, RAMPS, TIMED = 10, 16, 4, 3  # scenes that the parts of the benchmark run on
SHIPPED = {"lambda_tau": LAMBDA_TAU, "lambda_s": LAMBDA_S, "lambda_sv": LAMBDA_SV, "hold": HOLD}
SWEEPS: dict[str, tuple[float, ...]] = {  # beside what is shipped
    "lambda_tau": (0.0, 2.0),
    "lambda_s": (0.25, 0.5, 0.75),
    "lambda_sv": (0.5, 1.0, 4.0),
    "hold": (0.5, 1.0),
}
KINDS = ("pair", "real")
Edit = Callable[["Case"], Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """A source, and what every way of editing it is given.

    `model` is what the guider samples with: of a real picture under Proximal Guidance.
    """

    toy: Toy
    source: Source
    model: Any
    alone: Tensor  # the edit prompt alone, latent (1, C, h, w)
    timings: WordTimings

    @classmethod
    def of(cls, toy: Toy, source: Source) -> "Case":
        """With what the graphs give: word timings read off the source, and Proximal Guidance if that is real."""
        model = toy.model
        if source.negative is None:
            model = apply_proximal_guidance(model, source.trajectory, Settings())
        return cls(toy, source, model, prompt_only(toy, source)[1], timings_of(toy, source, source.trajectory))

    def soft(self, timings: WordTimings | None = None, **settings: Any) -> Tensor:
        """What the guider makes of it, with its defaults."""
        return soft(self.toy, self.source, self.timings if timings is None else timings, self.model, **settings)


@dataclass
class Report:
    """Figures by kind of source and way of editing."""

    changed: dict[str, list[bool]] = field(default_factory=dict)
    kept: dict[str, list[float]] = field(default_factory=dict)
    overlap: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, found: Outcome) -> None:
        """One edit's outcome."""
        task = found.edit.task
        for key in (name, f"{name}_{task}"):
            self.changed.setdefault(key, []).append(found.changed)
            if found.kept.any():
                self.kept.setdefault(key, []).append(psnr(found.after, found.before, found.kept))
        if task == "colour":
            self.overlap.setdefault(name, []).append(found.overlap)

    def figures(self) -> dict[str, float]:
        """For JSON."""
        result = {f"success_{name}": mean(values) for name, values in self.changed.items()}
        result |= {f"preserve_{name}": mean(values) for name, values in self.kept.items()}
        return result | {f"silhouette_{name}": mean(values) for name, values in self.overlap.items()}


def fixed(tau: float) -> Edit:
    """Prompt-to-prompt, as published: the same time for every shared word, everywhere in the picture."""
    return lambda case: case.soft(with_tau(case.timings, tau), **everywhere())


def word_times(case: Case) -> Tensor:
    """FWT alone: every word its own time, everywhere in the picture."""
    return case.soft(**everywhere())


def weighted(case: Case) -> Tensor:
    """DPS alone: no word is held, pixels take the edit as S_V says."""
    return case.soft(with_tau(case.timings, 0.0))


def both(case: Case) -> Tensor:
    """The guider's defaults."""
    return case.soft()


def plain(edit: Edit) -> Edit:
    """A way of editing without Proximal Guidance."""
    return lambda case: edit(replace(case, model=case.toy.model))


def cases(toy: Toy, seeds: Iterable[int], kind: str) -> Iterable[Case]:
    """Sources of one kind; of generated ones only those that show what is to be edited."""
    for seed in seeds:
        edit = soft_edit(seed)
        source = real(toy, edit) if kind == "real" else generated(toy, edit, seed)
        if kind == "real" or source.usable:
            yield Case.of(toy, source)


def best_fixed(toy: Toy) -> dict[str, Any]:
    """The fixed time that changes most on the tuning scenes, of equal ones the one that keeps more; per kind."""
    result: dict[str, Any] = {}
    for kind in KINDS:
        report = Report()
        for case in cases(toy, TUNING[:TUNED], kind):
            for tau in FIXED:
                report.add(f"{tau}", outcome(toy, case.source, fixed(tau)(case)))
        figures = report.figures()
        result[kind] = max(FIXED, key=lambda tau: (figures[f"success_{tau}"], figures[f"preserve_{tau}"]))
        result[f"{kind}_tuning"] = {
            str(tau): [figures[f"success_{tau}"], figures[f"preserve_{tau}"]] for tau in FIXED
        }  # fmt: skip
    return result


def compare(toy: Toy, seeds: Sequence[int], kind: str, tau: float) -> dict[str, float]:
    """All ways on one kind of source."""
    ways: dict[str, Edit] = {
        "prompt_only": lambda case: case.alone,
        "fixed": fixed(tau),
        "fwt": word_times,
        "dps": weighted,
        "both": both,
    }
    if kind == "pair":
        ways["both_as_published"] = _read_off_the_edit
    else:
        ways |= {f"{name}_plain": plain(ways[name]) for name in ("fixed", "fwt", "dps", "both")} | OTHER_WAYS
    report, used = Report(), 0
    for case in cases(toy, seeds, kind):
        used += 1
        for name, way in ways.items():
            report.add(f"{kind}_{name}", outcome(toy, case.source, way(case)))
    return {**report.figures(), f"{kind}_usable": round(used / len(seeds), 3)}


def _from_caption(case: Case, model: Any = None) -> Tensor:
    """The edit prompt alone, with the caption that the picture was inverted with as the negative."""
    return prompt_only(case.toy, case.source, model, case.toy.condition(case.source.edit.caption))[1]


def _read_off_the_edit(case: Case) -> Tensor:
    """Word timings of the edit prompt's own picture, from the same noise: the article's way."""
    trajectory, _ = prompt_only(case.toy, case.source)
    return case.soft(timings_of(case.toy, case.source, trajectory, shows="edit"))


OTHER_WAYS: dict[str, Edit] = {
    "from_caption": _from_caption,
    "from_caption_proximal": lambda case: _from_caption(case, case.model),
    "both_held": lambda case: case.soft(hold=0.5),
    # Proximal Guidance is meant for a negative that is the picture's own prompt
    "both_from_empty": plain(lambda case: case.soft(negative=case.toy.condition())),
}


def variants(toy: Toy, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Settings changed one at a time, on the first of the real pictures; the first row is as shipped."""
    ways: dict[str, Edit] = {
        "as shipped": both,
        "without the alpha_m filter": lambda case: _timed(case, alpha_m=0.0),
        "the place looked for by the new words (the article)": lambda case: _timed(case, shows="edit"),
        "S_V read at every step (the article)": lambda case: case.soft(spatial="moving"),
        "the place not grown": lambda case: _timed(case, grow=0.0),
    }
    swept = {}
    for setting, values in SWEEPS.items():
        for value in values:
            name = f"{setting} {value:g}"
            swept[name] = {"setting": setting, "value": value}
            ways[name] = _changed(setting, value)
    report = Report()
    for case in cases(toy, seeds[:CHANGED], "real"):
        for name, way in ways.items():
            report.add(name, outcome(toy, case.source, way(case)))
    f = report.figures()
    return [
        {"name": name, **swept.get(name, {}), "success": f[f"success_{name}"], "preserve": f[f"preserve_{name}"]}
        for name in ways
    ]


def _changed(setting: str, value: float) -> Edit:
    """The guider with one setting changed, or the timings with it."""
    if setting == "lambda_tau":
        return lambda case: _timed(case, lambda_tau=value)
    settings: dict[str, Any] = {setting: value}
    return lambda case: case.soft(**settings)


def _timed(case: Case, **settings: Any) -> Tensor:
    return case.soft(timings_of(case.toy, case.source, case.source.trajectory, **settings))


def limits(toy: Toy, seeds: Sequence[int]) -> dict[str, float]:
    """Both ends of lambda_S, and what a step costs, on the first of the real scenes.

    At 0 the result is the inversion's round trip, compared with the source; at 1, without word
    timings and with S_V 1, it is CFG with the edit prompt, compared with that.
    """
    trips, differences, evaluations, seconds = [], [], [], []
    for case in cases(toy, seeds[:TIMED], "real"):
        trips.append(_kept_whole(toy, case, case.soft(lambda_s=0.0)))
        free, empty = with_tau(case.timings, 0.0), toy.condition()
        whole, _ = _timed_run(
            toy, lambda c=case, f=free, n=empty: soft(toy, c.source, f, **everywhere(negative=n, hold=0.0))
        )
        plain, plain_spent = _timed_run(toy, lambda c=case: prompt_only(toy, c.source)[1])
        differences.append(float((whole - plain).abs().max()))
        _, soft_spent = _timed_run(toy, lambda c=case: both(c))
        evaluations.append(soft_spent[0] / plain_spent[0])
        seconds.append(soft_spent[1] / plain_spent[1])
    return {
        "round_trip_at_0": mean(trips),
        "difference_at_1": max(differences),
        "cost_ratio": round(median(evaluations), 3),
        "time_ratio": round(median(seconds), 2),
    }


def _kept_whole(toy: Toy, case: Case, latent: Tensor) -> float:
    found = outcome(toy, case.source, latent)
    return psnr(found.after, found.before)


def _timed_run(toy: Toy, edit: Callable[[], Tensor]) -> tuple[Tensor, tuple[int, float]]:
    """What an edit makes, and what it takes: pictures through the UNet, seconds."""
    before, start = toy.samples, time.perf_counter()
    latent = edit()
    return latent, (toy.samples - before, time.perf_counter() - start)


def ramp(toy: Toy, seeds: Sequence[int]) -> dict[str, Any]:
    """How an edit's strength follows a soft mask that grows evenly from left (0) to right (1), in place of S_V.

    Strength is the share of the way from the source to the edit under a mask of 1, by columns of
    latent cells. The edits are of backgrounds, which are everywhere.
    """
    ramp_mask = torch.linspace(0, 1, 256).expand(1, 256, 256)
    pictures: list[list[np.ndarray]] = []
    for seed in seeds[:RAMPS]:
        source = real(toy, soft_edit(seed, task="background"))
        timings = timings_of(toy, source, source.trajectory)
        edits = [soft(toy, source, timings, **everywhere(mask=mask)) for mask in (EVERYWHERE, ramp_mask)]
        pictures.append([source.picture, *(outcome(toy, source, latent).after for latent in edits)])
    sources, whole, part = (torch.from_numpy(np.stack(batch)) for batch in zip(*pictures, strict=True))
    profile = strength(sources, whole, part)
    cells = ramp_mask[0, 0].reshape(-1, 8).mean(1)
    return {
        "ramp_correlation": round(float(np.corrcoef(profile.numpy(), cells.numpy())[0, 1]), 3),
        "ramp_profile": [round(float(share), 3) for share in profile],
    }


def run(seeds: range) -> dict:
    """Mean figures over the seeds' edits; the tasks take turns."""
    toy = Toy()
    with torch.inference_mode():
        chosen = best_fixed(toy)
        figures: dict[str, Any] = {"seeds": f"{seeds[0]}-{seeds[-1]}", "fixed_tau": chosen}
        for kind in KINDS:
            figures |= compare(toy, seeds, kind, chosen[kind])
        figures |= {"variants": variants(toy, seeds), "shipped": SHIPPED, **limits(toy, seeds), **ramp(toy, seeds)}
    for key in ("both", "prompt_only"):
        figures[f"success_{key}"] = figures[f"success_real_{key}"]
        figures[f"preserve_{key}"] = figures[f"preserve_real_{key}"]
    figures["success_best_single"] = max(figures["success_real_fwt"], figures["success_real_dps"])
    return figures


_ROWS = {
    "prompt_only": "edit prompt alone, same noise, negative: empty",
    "from_caption": "edit prompt alone, negative: the caption",
    "from_caption_proximal": "the same with Proximal Guidance",
    "fixed_plain": "prompt-to-prompt, one tau for all words ({tau:g}), without Proximal Guidance",
    "fwt_plain": "word timings alone, without Proximal Guidance",
    "dps_plain": "spatial weights alone, without Proximal Guidance",
    "both_plain": "both, without Proximal Guidance",
    "fixed": "prompt-to-prompt, one tau for all words ({tau:g})",
    "fwt": "word timings alone",
    "dps": "spatial weights alone",
    "both": "**Adaptive Attention Guider**: both",
    "both_as_published": "both, timings read off the edit prompt's own picture (the article)",
    "both_held": "both, hold 0.5",
    "both_from_empty": "both, without Proximal Guidance, negative: empty",
}


def table(figures: dict) -> str:
    """The figures for people."""
    f = figures
    lines = [
        f"Soft edits by words, seeds {f['seeds']}: share of edits that changed what they were to change, and PSNR to "
        "the source outside the edited object (of background edits: inside the objects)",
    ]
    titles = {
        "pair": f"generated pairs, {f['pair_usable']:.0%} of which show what their caption says of the attribute",
        "real": "real (inverted) pictures",
    }
    for kind, title in titles.items():
        lines += ["", f"| {title} | changed | {' | '.join(TASKS)} | kept | silhouette of recoloured objects |"]
        lines += ["|---|---|" + "---|" * len(TASKS) + "---|---|"]
        for key, name in _ROWS.items():
            if f"success_{kind}_{key}" in f:
                lines.append(_row(name.format(tau=f["fixed_tau"][kind]), f, f"{kind}_{key}"))
    lines += [
        "",
        f"Cost of a step on a real picture: {f['cost_ratio']:.2f} times the evaluations of CFG and "
        f"{f['time_ratio']:.2f} times its seconds. lambda_S 0 gives the source back at {f['round_trip_at_0']:.1f} dB; "
        f"lambda_S 1 with S_V 1 and no words held is CFG with the edit prompt to within {f['difference_at_1']:.2g} of "
        f"a latent. Edit strength under a ramp mask: correlation {f['ramp_correlation']:.2f}.",
        *_memory(f),
        "",
        f"One setting changed at a time, the first {CHANGED} real pictures:",
        "",
        "| setting | changed | kept |",
        "|---|---|---|",
    ]
    for row in f["variants"]:
        lines.append(f"| {row['name']} | {row['success']:.0%} | {row['preserve']:.1f} dB |")
    return "\n".join(lines)


def _memory(figures: dict) -> list[str]:
    if "soft_memory_ratio" not in figures:
        return []
    return [
        "",
        "Peak memory of a step on top of weights, SD 1.5-size UNet at 512x512: "
        f"{figures['soft_memory_ratio']:.2f} times that of CFG ({figures['cfg_peak_mib']:.0f} MiB).",
    ]


def _row(name: str, figures: dict, key: str) -> str:
    keys = (f"success_{key}", *(f"success_{key}_{task}" for task in TASKS))
    cells = [f"{figures[k]:.0%}" if k in figures else "" for k in keys]
    overlap = figures.get(f"silhouette_{key}")
    shown = "" if overlap is None else f"{overlap:.2f}"
    return f"| {name} | {' | '.join(cells)} | {figures[f'preserve_{key}']:.1f} dB | {shown} |"
