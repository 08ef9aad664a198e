"""Contact sheet: all candidates in their order, with their scores written below."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .candidates import Candidates, Ranking, score_lines

_TILE = 256  # pixels of a picture's longer side; smaller pictures stay as they are
_GAP, _FRAME, _TEXT = 12, 4, 14
_PAPER, _INK, _KEPT = (250, 250, 250), (30, 30, 30), (24, 140, 78)


def contact_sheet(candidates: Candidates, ranking: Ranking, keep: int) -> Tensor:
    """IMAGE (1, H, W, 3), float32: the source, then the candidates, best first.

    The first `keep` have a green frame. Below each: rank and number, the score, and each kind
    of score as normalised (raw).
    """
    font = ImageFont.load_default(_TEXT)
    tiles = [(candidates.source[0], ["source"], False)]
    for place, index in enumerate(ranking.order):
        label, *scores = score_lines(ranking, index)
        tiles.append((candidates.pictures[index], [f"{place + 1}. {label}", *scores], place < keep))
    texts = [line for _, lines, _ in tiles for line in lines]
    pictures = [_picture(picture) for picture, _, _ in tiles]
    wide, high = pictures[0].size
    line = _TEXT + 5
    cell = max(wide, *(math.ceil(font.getlength(text)) for text in texts)) + _GAP + _FRAME
    row = high + max(len(lines) for _, lines, _ in tiles) * line + _GAP + 2 * _FRAME
    columns = math.ceil(math.sqrt(len(tiles)))
    size = (columns * cell + _GAP + _FRAME, math.ceil(len(tiles) / columns) * row + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, (_, lines, kept)) in enumerate(zip(pictures, tiles, strict=True)):
        left, top = number % columns * cell + _GAP + _FRAME, number // columns * row + _GAP + _FRAME
        if kept:
            around = (left - _FRAME, top - _FRAME, left + wide + _FRAME - 1, top + high + _FRAME - 1)
            draw.rectangle(around, fill=_KEPT)
        sheet.paste(picture, (left, top))
        for below, text in enumerate(lines):
            draw.text((left, top + high + _FRAME + below * line), text, _INK, font)
    return torch.from_numpy(np.asarray(sheet, np.float32) / 255)[None]


def _picture(colours: Tensor) -> Image.Image:
    """A picture (H, W, 3) in [0, 1], small enough for a tile."""
    picture = Image.fromarray((colours * 255).round().to(torch.uint8).numpy())
    picture.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    return picture
