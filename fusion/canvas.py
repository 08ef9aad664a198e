"""Pan and zoom-out: a picture shifted and shrunk on its own canvas, and the area that this exposes.

DesignEdit (section on image panning and zooming) makes both a removal: the picture is laid
on the canvas at its new place, M is the newly exposed area, and key-masked self-attention
fills it. This is the part before the model.

The geometry is exact, down to parts of a pixel, so that the result can be compared with the
same world seen through another window. A pixel that the picture covers only in part counts
as exposed: no half-transparent border row is left to be kept.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

WHO = "Pan And Zoom"
SMALLEST_ZOOM = 0.1
FILLS = ("original", "mirror", "edge", "black", "white")

_HAIR = 1e-6  # pixels: rounding errors of positions, far below anything visible


@dataclass(frozen=True)
class Span:
    """Where the picture lies on one axis of the canvas, of `size` pixels: from `start`, shrunk by `zoom`."""

    size: int
    start: float
    zoom: float

    @property
    def first(self) -> int:
        """First pixel that is covered in full, perhaps outside the canvas."""
        return math.ceil(self.start - _HAIR)

    @property
    def last(self) -> int:
        """The pixel after the last one that is covered in full."""
        return math.floor(self.start + self.size * self.zoom + _HAIR)

    @property
    def seen(self) -> slice:
        """The pixels of the canvas that are covered in full."""
        return slice(max(self.first, 0), max(min(self.last, self.size), 0))

    @property
    def source(self) -> tuple[float, float]:
        """The part of the picture that pixels first to last show, in its own pixels."""
        ends = [(end - self.start) / self.zoom for end in (self.first, self.last)]
        return max(ends[0], 0.0), min(ends[1], float(self.size))


def place(size: int, shift: float, zoom: float, center: float) -> Span:
    """Where a picture lies after a zoom about `center` and then a shift, on an axis of `size` pixels.

    `shift` and `center` are shares of the axis. At zoom 1 the place is rounded to whole pixels,
    as a picture that only moves has to stay as sharp as it was.
    """
    start = size * (center * (1 - zoom) + shift)
    return Span(size, math.floor(start + 0.5) if zoom == 1 else start, zoom)


def window_of(
    width: int,
    height: int,
    shift_x: float,
    shift_y: float,
    zoom: float,
    center_x: float = 0.5,
    center_y: float = 0.5,
) -> tuple[float, float, float]:
    """The window through which the same world looks as `pan_and_zoom` makes a picture of this size.

    Returns (x, y, zoom): how far the window's centre lies from the picture's, in shares of
    the frame (right and down), and its magnification: toyscenes' Window. The rounding of
    shifts to whole pixels is included.
    """
    x, y = place(width, shift_x, zoom, center_x), place(height, shift_y, zoom, center_y)
    # the picture's centre lies at start / size + zoom / 2 of the frame; zoom turns frame into world
    return (0.5 - x.start / width) / zoom - 0.5, (0.5 - y.start / height) / zoom - 0.5, zoom


def pan_and_zoom(
    image: Tensor,
    shift_x: float = 0.0,
    shift_y: float = 0.0,
    zoom: float = 1.0,
    center_x: float = 0.5,
    center_y: float = 0.5,
    fill: str = "original",
) -> tuple[Tensor, Tensor]:
    """Shrink a picture about a fixed point, then shift it, on its own canvas.

    Args:
        image: IMAGE (B, H, W, C) in [0, 1].
        shift_x, shift_y: how far the picture moves right and down, as shares of its width and
            height; positive exposes the left and the top. At zoom 1 rounded to whole pixels.
        zoom: factor of its size, 0.1 to 1.
        center_x, center_y: the point that stays in place while it shrinks, as shares.
        fill: what lies under the exposed area: "original" the untouched picture, "mirror" the
            new one reflected at its borders, "edge" its border pixels repeated, "black", "white".

    Returns:
        IMAGE (B, H, W, C) float32 and MASK (B, H, W): 1 where exposed, 0 where the picture
        covers the whole pixel. Moves without zoom copy every pixel unchanged.

    Raises:
        ValueError: a number is not finite, zoom is out of range, the fill is unknown, the image
            is none, or the picture fills the canvas entirely or leaves it entirely.
    """
    numbers = {"shift_x": shift_x, "shift_y": shift_y, "zoom": zoom, "center_x": center_x, "center_y": center_y}
    _check(image, numbers, fill)
    pixels = image.detach().to(device="cpu", dtype=torch.float32)
    height, width = pixels.shape[1:3]
    x, y = place(width, shift_x, zoom, center_x), place(height, shift_y, zoom, center_y)
    exposed = torch.ones(pixels.shape[:3])
    exposed[:, y.seen, x.seen] = 0.0
    if bool((exposed == 1).all()):
        raise ValueError(
            f"{WHO}: {_settings(numbers)} leave nothing of the picture in the frame of {width}x{height}; "
            f"bring shift_x and shift_y nearer to 0, or zoom nearer to 1"
        )
    if not bool(exposed.any()):
        raise ValueError(
            f"{WHO}: {_settings(numbers)} expose nothing of the frame of {width}x{height}; "
            f"set zoom below 1, or shift_x or shift_y to half a pixel at least"
        )
    picture = _shrunk(pixels, x, y)
    if fill in ("mirror", "edge"):
        return _extended(picture, x, y, "symmetric" if fill == "mirror" else "edge"), exposed
    canvas = pixels.clone() if fill == "original" else torch.full_like(pixels, float(fill == "white"))
    rows, columns = (slice(axis.seen.start - axis.first, axis.seen.stop - axis.first) for axis in (y, x))
    canvas[:, y.seen, x.seen] = picture[:, rows, columns]
    return canvas, exposed


def _shrunk(pixels: Tensor, x: Span, y: Span) -> Tensor:
    """What each fully covered pixel shows of (B, H, W, C): (B, y.last - y.first, x.last - x.first, C)."""
    if x.zoom == 1:
        return pixels
    size = (x.last - x.first, y.last - y.first)
    box = (x.source[0], y.source[0], x.source[1], y.source[1])
    # Pillow resamples boxes that begin and end inside pixels, antialiased, channel by channel in float32;
    # of its filters the cubic one came nearest to scenes drawn at the smaller size
    planes = [
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC, box=box))
        for plane in pixels.permute(0, 3, 1, 2).flatten(0, 1).contiguous().numpy()
    ]
    shrunk = torch.from_numpy(np.stack(planes)).unflatten(0, (len(pixels), -1))
    return shrunk.permute(0, 2, 3, 1).clamp(0.0, 1.0)


def _extended(picture: Tensor, x: Span, y: Span, mode) -> Tensor:
    """The placed picture continued over the whole canvas, by one of numpy's ways to pad."""
    inside = [slice(max(-axis.first, 0), axis.size + max(-axis.first, 0)) for axis in (y, x)]
    around = [(max(axis.first, 0), max(axis.size - axis.last, 0)) for axis in (y, x)]
    padded = np.pad(picture.numpy(), [(0, 0), *around, (0, 0)], mode=mode)
    return torch.from_numpy(np.ascontiguousarray(padded[:, inside[0], inside[1]]))


def _settings(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in numbers.items() if not name.startswith("center"))


def _check(image: Tensor, numbers: dict[str, float], fill: str) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{WHO}: {name} is {value}, not a number; check what is connected to it")
    zoom = numbers["zoom"]
    if not SMALLEST_ZOOM <= zoom <= 1:
        raise ValueError(
            f"{WHO}: zoom is {zoom:g}; it shrinks the picture, so choose {SMALLEST_ZOOM:g} to 1 (1 keeps the size)"
        )
    if fill not in FILLS:
        raise ValueError(f"{WHO}: fill is {fill!r}; use one of {', '.join(FILLS)}")
    if image.ndim != 4 or image.numel() == 0:
        raise ValueError(f"{WHO}: image has shape {tuple(image.shape)}; an IMAGE is (batch, height, width, channels)")
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{WHO}: image has values that are not numbers; repair the node that makes it")
