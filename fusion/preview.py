"""Layout preview: what Layered Edit will do, drawn over the source before anything is sampled."""

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..masks.grid import dilate
from .geometry import fit_into
from .layers import Layer, in_order, painted_box

WHO = "Layout preview"

_DIM = 0.4  # brightness that is left of the source
_DARK = (14, 14, 18)  # of the casings that set lines off from any picture
_SMOOTH = 2048  # pixels of the longer side up to which lines are drawn larger and then shrunk
_WIDEST_LABEL = 0.4  # share of the canvas

Points = np.ndarray  # (N, 2) or (2,): right, down in pixels
Size = tuple[int, int]  # width, height
Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive
Colour = tuple[int, int, int]


def layout_preview(source: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The plan of an edit as a picture.

    Each layer has a colour of its own. Where it is now: its outline and a dashed box, crossed
    out when the layer is removed. Where it goes, once per move: its pixels, a solid box that is
    turned and scaled with it, and an arrow from the old centroid to the new one. Labels give
    the place in the stack, 1 at the back, and the name. A layer of another picture has no old
    place here; it is fitted into the canvas, centred.

    Args:
        source: IMAGE (1, H, W, 3) in [0, 1], the canvas.
        layers: as Layered Edit takes them, later ones of the same order in front.

    Returns:
        IMAGE (1, H, W, 3), float32: the source dimmed, with the plan on it.

    Raises:
        ValueError: `source` is not one picture, or a layer's mask is empty.
    """
    if source.ndim != 4 or len(source) != 1 or source.numel() == 0:
        raise ValueError(f"{WHO}: source has shape {tuple(source.shape)}; give one picture, (1, height, width, 3)")
    picture = _picture(source)
    canvas = Image.blend(Image.new("RGB", picture.size), picture, _DIM)
    plans = [_Plan(layer, number, picture) for number, layer in enumerate(in_order(layers), 1)]
    for plan in plans:
        plan.paste_on(canvas)
    drawing = _Drawing(canvas)
    for plan in plans:
        drawing.draw_old_place(plan)
    for plan in plans:
        drawing.draw_boxes(plan)
    for plan in plans:
        drawing.draw_arrows(plan)
    for plan in plans:
        drawing.draw_labels(plan)
    return torch.from_numpy(np.asarray(drawing.finished(), np.float32) / 255)[None]


class _Place:
    """Where a layer goes: a map of the canvas, from where it was fitted at first."""

    def __init__(self, layer: Layer, centroid: Points, move: tuple[float, float]) -> None:
        c, s = math.cos(math.radians(layer.rotation)), math.sin(math.radians(layer.rotation))
        scale = np.diag([layer.scale_x * (-1) ** layer.flip_x, layer.scale_y * (-1) ** layer.flip_y])
        self.matrix = np.array([[c, -s], [s, c]]) @ scale
        self.centroid = centroid + move
        self.offset = self.centroid - self.matrix @ centroid

    def __call__(self, points: Points) -> Points:
        return points @ self.matrix.T + self.offset


class _Plan:
    """One layer, measured on the canvas."""

    def __init__(self, layer: Layer, number: int, source: Image.Image) -> None:
        box = painted_box(layer.mask)
        if box is None:
            raise ValueError(f"{WHO}: the mask of layer {layer.name!r} is empty; paint what belongs to the layer")
        self.layer, self.number, self.colour = layer, number, _colour(number)
        self.here = layer.image is None  # whether it is cut from the source
        self.picture = source if layer.image is None else _picture(layer.image)
        self.mask = _grey(layer.mask[0].detach().cpu().float().clamp(0, 1))
        # a mask of the source may be coarser than it; a picture of its own is fitted in, its aspect kept
        self.fit, self.margin = np.array(source.size) / self.mask.size, np.zeros(2)
        if not self.here:
            self.fit, self.margin = fit_into(self.mask.size[::-1], source.size[::-1])
        self.box = box
        self.corners = np.array([box[:2], (box[2], box[1]), box[2:], (box[0], box[3])]) * self.fit + self.margin
        self.centroid = _centroid(self.mask) * self.fit + self.margin
        self.places = [_Place(layer, self.centroid, move) for move in layer.moves]

    def paste_on(self, canvas: Image.Image) -> None:
        """The layer's pixels, at each of its new places."""
        # what is painted, and a pixel around it to blend into
        near = (
            max(self.box[0] - 1, 0),
            max(self.box[1] - 1, 0),
            min(self.box[2] + 1, self.mask.width),
            min(self.box[3] + 1, self.mask.height),
        )
        picture = self.picture if self.picture.size == self.mask.size else self.picture.resize(self.mask.size)
        piece = picture.crop(near)
        piece.putalpha(self.mask.crop(near))
        # shrunk before it is turned, as turning looks at single pixels
        scale = np.minimum(1, self.fit * np.abs([self.layer.scale_x, self.layer.scale_y]))
        width, height = (max(1, round(side)) for side in np.array(piece.size) * scale)
        step = np.array(piece.size) / (width, height)
        piece = piece.resize((width, height))
        for place in self.places:
            spot = _visible(place(self.corners), canvas.size)
            if spot is None:
                continue
            # from the spot's pixels back to those of the piece
            back = np.linalg.inv(place.matrix * (self.fit * step))
            origin = place.offset + place.matrix @ self.margin
            offset = back @ (np.array(spot[:2]) - origin) - np.array(near[:2]) / step
            affine = (*back[0], offset[0], *back[1], offset[1])
            size = (spot[2] - spot[0], spot[3] - spot[1])
            shown = piece.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
            canvas.paste(shown, spot[:2], shown)

    def rim(self, size: Size, thickness: int) -> tuple[Image.Image, tuple[int, int]]:
        """The edge just outside the mask, for a canvas of `size`: a mask (L) and the left top to paste it at."""
        scale = np.array(size) / self.mask.size
        (left, top), (right, bottom) = (np.round(corner * scale).astype(int) for corner in (self.box[:2], self.box[2:]))
        inside = self.mask.crop(self.box).resize((max(1, int(right - left)), max(1, int(bottom - top))))
        padded = np.pad(np.asarray(inside) > 127, thickness)
        area = torch.from_numpy(padded.astype(np.float32))
        return _grey(dilate(area[None], thickness)[0] - area), (int(left) - thickness, int(top) - thickness)


class _Drawing:
    """Lines and labels on a canvas that is enlarged meanwhile, so that they come out smooth."""

    def __init__(self, canvas: Image.Image) -> None:
        self.finer = max(1, min(4, _SMOOTH // max(canvas.size)))
        side = min(canvas.size)
        self.line = max(1, round(self.finer * max(1.0, side / 300)))
        # nearest up and the mean down leave the picture itself unchanged
        enlarged = (canvas.width * self.finer, canvas.height * self.finer)
        self.canvas = canvas.resize(enlarged, Image.Resampling.NEAREST)
        self.draw = ImageDraw.Draw(self.canvas)
        self.font = ImageFont.load_default(self.finer * max(9.0, side / 34))
        self.taken: list[Box] = []  # what labels should not hide

    def finished(self) -> Image.Image:
        """The canvas at its own size again."""
        return self.canvas.reduce(self.finer)

    def draw_old_place(self, plan: _Plan) -> None:
        """Outline and dashed box where the layer is now, and a cross when it goes away."""
        if not plan.here or plan.layer.stays:
            return
        for extra, colour in ((self._casing, _DARK), (0, plan.colour)):
            rim, corner = plan.rim(self.canvas.size, self.line + extra)
            self.canvas.paste(colour, corner, rim)
        corners = plan.corners * self.finer
        self._stroke([part for a, b in _sides(corners) for part in self._dashes(a, b)], plan.colour)
        if not plan.places:
            self._stroke([(corners[0], corners[2]), (corners[1], corners[3])], plan.colour, 2)

    def draw_boxes(self, plan: _Plan) -> None:
        """A box at each new place."""
        for place in plan.places:
            self._stroke(_sides(place(plan.corners) * self.finer), plan.colour)

    def draw_arrows(self, plan: _Plan) -> None:
        """An arrow from the old place to each new one."""
        for place in plan.places if plan.here else ():
            self._arrow(plan.centroid * self.finer, place.centroid * self.finer, plan.colour)

    def draw_labels(self, plan: _Plan) -> None:
        """Number and name at each new place, or at the old one of what is removed."""
        text = self._text(plan)
        for corners in [place(plan.corners) for place in plan.places] or [plan.corners]:
            self._label(text, corners * self.finer, plan.colour)

    @property
    def _casing(self) -> int:
        return max(1, self.line // 2)

    def _stroke(self, lines: list[tuple[Points, Points]], colour: Colour, thicker: float = 1) -> None:
        for width, paint in (
            (round(self.line * thicker) + 2 * self._casing, _DARK),
            (round(self.line * thicker), colour),
        ):
            # square ends close the corners; a little longer, the casing surrounds dashes too
            for start, stop in lines:
                along = (stop - start) / max(float(np.linalg.norm(stop - start)), 1e-9) * width / 2
                self.draw.line([*(start - along), *(stop + along)], fill=paint, width=max(1, width))

    def _dashes(self, start: Points, stop: Points) -> list[tuple[Points, Points]]:
        """Evenly spread dashes from corner to corner."""
        length = float(np.linalg.norm(stop - start))
        count = max(1, round(length / (8 * self.line)))
        ends = np.linspace(0, 1, 2 * count + 2)
        return [(start + a * (stop - start), start + b * (stop - start)) for a, b in ends.reshape(-1, 2)]

    def _arrow(self, start: Points, stop: Points, colour: Colour) -> None:
        head = 5.0 * self.line
        length = float(np.linalg.norm(stop - start))
        if length < 2 * head:
            return
        ahead = (stop - start) / length
        aside = np.array([-ahead[1], ahead[0]])
        neck = stop - head * ahead
        self._stroke([(start, neck)], colour, 1.5)
        for grown, paint in ((self._casing, _DARK), (0, colour)):
            radius = 1.8 * self.line + grown
            self.draw.ellipse([*(start - radius), *(start + radius)], fill=paint)
            tip, base, half = stop + 2 * grown * ahead, neck - grown * ahead, 0.55 * head + 1.5 * grown
            self.draw.polygon([tuple(p) for p in (tip, base + half * aside, base - half * aside)], fill=paint)
        left, top, right, bottom = (round(side) for side in (*(stop - head), *(stop + head)))
        self.taken.append((left, top, right, bottom))

    def _label(self, text: str, corners: Points, colour: Colour) -> None:
        """The text on its colour, next to the corners, on the canvas, where it hides no other and no arrowhead."""
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=self.font)
        pad = 2 * self.line
        width, height = math.ceil(right - left + 2 * pad), math.ceil(bottom - top + 2 * pad)
        low, high = corners.min(0) - self.line, corners.max(0) + self.line
        wanted = [
            (low[0], low[1] - height),
            (low[0], high[1]),
            (high[0] - width, low[1] - height),
            (high[0] - width, high[1]),
            (high[0], low[1]),
            (low[0] - width, low[1]),
        ]
        boxes = [self._inside(round(x), round(y), width, height) for x, y in wanted]
        free = [box for box in boxes if not any(_overlap(box, other) for other in self.taken)]
        box = free[0] if free else boxes[0]
        self.taken.append(box)
        edge = self._casing
        around = (box[0] - edge, box[1] - edge, box[2] + edge - 1, box[3] + edge - 1)
        self.draw.rounded_rectangle(around, radius=pad, fill=_DARK)
        self.draw.rounded_rectangle((box[0], box[1], box[2] - 1, box[3] - 1), radius=pad, fill=colour)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110
        at = (box[0] + pad - left, box[1] + pad - top)
        self.draw.text(at, text, font=self.font, fill=_DARK if light else (255, 255, 255))

    def _inside(self, x: int, y: int, width: int, height: int) -> Box:
        edge = self._casing
        x = max(edge, min(x, self.canvas.width - width - edge))
        y = max(edge, min(y, self.canvas.height - height - edge))
        return x, y, x + width, y + height

    def _drawn(self, letter: str) -> bytes:
        """What the font makes of a letter; the same for all that it lacks."""
        pixels: Any = self.font.getmask(letter)
        return bytes(pixels)

    def _text(self, plan: _Plan) -> str:
        """Number and name, without letters that the font lacks (it is Latin), and as short as the canvas needs."""
        unknown = self._drawn("\uffff")
        known = [c if c.isprintable() and self._drawn(c) != unknown else " " for c in plan.layer.name]
        name = " ".join("".join(known).split())
        for length in range(len(name), min(len(name), 6) - 1, -1):
            shown = name if length == len(name) else name[: length - 1].rstrip() + "…"
            text = f"{plan.number} {shown}".strip()
            if self.font.getlength(text) <= _WIDEST_LABEL * self.canvas.width:
                return text
        return str(plan.number)


def _picture(image: Tensor) -> Image.Image:
    """The first picture of an IMAGE (B, H, W, C)."""
    pixels = image[0, ..., :3].detach().cpu().float().clamp(0, 1)
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def _grey(mask: Tensor) -> Image.Image:
    return Image.fromarray((mask * 255).round().to(torch.uint8).numpy())


def _centroid(mask: Image.Image) -> Points:
    weights = np.asarray(mask, np.float64)
    columns, rows = weights.sum(0), weights.sum(1)
    across, down = ((np.arange(len(sums)) + 0.5) @ sums / sums.sum() for sums in (columns, rows))
    return np.array([across, down])


def _colour(number: int) -> Colour:
    """Bright colours that stay apart however many there are: golden-ratio steps around the circle of hues."""
    hue = (0.5 + number * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.45)[number // 8 % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _sides(corners: Points) -> list[tuple[Points, Points]]:
    return list(zip(corners, np.roll(corners, -1, axis=0), strict=True))


def _visible(points: Points, size: Size) -> Box | None:
    """The whole pixels around `points` and one more, as far as they lie on the canvas."""
    left, top = np.floor(points.min(0)).astype(int) - 1
    right, bottom = np.ceil(points.max(0)).astype(int) + 1
    box = max(int(left), 0), max(int(top), 0), min(int(right), size[0]), min(int(bottom), size[1])
    return box if box[0] < box[2] and box[1] < box[3] else None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
