"""Why the defaults are what they are: key-mask settings on development scenes, and the paper's ablations."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..attention.host import apply_keep_source, apply_key_mask
from .bench_removal import failures
from .model import WEIGHTS
from .pipeline import STEPS, Toy, mean
from .removal import RemovalSet, composite, removal_set

MODES = ("multiply", "exclude", "soft")
GUIDANCES = (1.0, 3.0, 5.0, 7.5, 10.0)
LENGTHS = (10, 25, 40, 50)  # K: steps, from the noisiest, in which the mask acts


def masked_runs(toy: Toy, data: RemovalSet, settings: dict) -> Iterator[tuple[int, list[float]]]:
    """K and PSNR inside the mask for every length: one run with the mask on, left after K steps for plain ones."""
    trajectory = data.trajectory(toy)
    keep = apply_keep_source(toy.model, trajectory, data.masks)
    masked = apply_keep_source(apply_key_mask(toy.model, data.masks, end=1.0, **settings), trajectory, data.masks)
    passed, latents = toy.run(masked, trajectory, trajectory.sigmas)
    for length in LENGTHS:
        if length < STEPS:
            latents = toy.run(keep, passed, trajectory.sigmas[length:])[1]
        else:
            latents = passed.clean
        yield length, data.psnrs(composite(data, toy.decode(latents)))


def cost(guidance: float, length: int) -> int:
    """Evaluations of inversion and removal."""
    return STEPS + STEPS + (length if guidance != 1 else 0)


def run(seeds: range) -> dict:
    """Mean PSNR inside the mask (dB) and share of failures of every setting, over the same scenes."""
    toy, rows = Toy(), []
    path, known = _earlier(seeds)
    with torch.inference_mode():
        data = removal_set(toy, list(seeds))
        tables = [(f"mode {mode}", {"mode": mode, "guidance": g}) for mode in MODES for g in GUIDANCES]
        tables += [("mask on K, Q or V", {"mask_on": on, "guidance": g}) for on in "qv" for g in (1.0, 7.5)]
        for name, settings in tables:
            key = json.dumps(settings, sort_keys=True)
            if key not in known:
                known[key] = {str(length): values for length, values in masked_runs(toy, data, settings)}
                path.with_suffix(".draft").write_text(json.dumps(known))
                os.replace(path.with_suffix(".draft"), path)
                print(settings, {length: mean(values) for length, values in known[key].items()}, flush=True)
            rows += [
                {"table": name, **settings, "steps": int(length), "psnr_inside": mean(values),
                 "failures": failures(values), "evaluations": cost(settings["guidance"], int(length))}
                for length, values in known[key].items()
            ]  # fmt: skip
    return {"seeds": f"{seeds[0]}-{seeds[-1]}", "rows": rows}


def _earlier(seeds: range) -> tuple[Path, dict]:
    """File of the results so far (a sweep takes long on two cores), and what is in it.

    It is named after the weights, the code and the seeds: other weights, or a change of the pack, begin anew.
    """
    sources = sorted(path for path in WEIGHTS.parent.parent.glob("[!.]*/*.py") if path.parent.name != "tests")
    version = hashlib.sha256(b"".join(path.read_bytes() for path in (WEIGHTS, *sources))).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"latent-layers-sweep-{version}-{seeds[0]}-{seeds[-1]}.json"
    return path, json.loads(path.read_text()) if path.exists() else {}


def _cross(rows: list[dict]) -> list[str]:
    """Guidance down, K across: PSNR and share of failures."""
    lines = ["| guidance | " + " | ".join(f"K = {length}" for length in LENGTHS) + " |"]
    lines.append("|---" * (len(LENGTHS) + 1) + "|")
    for guidance in sorted({row["guidance"] for row in rows}):
        cells = {row["steps"]: row for row in rows if row["guidance"] == guidance}
        texts = [f"{cells[k]['psnr_inside']:.1f} dB, {cells[k]['failures']:.0%}" for k in LENGTHS]
        lines.append(f"| {guidance:g} | " + " | ".join(texts) + " |")
    return lines


def table(figures: dict) -> str:
    """One table per question."""
    lines = [f"Removal, development seeds {figures['seeds']}, 50 steps: PSNR inside the mask, share below 20 dB"]
    rows = figures["rows"]
    for mode in MODES:
        lines += ["", f"**mode {mode}**", "", *_cross([row for row in rows if row["table"] == f"mode {mode}"])]
    for on in "qv":
        chosen = [row for row in rows if row.get("mask_on") == on]
        lines += ["", f"**mask on {on.upper()} instead of K** (the paper's ablation)", "", *_cross(chosen)]
    return "\n".join(lines)
