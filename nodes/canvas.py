"""Pan And Zoom."""

from comfy_api.latest import io
from typing_extensions import override

from ..fusion.canvas import FILLS, SMALLEST_ZOOM, pan_and_zoom

CATEGORY = "latent layers/layers"


class PanAndZoom(io.ComfyNode):
    """IMAGE -> IMAGE, MASK: a picture shifted or shrunk on its own canvas."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersPanAndZoom",
            display_name="Pan And Zoom",
            category=CATEGORY,
            description="Shifts or shrinks a picture on its own canvas, as if the camera had panned or zoomed out, "
            "and masks the area that this exposes, to be filled like a removal.",
            search_aliases=["outpaint", "zoom out", "pan", "shift image", "extend image", "uncrop", "designedit"],
            inputs=[
                io.Image.Input("image", tooltip="The picture. Its size stays as it is."),
                io.Float.Input(
                    "shift_x",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="How far the picture moves, as a share of its width. Positive moves it right and exposes "
                    "the left (the camera pans left); negative moves it left.",
                ),
                io.Float.Input(
                    "shift_y",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="How far the picture moves, as a share of its height. Positive moves it down and exposes "
                    "the top (the camera pans up); negative moves it up.",
                ),
                io.Float.Input(
                    "zoom",
                    default=0.75,
                    min=SMALLEST_ZOOM,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Size of the picture: 0.75 shrinks it to three quarters, 1 only shifts it, sharp as it is.",
                ),
                io.Float.Input(
                    "center_x",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    advanced=True,
                    tooltip="The point that stays in place while the picture shrinks: 0 is its left edge, 1 its right.",
                ),
                io.Float.Input(
                    "center_y",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    advanced=True,
                    tooltip="The point that stays in place while the picture shrinks: 0 is its top edge, 1 its bottom.",
                ),
                io.Combo.Input(
                    "fill",
                    options=list(FILLS),
                    default="edge",
                    advanced=True,
                    tooltip="What lies under the exposed area at first. original: the picture as it was (as in the "
                    "paper). mirror: the new picture reflected at its borders. edge: its border pixels repeated. "
                    "black, white: nothing.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture at its new place, on the same canvas."),
                io.Mask.Output(display_name="mask", tooltip="The exposed area, white: what has to be filled."),
            ],
        )

    @classmethod
    @override
    def execute(cls, image, shift_x, shift_y, zoom, center_x=0.5, center_y=0.5, fill="edge") -> io.NodeOutput:
        return io.NodeOutput(*pan_and_zoom(image, shift_x, shift_y, zoom, center_x, center_y, fill))


NODES = [PanAndZoom]
