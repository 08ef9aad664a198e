"""What the settings of a soft edit do, as pictures: one edit, a row for each setting."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..attention.adaptive_host import LAMBDA_SV
from .pipeline import Toy
from .soft_edits import soft_edit
from .soft_run import Source, decoded, everywhere, prompt_only, real, soft, timings_of, with_tau

SEED = 45  # of the scene: a red circle on stripes becomes yellow
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTHS = (0.0, 0.5, 1.0, 2.0, 4.0)
HOLDS = (0.0, 0.25, 0.5, 0.75, 1.0)
TAUS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SIDE, _LABEL, _PAPER, _INK = 160, 16, (250, 250, 250), (30, 30, 30)


def soft_pictures(toy: Toy, seed: int = SEED) -> Image.Image:
    """A sheet: source, S_V and the edit as shipped; then strengths, widths of S_V, holds, and taus of all words."""
    source = real(toy, soft_edit(seed))
    timings = timings_of(toy, source, source.trajectory)

    def edited(**settings: Any) -> np.ndarray:
        return decoded(toy, soft(toy, source, timings, **settings))

    place = _grey((LAMBDA_SV * timings.saliency).clamp(0, 1))
    alone = decoded(toy, prompt_only(toy, source)[1])
    rows = [
        [("source", source.picture), ("S_V", place), ("soft edit", edited()), ("prompt alone", alone)],
        [(f"lambda_s {v:g}", edited(lambda_s=v)) for v in STRENGTHS],
        [(f"lambda_sv {v:g}", edited(lambda_sv=v)) for v in WIDTHS],
        [(f"hold {v:g}", edited(hold=v)) for v in HOLDS],
        [(f"tau {v:g}", _held(toy, source, timings, v)) for v in TAUS],
    ]
    return _sheet(rows)


def _held(toy: Toy, source: Source, timings: Any, tau: float) -> np.ndarray:
    """All words held alike, everywhere as strong as at the place, so that it is the words that keep the picture."""
    return decoded(toy, soft(toy, source, with_tau(timings, tau), **everywhere(hold=0.0)))


def _grey(plane: Tensor) -> np.ndarray:
    """A map (h, w) as a picture (H, W, 3)."""
    return np.kron(plane.numpy(), np.ones((16, 16)))[..., None].repeat(3, 2)


def _sheet(rows: list[list[tuple[str, np.ndarray]]]) -> Image.Image:
    """Rows of labelled pictures (H, W, 3) in [0, 1]."""
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (_SIDE + 8) + 8, len(rows) * (_SIDE + _LABEL + 12) + 8), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for line, row in enumerate(rows):
        top = 8 + line * (_SIDE + _LABEL + 12)
        for column, (label, picture) in enumerate(row):
            left = 8 + column * (_SIDE + 8)
            tile = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype("uint8"))
            sheet.paste(tile.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (left, top + _LABEL))
            draw.text((left, top - 2), label, _INK, font)
    return sheet
