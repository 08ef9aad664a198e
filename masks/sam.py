"""Segment Anything: prompts read and checked, candidates ordered, and what was found drawn.

Kirillov et al., Segment Anything, 2023. An image encoder turns a picture into an embedding,
once; a small decoder turns the embedding and a prompt (points on the object, points beside
it, a box around it) into masks. One click can mean a button, the shirt or its wearer: so the
decoder offers three masks and says of each how good it thinks it is (its estimate of the IoU).

Here is what needs no model. A point (x, y) is in pixels of the picture, right and down from
the left top; a box is (left, top, right, bottom) in the same pixels.
"""

import colorsys
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

# What becomes of the three masks that the decoder offers; off: it is asked for one.
CHOICES = ("best", "all", "off")

# Width of the image encoder -> its name in segment-anything's registry.
ENCODERS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_ENCODER_KEY = "image_encoder.patch_embed.proj.weight"

_TINT = 0.45  # share of its colour on a mask in the preview
_DARK = (14, 14, 18)
_PLUS, _MINUS = (40, 200, 90), (230, 50, 60)

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]  # (H, W, 3)


class Prompt(NamedTuple):
    """What says which object is meant: points on it, points beside it, a box around it."""

    positive: tuple[Point, ...]
    negative: tuple[Point, ...]
    box: Box | None

    def arrays(self) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None, NDArray[np.float64] | None]:
        """Points (N, 2), their labels (N,), 1 = on the object, and the box (4,); None for what is not given."""
        points = [*self.positive, *self.negative]
        labels = [1] * len(self.positive) + [0] * len(self.negative)
        box = None if self.box is None else np.array(self.box, np.float64)
        return (np.array(points, np.float64), np.array(labels), box) if points else (None, None, box)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_points(text: str, width: int, height: int, where: str) -> tuple[Point, ...]:
    """Points from text such as "120, 80; 40, 25": x, y in pixels of a picture of width x height.

    Lines separate as semicolons do; an empty text has no points. Also taken is what the host's
    SAM3 node takes, a JSON list [{"x": 120, "y": 80}, ...].
    Raises ValueError for what is no point, and for points outside the picture; `where` names
    node and input.
    """
    if text.lstrip().startswith("["):
        pairs = _json_pairs(text, where)
    else:
        pairs = [
            (part.strip(), re.split(r"[,\uff0c\s]+", part.strip()))
            for part in re.split(r"[;\uff1b\n]", text)
            if part.strip()
        ]
    points = []
    for number, (shown, values) in enumerate(pairs, start=1):
        try:
            x, y = (float(value) for value in values)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: {shown!r} is not a point; write x, y in pixels, e.g. 120, 80; 40, 25") from None
        # written so that NaN is outside
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"{where}: point {number} ({x:g}, {y:g}) is outside the image of {width}x{height}; "
                f"x goes from 0 to {width - 1}, y from 0 to {height - 1}"
            )
        points.append((x, y))
    return tuple(points)


def _json_pairs(text: str, where: str) -> list[tuple[str, list[Any]]]:
    """The entries of a JSON list of points, each as it is shown in errors, and its x and y."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is no valid JSON list ({error}); write x, y in pixels, e.g. 120, 80; 40, 25"
        ) from None
    return [
        (json.dumps(entry), [entry.get("x"), entry.get("y")] if isinstance(entry, dict) else [entry])
        for entry in entries
    ]


def read_boxes(boxes: Any, width: int, height: int, where: str) -> tuple[Box, ...]:
    """Boxes from the host's BOUNDING_BOX, cut off at the borders of a picture of width x height.

    The host's nodes give {"x", "y", "width", "height"} in pixels: one, a list of them, or a
    list of such lists, one per picture. None and empty lists have no boxes.
    Raises ValueError for boxes of several pictures, for what is no box, and for a box of which
    less than half lies in the picture (it was drawn on another one); `where` names node and input.
    """
    listed = [boxes] if isinstance(boxes, dict) else list(boxes or [])
    if any(isinstance(entry, list) for entry in listed):
        if len(listed) > 1:
            raise ValueError(f"{where} are of {len(listed)} images; give those of one image")
        listed = listed[0]
    found = []
    for number, entry in enumerate(listed, start=1):
        try:
            x, y, wide, high = (float(entry[name]) for name in ("x", "y", "width", "height"))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{where}: box {number} is {entry!r}; a box has x, y, width and height in pixels"
            ) from None
        shown = f"{where}: box {number} (x {x:g}, y {y:g}, {wide:g}x{high:g})"
        if not (wide > 0 and high > 0 and math.isfinite(x + y + wide + high)):
            raise ValueError(f"{shown} has no area; draw it from corner to corner")
        box = (max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + high, float(height)))
        inside = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
        if inside < 0.5 * wide * high:
            raise ValueError(
                f"{shown} lies mostly outside the image of {width}x{height}; draw it on this image, at its size"
            )
        found.append(box)
    return tuple(found)


def make_prompts(
    positive: Sequence[Point], negative: Sequence[Point], boxes: Sequence[Box], who: str
) -> tuple[Prompt, ...]:
    """One prompt per object: all points together, or each box with the points that lie in it.

    With a single box every point belongs to it, also one beside it (an arm that sticks out).
    Raises ValueError where nothing says what is meant: neither points nor boxes, negative
    points alone, or a point that lies in none of several boxes.
    """
    if not boxes and not positive:
        if negative:
            raise ValueError(
                f"{who}: negative: points alone only say what is not meant; add a positive point on the object, "
                "or a box around it"
            )
        raise ValueError(
            f"{who}: there are neither points nor boxes; write a point on the object into positive "
            "(x, y in pixels), or connect bboxes"
        )
    if len(boxes) < 2:
        return (Prompt(tuple(positive), tuple(negative), boxes[0] if boxes else None),)
    for name, points in (("positive", positive), ("negative", negative)):
        for number, (x, y) in enumerate(points, start=1):
            if not any(_is_in((x, y), box) for box in boxes):
                raise ValueError(
                    f"{who}: {name}: point {number} ({x:g}, {y:g}) lies in none of the {len(boxes)} boxes, so it is "
                    "unknown which object it belongs to; move it into a box, or use another node for it"
                )
    return tuple(
        Prompt(tuple(p for p in positive if _is_in(p, box)), tuple(p for p in negative if _is_in(p, box)), box)
        for box in boxes
    )


def _is_in(point: Point, box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def read_picture(image: Tensor, who: str) -> Pixels:
    """The one picture of an IMAGE (1, H, W, C) in 8 bits, (H, W, 3); an alpha channel is left out.

    Raises ValueError for a batch (points belong to one picture), other shapes and values that
    are not numbers.
    """
    if image.ndim != 4 or image.numel() == 0 or image.shape[3] not in (3, 4):
        raise ValueError(f"{who}: image has shape {tuple(image.shape)}; an IMAGE is (1, height, width, 3)")
    if len(image) > 1:
        raise ValueError(
            f"{who}: image is a batch of {len(image)}, but points and boxes are of one picture; "
            "choose one with Get Image from Batch"
        )
    pixels = image[0, ..., :3].detach().cpu().float()
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{who}: image has values that are not numbers; repair the node that makes it")
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def digest(pixels: Pixels) -> bytes:
    """A fingerprint of a picture's content: equal pictures have equal ones, wherever they come from."""
    content = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    content.update(pixels.tobytes())
    return content.digest()


def encoder_of(state: Mapping[str, Any], where: str) -> str:
    """Which of segment-anything's models a checkpoint holds, from its tensors: vit_b, vit_l or vit_h.

    Raises ValueError for what is no checkpoint of Segment Anything; `where` names node and file.
    """
    weight = state.get(_ENCODER_KEY) if isinstance(state, Mapping) else None
    if not isinstance(weight, Tensor) or weight.ndim != 4:
        raise ValueError(
            f"{where} is not a Segment Anything checkpoint (it has no {_ENCODER_KEY}); use one of Meta's first "
            "release. SAM 2, SAM 3, MobileSAM and files in the Transformers layout are other models"
        )
    if weight.shape[0] not in ENCODERS:
        known = ", ".join(f"{width} ({name})" for width, name in ENCODERS.items())
        raise ValueError(f"{where}: its image encoder is {weight.shape[0]} wide; use one of {known}")
    return ENCODERS[weight.shape[0]]


# --- choosing ---------------------------------------------------------------------------------------------------------


def logit(threshold: float, where: str) -> float:
    """The decoder's raw value at a probability: log(p / (1 - p)); 0 at 0.5, where segment-anything itself cuts.

    Raises ValueError unless 0 < threshold < 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"{where} is {threshold:g}; it has to lie between 0 and 1 (0.5 is the model's own)")
    return math.log(threshold / (1 - threshold))


def choose(scores: Tensor, choice: str) -> list[int]:
    """Which of the masks with these scores (n,) are kept, best first; `choice` is one of CHOICES."""
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    return order[:1] if choice == "best" else order


def score_lines(scores: Sequence[float], sources: Sequence[int], prompts: int) -> str:
    """One line per mask, e.g. "mask 2: 0.914 (box 1)"; `sources` are the prompts that the masks are of, from 0."""
    boxes = [f" (box {source + 1})" if prompts > 1 else "" for source in sources]
    return "\n".join(
        f"mask {number}: {score:.3f}{box}"
        for number, (score, box) in enumerate(zip(scores, boxes, strict=True), start=1)
    )


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(pixels: Pixels, masks: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """The picture with masks (n, H, W) tinted, boxes, and points: green with a plus, red with a minus.

    Returns IMAGE (1, H, W, 3), float32.
    """
    tinted = pixels.astype(np.float32)
    for number, mask in enumerate(masks.cpu().numpy()):
        inside = mask > 0.5
        tinted[inside] = (1 - _TINT) * tinted[inside] + _TINT * np.array(_colour(number), np.float32)
    canvas = Image.fromarray(tinted.round().astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(min(canvas.size) / 300))
    for box in dict.fromkeys(prompt.box for prompt in prompts if prompt.box is not None):
        left, top, right, bottom = (round(side) for side in box)
        frame = (left, top, max(left, right - 1), max(top, bottom - 1))
        pen.rectangle(frame, outline=_DARK, width=3 * line)
        inner = (frame[0] + line, frame[1] + line, frame[2] - line, frame[3] - line)
        if inner[0] <= inner[2] and inner[1] <= inner[3]:
            pen.rectangle(inner, outline=(255, 255, 255), width=line)
    for colour, points in (
        (_PLUS, dict.fromkeys(point for prompt in prompts for point in prompt.positive)),
        (_MINUS, dict.fromkeys(point for prompt in prompts for point in prompt.negative)),
    ):
        for point in points:
            _draw_point(pen, point, colour, max(3, 4 * line), line)
    return torch.from_numpy(np.asarray(canvas, np.float32) / 255)[None]


def _draw_point(pen: ImageDraw.ImageDraw, point: Point, colour: tuple[int, int, int], radius: int, line: int) -> None:
    x, y = (math.floor(side) for side in point)  # the pixel that is meant
    for reach, paint in ((radius + line, _DARK), (radius, colour)):
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=paint)
    arm = max(1, radius // 2)
    pen.line((x - arm, y, x + arm, y), fill=(255, 255, 255), width=line)
    if colour == _PLUS:
        pen.line((x, y - arm, x, y + arm), fill=(255, 255, 255), width=line)


def _colour(number: int) -> tuple[int, int, int]:
    """Bright colours that stay apart however many there are: golden-ratio steps around the circle of hues."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * 0.618034) % 1, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
