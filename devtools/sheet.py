"""A sheet of labelled pictures, for looking at results."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 12
LABEL = 18  # font size in pixels
BACKGROUND, INK = (250, 250, 250), (30, 30, 30)


@dataclass(frozen=True)
class Row:
    """One row: a caption above it and pictures (H x W x 3, 0..255) with a label each."""

    caption: str
    pictures: Sequence[tuple[str, np.ndarray]]


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw the rows one under the other. Raises ValueError when there are none."""
    if not rows:
        raise ValueError("a sheet needs at least one row")
    font = ImageFont.load_default(LABEL)
    line = LABEL + GAP // 2
    heights = [max(picture.shape[0] for _, picture in row.pictures) + 2 * line + GAP for row in rows]
    width = max(_width(row, font) for row in rows)
    sheet = Image.new("RGB", (width, sum(heights) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        draw.text((GAP, top), row.caption, INK, font)
        left = GAP
        for label, picture in row.pictures:
            draw.text((left, top + line), label, INK, font)
            sheet.paste(Image.fromarray(picture), (left, top + 2 * line))
            left += picture.shape[1] + GAP
        top += height
    return sheet


def _width(row: Row, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    pictures = sum(picture.shape[1] + GAP for _, picture in row.pictures)
    return GAP + max(pictures, int(font.getlength(row.caption)) + GAP)
