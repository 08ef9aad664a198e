"""Preview of word timings: every word's map and where the edit is, each with its name and figures below."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .timings import WordTimings

_TILE = 128  # pixels of a map's shorter side, at least
_GAP, _TEXT = 8, 13
_COLUMNS = 6
_PAPER, _INK, _NEW = (250, 250, 250), (30, 30, 30), (200, 90, 0)


def timings_sheet(timings: WordTimings, maps: Tensor) -> Tensor:
    """IMAGE (1, H, W, 3) float32 of the words' maps (N, h, w), in the order of the edit prompt, and S_V.

    A map is scaled to its own maximum. New words are named in orange. S_V comes last, black is 0
    and white 1.
    """
    scaled = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    tiles = []
    for plane, timing, partner in zip(scaled, timings.timings, timings.alignment.partners, strict=True):
        figures = f"{timing.similarity:.2f}, tau {timing.tau:.2f}"
        tiles.append((_picture(plane), (timing.word, "new word" if partner is None else figures), partner is None))
    tiles.append((_picture(timings.saliency), ("S_V", "where the edit is"), False))
    font = ImageFont.load_default(_TEXT)
    wide, high = tiles[0][0].size
    cell = max(wide, *(math.ceil(font.getlength(line)) for _, lines, _ in tiles for line in lines)) + _GAP
    row = high + 2 * (_TEXT + 4) + _GAP
    columns = min(_COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * cell + _GAP, math.ceil(len(tiles) / columns) * row + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, lines, is_new) in enumerate(tiles):
        left, top = number % columns * cell + _GAP, number // columns * row + _GAP
        sheet.paste(picture, (left, top))
        for below, text in enumerate(lines):
            draw.text((left, top + high + 2 + below * (_TEXT + 4)), text, _NEW if is_new else _INK, font)
    return torch.from_numpy(np.asarray(sheet, np.float32) / 255)[None]


def _picture(plane: Tensor) -> Image.Image:
    """A map (h, w) in [0, 1] in grey, its cells as squares."""
    scale = max(1, -(-_TILE // min(plane.shape)))
    picture = Image.fromarray((plane.clamp(0.0, 1.0) * 255).round().to(torch.uint8).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
