"""Why the defaults are what they are: key-mask settings on development scenes, and the paper's ablations."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .bench_removal import failures, node_defaults
from .model import WEIGHTS
from .pipeline import STEPS, Toy, mean
from .removal import removal_set, remove

MODES = ("multiply", "exclude", "soft")
GUIDANCES = (1.0, 3.0, 5.0, 7.5, 10.0)
ENDS = (10, 25, 40, 50)  # K of 50 steps


def settings() -> Iterator[tuple[str, dict]]:
    """Name of a table and the settings of one of its rows."""
    for mode in MODES:
        for guidance in GUIDANCES:
            for end in ENDS:
                yield f"mode {mode}", {"mode": mode, "guidance": guidance, "end": end / 50}
    for mask_on in ("k", "q", "v"):
        for guidance in (1.0, 7.5):
            yield "mask on K, Q or V", {"mask_on": mask_on, "guidance": guidance, "end": 0.8}
    for start, end in ((0.0, 0.8), (0.0, 0.2)):
        yield "range of the paper", {"guidance": 7.5, "start": start, "end": end}


def run(seeds: range) -> dict:
    """Mean PSNR inside the mask (dB) and share of failures of every setting, over the same scenes."""
    toy, rows = Toy(), []
    path, known = _earlier(seeds)
    with torch.inference_mode():
        data = removal_set(toy, list(seeds))
        for name, row in [*settings(), ("shipped defaults", node_defaults())]:
            key = str(sorted({"mode": "multiply", "mask_on": "k", "start": 0.0, **row}.items()))
            if key not in known:
                data.trajectory(toy)
                before = toy.samples
                values = data.psnrs(remove(toy, data, **row))
                cost = STEPS + (toy.samples - before) / len(seeds)
                known[key] = {"psnr_inside": mean(values), "failures": failures(values), "evaluations": cost}
                path.write_text(json.dumps(known))
                print(name, row, known[key], flush=True)
            rows.append({"table": name, **row, **known[key]})
    return {"seeds": f"{seeds[0]}-{seeds[-1]}", "rows": rows}


def _earlier(seeds: range) -> tuple[Path, dict]:
    """File of the results so far (a sweep takes an hour on two cores), and what is in it.

    It is named after the weights and the seeds: other weights begin anew.
    """
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"latent-layers-sweep-{weights}-{seeds[0]}-{seeds[-1]}.json"
    return path, json.loads(path.read_text()) if path.exists() else {}


def _cross(rows: list[dict]) -> list[str]:
    """Guidance down, K across: PSNR and share of failures."""
    ends = sorted({row["end"] for row in rows})
    lines = [
        "| guidance | " + " | ".join(f"K = {end * STEPS:.0f}" for end in ends) + " |",
        "|---" * (len(ends) + 1) + "|",
    ]
    for guidance in sorted({row["guidance"] for row in rows}):
        cells = [row for end in ends for row in rows if (row["guidance"], row["end"]) == (guidance, end)]
        texts = [f"{cell['psnr_inside']:.1f} dB, {cell['failures']:.0%}" for cell in cells]
        lines.append(f"| {guidance:g} | " + " | ".join(texts) + " |")
    return lines


def table(figures: dict) -> str:
    """One table per question."""
    lines = [f"Removal, development seeds {figures['seeds']}, 50 steps, PSNR inside the mask"]
    for name in dict.fromkeys(row["table"] for row in figures["rows"]):
        rows = [row for row in figures["rows"] if row["table"] == name]
        lines += ["", f"**{name}**", ""]
        if name.startswith("mode"):
            lines += _cross(rows)
            continue
        lines += ["| settings | PSNR | below 20 dB | evaluations |", "|---|---|---|---|"]
        for row in rows:
            given = {k: v for k, v in row.items() if k not in ("table", "psnr_inside", "failures", "evaluations")}
            text = ", ".join(f"{k} {v}" for k, v in given.items())
            result = f"{row['psnr_inside']:.1f} dB | {row['failures']:.0%} | {row['evaluations']:.0f}"
            lines.append(f"| {text} | {result} |")
    return "\n".join(lines)
