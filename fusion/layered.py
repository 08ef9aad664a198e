"""Layered edits: what a list of layers asks for, worked out before anything is sampled."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks.grid import as_mask, check_aspect, dilate
from .fuse import moved_mask
from .geometry import CELL, SOLID, Cells, Placement, clean_rim, inward, lay_on, shifted, split_move, transform_layer
from .layers import LARGEST_SCALE, SMALLEST_SCALE, Layer, Move, in_order

DILATION = 20 / 1024  # of the width: DesignEdit's for objects that are removed or moved
FAINT = 0.02  # a mask's value up to which a pixel does not count as part of the object


@dataclass(frozen=True)
class Placed:
    """A layer at places that share one transformed picture: moves by whole cells (right, down)."""

    layer: Layer
    on_canvas: Placement
    moves: tuple[Cells, ...]
    from_source: bool  # whether the picture is the source itself, so that its trajectory serves

    @property
    def area(self) -> Tensor:
        """MASK (1, H, W) of all places."""
        return moved_mask(self.on_canvas.mask, self.moves)

    @property
    def key(self) -> str:
        """Text that two parts share when they look alike."""
        return " ".join([digest(self.on_canvas.picture), digest(self.on_canvas.mask), str(self.moves)])

    @property
    def changes(self) -> tuple[Cells, ...]:
        """The moves without the one to where the source shows the layer already."""
        return tuple(move for move in self.moves if move != (0, 0) or not self.from_source)


@dataclass(frozen=True)
class Layout:
    """A layered edit on one canvas, back to front; masks are (1, H, W)."""

    source: Tensor  # IMAGE (1, H, W, 3), sides cut to whole latent cells
    layers: tuple[Layer, ...]
    placed: tuple[Placed, ...]
    hole: Tensor | None  # everything that is removed, dilated; None: nothing is
    edited: Tensor  # everything that may change
    occluded: Tensor | None  # parts of moved layers that something hid, to be filled from the layer itself
    completed: Tensor | None  # the same, dilated

    @property
    def needs_inversion(self) -> bool:
        """Whether some layer is resampled, or from another picture: its noise is then nobody's yet."""
        return any(not part.from_source for part in self.placed)

    @property
    def covered(self) -> Tensor:
        """MASK (1, H, W) of all layers at their places."""
        return torch.stack([part.area for part in self.placed]).amax(0)

    def laid_on(self, canvas: Tensor) -> Tensor:
        """A picture (1, H, W, 3) with all layers laid on it, back to front."""
        for part in self.placed:
            canvas = lay_on(canvas, part.on_canvas, part.moves)
        return canvas

    def own_pixels(self) -> tuple[Tensor, Tensor]:
        """The layers' own pixels at their places, IMAGE (1, H, W, 3), and where to keep them, MASK (1, H, W).

        The mask is 1 where a layer covers a pixel whole, else 0: at its rim the layer is mixed with
        what lies behind. Nothing is kept where an occluder hid the layer.
        """
        picture, kept = torch.zeros_like(self.source), torch.zeros_like(self.edited)
        for part in self.placed:
            placement = part.on_canvas
            seen = placement.mask if placement.hidden is None else placement.mask * (1 - placement.hidden)
            pixels = clean_rim(placement.picture[0], placement.mask[0]).movedim(2, 0)
            for right, down in part.moves:
                way = CELL * right, CELL * down
                inner = (shifted(seen, *way) >= SOLID).float()
                own = shifted(pixels, *way).movedim(0, 2)
                picture = torch.where(inner.unsqueeze(-1) > 0, own, picture)
                kept = torch.maximum(kept * (1 - shifted(placement.mask, *way)), inner)
        return picture, kept

    def final_masks(self) -> Tensor:
        """MASK (L, H, W) of each layer where it is in the end, in the order of `layers`; 0 for removed ones."""
        masks = [torch.zeros_like(self.edited) for _ in self.layers]
        for part in self.placed:
            index = next(i for i, layer in enumerate(self.layers) if layer is part.layer)
            masks[index] = torch.maximum(masks[index], part.area)
        return torch.cat(masks)


def lay_out(source: Tensor, layers: Sequence[Layer], dilation: float = DILATION, where: str = "Layered Edit") -> Layout:
    """Work out an edit of one picture: transforms, holes, places.

    Receives the source IMAGE (1, H, W, 3) and layers in any order. `dilation` grows the
    areas that are filled or blended: below 1 a share of the width, from 1 on pixels.
    Raises ValueError for what cannot be done, naming the layer and the remedy.
    """
    if source.ndim != 4 or len(source) != 1:
        raise ValueError(
            f"{where}: image has a batch of {len(source)}; a layered edit takes one picture, "
            "choose it with Get Image from Batch"
        )
    if not layers:
        raise ValueError(f"{where}: layers is empty; connect Add Layer, Parse Plan or Load Layers")
    canvas = whole_cells(source)
    prepared = tuple(checked(layer, source, where) for layer in in_order(layers))
    holes = [_left_behind(layer, dilation) for layer in prepared if layer.image is None and not layer.stays]
    hole = torch.stack(holes).amax(0) if holes else None
    if hole is not None and not bool(hole.any()):
        hole = None  # occluders lie over all that is left behind
    placed = tuple(part for layer in prepared for part in places_of(canvas, layer, where))
    occluded = _occluded(placed, hole)
    completed = None if occluded is None else _grown(occluded, dilation)
    # what stays where it is changes nothing, but is laid over what now lies behind it
    changed = [_grown(moved_mask(part.on_canvas.mask, part.changes), dilation) for part in placed if part.changes]
    areas = [area for area in (hole, completed, *changed) if area is not None]
    if not areas and holes:
        raise ValueError(
            f"{where}: occluder covers all that a layer would leave behind; paint only what lies before it"
        )
    if not areas:
        raise ValueError(
            f"{where}: no layer is removed, moved or changed; give one a move, a scale, a rotation or a flip"
        )
    edited = torch.stack(areas).amax(0)
    if bool((edited > 0).all()):
        raise ValueError(f"{where}: the layers cover the whole picture; leave something around them")
    return Layout(canvas, prepared, placed, hole, edited, occluded, completed)


def with_detail(decoded: Tensor, laid: Tensor, round_trip: Tensor) -> Tensor:
    """What the model made of a picture, with the detail that the autoencoder loses given back.

    Receives IMAGEs (B, H, W, 3): the result as decoded, the picture with the layers laid on it
    that the model began with, and that picture once through the autoencoder. Where the model
    has changed nothing the result is the picture itself, to the last bit.
    """
    decoded, laid, round_trip = (_plain(picture) for picture in (decoded, laid, round_trip))
    return (laid + (decoded - round_trip)).clamp(0, 1)


def whole_cells(picture: Tensor) -> Tensor:
    """An IMAGE (B, H, W, C) as RGB without the pixels, right and below, that make no whole latent cell.

    float32 on the CPU, where layers are laid out, also where the host keeps pictures elsewhere
    (--gpu-only, --fp16-intermediates).
    """
    height, width = (side - side % CELL for side in picture.shape[1:3])
    return _plain(picture[:, :height, :width, :3])


def _plain(picture: Tensor) -> Tensor:
    return picture.to("cpu", torch.float32)


def checked(layer: Layer, source: Tensor, where: str) -> Layer:
    """A layer with its masks checked and on the grid of its picture."""
    name = f"{where}: layer {layer.name!r}"
    for field in ("scale_x", "scale_y"):
        value = getattr(layer, field)
        if not SMALLEST_SCALE <= value <= LARGEST_SCALE:
            raise ValueError(f"{name}: {field} is {value:g}; it must be {SMALLEST_SCALE:g} to {LARGEST_SCALE:g}")
    picture = source if layer.image is None else _plain(layer.image[..., :3])
    if len(picture) != 1:
        raise ValueError(f"{name}: its image has a batch of {len(picture)}; choose one with Get Image from Batch")
    masks = {}
    for field, mask in (("mask", layer.mask), ("occluder", layer.occluder)):
        if mask is None:
            continue
        mask = as_mask(mask, name, field)
        if len(mask) != 1:
            raise ValueError(f"{name}: {field} has a batch of {len(mask)}; give each its own Add Layer")
        _check_painted(mask, name, field)  # first: what nobody painted is 64 pixels square, whatever the picture
        check_aspect(mask, picture.shape[1:3], name, field, "picture's {} pixels")
        if mask.shape[1:] != picture.shape[1:3]:
            mask = F.interpolate(mask[None], size=picture.shape[1:3], mode="bilinear", antialias=True)[0].clamp(0, 1)
        if layer.image is None:
            mask = whole_cells(mask[..., None])[..., 0]
        _check_painted(mask, name, field)
        masks[field] = mask
    return replace(layer, image=None if layer.image is None else picture, **masks)


def _check_painted(mask: Tensor, name: str, field: str) -> None:
    if not bool((mask > FAINT).any()):
        raise ValueError(f"{name}: {field} is empty (all 0); paint it on the picture that the layer is from")


def places_of(canvas: Tensor, layer: Layer, where: str) -> list[Placed]:
    """A layer's places; moves with the same part of a cell left, that one canvas holds, share one picture."""
    groups: dict[tuple[float, float, Cells], list[Move]] = {}
    for move in layer.moves:
        rest = split_move(move)[1]
        aside = inward(layer, canvas.shape[1:3], move)
        groups.setdefault((round(rest[0], 2), round(rest[1], 2), aside), []).append(move)
    result = []
    for moves in groups.values():
        on_canvas = transform_layer(canvas, layer, moves[0])
        first = split_move(moves[0])[0]
        cells = []
        for move in moves:
            right, down = split_move(move)[0]
            cells.append((on_canvas.cells[0] + right - first[0], on_canvas.cells[1] + down - first[1]))
            if not bool((moved_mask(on_canvas.mask, cells[-1:]) > FAINT).any()):
                raise ValueError(
                    f"{where}: layer {layer.name!r}: the move {move[0]:g}, {move[1]:g} takes it out of the frame; "
                    "use a smaller move, or none at all to remove it"
                )
        result.append(Placed(layer, on_canvas, tuple(cells), on_canvas.picture is canvas))
    return result


def _left_behind(layer: Layer, dilation: float) -> Tensor:
    """The place that a layer leaves; what lies in front of it there is not touched."""
    place = _grown(layer.mask, dilation)
    return place if layer.occluder is None else place * (layer.occluder <= 0.5)


def _grown(mask: Tensor, dilation: float) -> Tensor:
    return dilate((mask > FAINT).float(), dilation)


def _occluded(placed: Sequence[Placed], hole: Tensor | None) -> Tensor | None:
    """Where layers land that something hid: the occluder's mask, moved along (DesignEdit's M_occ).

    Layers in front of them lie over it. Where a layer stays, what hides it does too,
    unless that is removed.
    """
    area = None
    for part in placed:
        area = None if area is None else area * (1 - part.area)
        hidden = part.on_canvas.hidden
        if hidden is None:
            continue
        places = [moved_mask(hidden, part.changes)] if part.changes else []
        if part.changes != part.moves and hole is not None:
            places.append(hidden * hole)
        if part.layer.image is None and part.layer.occluder is not None:
            # what hides the layer now is seen itself, and is not to be filled
            seen = part.layer.occluder if hole is None else part.layer.occluder * (1 - hole)
            places = [place * (seen <= 0.5) for place in places]
        area = torch.stack([area, *places] if area is not None else places).amax(0) if places else area
    return area if area is not None and bool((area > FAINT).any()) else None


class Content(str):
    """Text that stands for a value by its content, and carries it.

    The host caches the nodes of an expanded graph by their inputs; a tensor is never equal
    to another, this is.
    """

    value: Any

    def __new__(cls, value: Any, name: str | None = None) -> "Content":
        """`name` replaces the content's digest, for values that do not matter to a cache."""
        text = super().__new__(cls, digest(value) if name is None else name)
        text.value = value
        return text

    def __getnewargs__(self) -> tuple[Any, str]:
        """A copy has the same value and text."""
        return self.value, str(self)


def digest(value: Any) -> str:
    """Text that two values share when they are equal: a hash of a tensor's content, else what they print."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        digest = hashlib.sha256(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{tuple(data.shape)} {data.dtype} {digest.hexdigest()}"
    return repr(value)


def carried(text: str, where: str) -> Any:
    """The value that a Content carries. Raises ValueError for plain text, which no graph of ours has there."""
    if not isinstance(text, Content):
        raise ValueError(f"{where}: this node is a part of Layered Edit; use that one")
    return text.value
