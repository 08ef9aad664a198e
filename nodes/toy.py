"""Toy Model and Toy Scene: the embedded default, so that every graph runs on a fresh machine."""

from comfy_api.latest import io
from typing_extensions import override

from ..fusion.layers import parse_moves
from ..toyscenes import host, model

CATEGORY = "latent layers/toy"


def _side(name: str) -> io.Int.Input:
    return io.Int.Input(name, default=256, min=64, max=2048, step=8, tooltip="Pixels. Toy Model is at home at 256.")


class ToyModel(io.ComfyNode):
    """The embedded checkpoint."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersToyModel",
            display_name="Toy Model",
            category=CATEGORY,
            description="A small Stable Diffusion that ships with the pack and knows only toy scenes, to try every "
            "graph without a download. Replace it by Load Checkpoint for real pictures.",
            search_aliases=["demo checkpoint", "example model", "test model"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="UNet with ε-prediction and Stable Diffusion's noise schedule."),
                io.Clip.Output(tooltip="Text encoder; it knows the words of the scenes' captions."),
                io.Vae.Output(tooltip="Autoencoder with a factor of 8, as Stable Diffusion's."),
            ],
        )

    @classmethod
    @override
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*model.load())


class ToyScene(io.ComfyNode):
    """A picture of which everything is known."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersToyScene",
            display_name="Toy Scene",
            category=CATEGORY,
            description="Draws a scene of simple objects, with their masks and the true picture without one of them, "
            "or with it moved.",
            search_aliases=["demo image", "example image", "test image", "ground truth"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=14,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Which scene; the same seed and settings draw the same scene.",
                ),
                _side("width"),
                _side("height"),
                io.Int.Input("objects", default=3, min=1, max=4, tooltip="How many objects to draw, if there is room."),
                io.Int.Input("object", default=1, min=1, max=4, tooltip="The object to edit: 1 is in front."),
                io.String.Input(
                    "moves",
                    default="",
                    optional=True,
                    tooltip="Where the truth has the object: right, down, as in Add Layer. Empty: it is gone.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The scene."),
                io.Mask.Output(display_name="mask", tooltip="What is seen of the chosen object."),
                io.Image.Output(
                    display_name="truth", tooltip="The true scene: without the chosen object, or with it moved."
                ),
                io.String.Output(display_name="caption", tooltip="What the scene shows."),
                io.Mask.Output(display_name="masks", tooltip="What is seen of each object, back to front, as a batch."),
                io.String.Output(display_name="truth_caption", tooltip="What the true scene shows."),
            ],
        )

    @classmethod
    @override
    def execute(cls, seed, width, height, objects, object, moves="") -> io.NodeOutput:
        places = parse_moves(moves, width, height, "Toy Scene: moves") if moves.strip() else ()
        scene = host.draw_scene(seed, width, height, objects, object, places)
        return io.NodeOutput(scene.image, scene.mask, scene.truth, scene.caption, scene.masks, scene.truth_caption)


NODES = [ToyModel, ToyScene]
