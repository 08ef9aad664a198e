"""Curves of the documentation: what the settings of a soft edit do, from `bench softedit`."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

SETTINGS = {
    "lambda_tau": "lambda_tau: how long words are held",
    "lambda_s": "lambda_s: strength",
    "lambda_sv": "lambda_sv: width of the place",
    "hold": "hold: how long the layout is held",
}
CHANGED, KEPT = "#c85a00", "#2a6fb0"


def draw_sweeps(figures: dict[str, Any], path: Path) -> None:
    """A panel for each setting: share of edits that came through, and PSNR of what was to stay.

    Args:
        figures: of `bench softedit`; its variants, of which the one as shipped has every setting's default.
        path: of the picture.
    """
    rows, shipped = figures["variants"], figures["shipped"]
    figure, panels = plt.subplots(1, len(SETTINGS), figsize=(4 * len(SETTINGS), 3.2), sharey=True)
    for panel, (setting, title) in zip(panels, SETTINGS.items(), strict=True):
        points = [(row["value"], row) for row in rows if row.get("setting") == setting]
        points = sorted([*points, (shipped[setting], rows[0])], key=lambda point: point[0])
        values = [value for value, _ in points]
        panel.plot(values, [100 * row["success"] for _, row in points], "o-", color=CHANGED)
        panel.axvline(shipped[setting], color="0.8", zorder=0)
        panel.set(xlabel=title, ylim=(0, 100))
        kept = panel.twinx()
        kept.plot(values, [row["preserve"] for _, row in points], "s--", color=KEPT)
        kept.set(ylim=(10, 50))
        kept.tick_params(axis="y", labelcolor=KEPT, labelright=panel is panels[-1])
        if panel is panels[-1]:
            kept.set_ylabel("kept, dB (dashed)", color=KEPT)
    panels[0].set_ylabel("edits that came through, %", color=CHANGED)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
