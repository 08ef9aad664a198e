"""Add Layer, Transform Layer, Fuse Layer, Layout Preview: layers, and the pieces that layered edits are made of."""

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..fusion.fuse import fuse
from ..fusion.geometry import CELL, lay_on, split_move
from ..fusion.host import in_model_units
from ..fusion.layered import checked, lay_out, places_of, whole_cells
from ..fusion.layers import LARGEST_SCALE, SMALLEST_SCALE, Layer, parse_moves
from ..fusion.preview import layout_preview
from ..masks.grid import as_mask
from .types import Layers, Trajectory

CATEGORY = "latent layers/layers"
FLIPS = ("none", "horizontal", "vertical", "both")
MOVES = (
    "Where it goes: right, down, from where it is. Pixels (120, -40) or percents of its picture (10%, 0). "
    "Semicolons between several places: duplicates."
)


def _scale(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=1.0, min=SMALLEST_SCALE, max=LARGEST_SCALE, step=0.01, round=0.001, tooltip=tooltip
    )


def transform_inputs() -> list[io.Input]:
    """Size, angle and side of a layer."""
    return [
        _scale("scale_x", "Width, as a factor, about the middle of the mask."),
        _scale("scale_y", "Height, as a factor, about the middle of the mask."),
        io.Float.Input(
            "rotation", default=0.0, min=-360.0, max=360.0, step=0.5, round=0.01, tooltip="Degrees clockwise."
        ),
        io.Combo.Input(
            "flip", options=list(FLIPS), default="none", tooltip="Mirror it left-right, top-bottom or both."
        ),
    ]


def _flips(flip: str) -> tuple[bool, bool]:
    """Whether left and right, top and bottom change sides."""
    return flip in ("horizontal", "both"), flip in ("vertical", "both")


class AddLayer(io.ComfyNode):
    """One more layer for Layered Edit."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersAddLayer",
            display_name="Add Layer",
            category=CATEGORY,
            description="Says which piece of the picture is a layer and what becomes of it: moved, resized, turned, "
            "flipped, duplicated or removed. Chain one node per layer, then Layered Edit.",
            search_aliases=["move object", "resize object", "duplicate object", "layer list", "designedit"],
            inputs=[
                io.Mask.Input("mask", tooltip="The object, painted or from any mask node, on the picture it is in."),
                Layers.Input("layers", optional=True, tooltip="The layers so far; this one is added in front."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Another picture that the layer is cut from. Nothing connected: the edited picture.",
                ),
                io.String.Input("name", default="", tooltip="What plans, previews and messages call it."),
                io.Boolean.Input("remove", default=False, tooltip="Take it away and fill the place behind it."),
                io.String.Input("moves", default="0, 0", tooltip=MOVES),
                *transform_inputs(),
                io.Int.Input(
                    "order",
                    default=0,
                    min=-100,
                    max=100,
                    tooltip="Higher lies in front. Equal: in the order of the nodes, the last in front.",
                ),
                io.Mask.Input(
                    "occluder",
                    optional=True,
                    tooltip="What hides part of it now. Where that lands, the layer is completed (a second pass).",
                ),
            ],
            outputs=[Layers.Output(display_name="layers", tooltip="The layers so far and this one.")],
        )

    @classmethod
    @override
    def execute(
        cls, mask, name, remove, moves, scale_x, scale_y, rotation, flip, order, layers=None, image=None, occluder=None
    ) -> io.NodeOutput:
        before = list(layers or [])
        called = name.strip() or f"layer {len(before) + 1}"
        mask = as_mask(mask, f"Add Layer {called!r}")
        height, width = mask.shape[1:] if image is None else image.shape[1:3]
        where = f"Add Layer {called!r}: moves"
        flip_x, flip_y = _flips(flip)
        layer = Layer(
            name=called,
            mask=mask,
            image=image,
            scale_x=scale_x,
            scale_y=scale_y,
            rotation=rotation,
            flip_x=flip_x,
            flip_y=flip_y,
            moves=() if remove else parse_moves(moves, width, height, where),
            order=order,
            occluder=occluder,
        )
        return io.NodeOutput([*before, layer])


class TransformLayer(io.ComfyNode):
    """IMAGE, MASK -> the layer's picture on the canvas, its mask, and what remains of the move."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersTransformLayer",
            display_name="Transform Layer",
            category=CATEGORY,
            description="Resizes, turns, flips or moves a piece of a picture, in pixels, ready for VAE Encode. With a "
            "canvas the layer is laid on it at its places. Without one it stays in its picture, and whole latent cells "
            "of the move are left for Fuse Layer; with nothing else to do the picture passes through untouched.",
            search_aliases=["resize object", "rotate object", "flip object", "layer transform"],
            inputs=[
                io.Image.Input("image", tooltip="The picture that is edited."),
                io.Mask.Input("mask", tooltip="The object, on the picture that it is in."),
                *transform_inputs(),
                io.String.Input(
                    "moves",
                    default="0, 0",
                    tooltip="Where it goes: right, down, in pixels (120, -40) or percents of the edited picture "
                    "(10%, 0). Semicolons between several places.",
                ),
                io.Image.Input(
                    "canvas",
                    optional=True,
                    tooltip="What lies behind: the picture without its removed objects, or the last Transform Layer's.",
                ),
                io.Image.Input(
                    "layer_image",
                    optional=True,
                    tooltip="Another picture that the layer is cut from; it is fitted into the edited one.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The canvas with the layer on it, or the picture."),
                io.Mask.Output(display_name="mask", tooltip="The layer in that picture."),
                io.String.Output(display_name="moves", tooltip="What remains, in whole latent cells: for Fuse Layer."),
            ],
        )

    @classmethod
    @override
    def execute(
        cls, image, mask, scale_x, scale_y, rotation, flip, moves, canvas=None, layer_image=None
    ) -> io.NodeOutput:
        who = "Transform Layer"
        full, image, canvas = image, whole_cells(image), None if canvas is None else whole_cells(canvas)
        height, width = image.shape[1:3]
        places = parse_moves(moves, width, height, f"{who}: moves")
        layer = Layer("mask", mask, layer_image, scale_x, scale_y, rotation, *_flips(flip), moves=places)
        layer = checked(layer, full, who)
        parts = places_of(image, layer, who)
        if canvas is not None:
            if canvas.shape[1:3] != image.shape[1:3]:
                raise ValueError(
                    f"{who}: canvas is {canvas.shape[2]}x{canvas.shape[1]}, image {width}x{height}; give both one size"
                )
            for part in parts:
                canvas = lay_on(canvas, part.on_canvas, part.moves)
            return io.NodeOutput(canvas, torch.stack([part.area for part in parts]).amax(0), "0, 0")
        if len(parts) > 1:
            raise ValueError(
                f"{who}: moves {moves!r} have different remainders by {CELL} pixels, so one picture cannot serve them "
                "all; connect a canvas, or use one Transform Layer for each"
            )
        remaining = "; ".join(f"{CELL * right}, {CELL * down}" for right, down in parts[0].moves)
        return io.NodeOutput(parts[0].on_canvas.picture, parts[0].on_canvas.mask, remaining)


class FuseLayer(io.ComfyNode):
    """TRAJECTORY x TRAJECTORY x MASK x moves -> TRAJECTORY."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersFuseLayer",
            display_name="Fuse Layer",
            category=CATEGORY,
            description="Lays a layer over a canvas in latent space, at every noise level that both have, once for "
            "every move. Sampling the rest of the schedule from there blends it in.",
            search_aliases=["latent composite", "multi-layered fusion", "move object", "designedit"],
            inputs=[
                Trajectory.Input("canvas", tooltip="What lies behind: of a removal, or of Invert."),
                Trajectory.Input("layer", tooltip="The picture that the layer is cut from, inverted."),
                io.Mask.Input("mask", tooltip="The layer in its picture; soft edges stay soft."),
                io.String.Input(
                    "moves",
                    default="0, 0",
                    tooltip="Right, down, in pixels, multiples of 8 (whole latent cells). Semicolons between several.",
                ),
                io.Latent.Input(
                    "placed",
                    optional=True,
                    tooltip="The canvas with the layer laid on it (Transform Layer with a canvas), encoded: the rim "
                    "then shows the new background. Only the noise is taken from the layer's trajectory.",
                ),
            ],
            outputs=[
                Trajectory.Output(display_name="trajectory", tooltip="The canvas with the layer on it."),
                io.Mask.Output(display_name="mask", tooltip="Where the layer is now."),
            ],
        )

    @classmethod
    @override
    def execute(cls, canvas, layer, mask, moves, placed=None) -> io.NodeOutput:
        who = "Fuse Layer"
        mask = as_mask(mask, who)
        splits = [split_move(move) for move in parse_moves(moves, mask.shape[2], mask.shape[1], f"{who}: moves")]
        if any(rest != (0.0, 0.0) for _, rest in splits):
            raise ValueError(
                f"{who}: moves {moves!r} are not whole latent cells ({CELL} pixels); "
                "let Transform Layer do the rest, and connect its moves"
            )
        clean = None if placed is None else in_model_units(canvas, placed["samples"])
        fused, area = fuse(canvas, layer, mask, [cells for cells, _ in splits], clean)
        return io.NodeOutput(fused, area)


class LayoutPreview(io.ComfyNode):
    """What Layered Edit will do, before it does it."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersLayoutPreview",
            display_name="Layout Preview",
            category=CATEGORY,
            description="Draws every layer's old and new places over the picture. Costs nothing: look before you run.",
            search_aliases=["preview layers", "boxes", "layout"],
            inputs=[
                io.Image.Input("image", tooltip="The picture that is edited."),
                Layers.Input("layers", tooltip="From Add Layer, Parse Plan or Load Layers."),
            ],
            outputs=[
                io.Image.Output(display_name="layout", tooltip="The picture, dimmed, with boxes and arrows."),
                io.Mask.Output(display_name="masks", tooltip="Each layer where it will be, back to front."),
            ],
        )

    @classmethod
    @override
    def execute(cls, image, layers) -> io.NodeOutput:
        layout = lay_out(image, layers, where="Layout Preview")
        return io.NodeOutput(layout_preview(layout.source, layout.layers), layout.final_masks())


NODES = [AddLayer, TransformLayer, FuseLayer, LayoutPreview]
