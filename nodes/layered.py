"""Layered Edit: any number of layers in one node, which expands into the pack's other nodes."""

import comfy.samplers
from comfy_api.latest import io, ui
from typing_extensions import override

from ..attention.key_mask import MODES
from ..fusion.geometry import lay_on
from ..fusion.host import EditGraph, EditSettings, with_progress
from ..fusion.layered import DILATION, carried, lay_out, with_detail
from ..fusion.memory import Memory
from ..fusion.preview import layout_preview
from .types import Layers

CATEGORY = "latent layers/layers"


class LayeredEdit(io.ComfyNode):
    """IMAGE x EDIT_LAYERS -> IMAGE."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersLayeredEdit",
            display_name="Layered Edit",
            category=CATEGORY,
            description="Removes, moves, resizes, turns, flips and duplicates layers of a picture in one go. Every "
            "step is kept: after a change only what depends on it runs again. Shows the layout before it starts.",
            search_aliases=["move object", "designedit", "multi-layered", "edit layers", "compose"],
            enable_expand=True,
            inputs=[
                io.Model.Input("model", raw_link=True, tooltip="A checkpoint of the SD 1.x, SD 2.x or SDXL family."),
                io.Vae.Input("vae", raw_link=True, tooltip="The checkpoint's VAE."),
                io.Conditioning.Input(
                    "conditioning", raw_link=True, tooltip="What the picture shows; an empty prompt is a good choice."
                ),
                io.Image.Input("image", tooltip="The picture to edit, one at a time."),
                Layers.Input("layers", tooltip="From Add Layer, Parse Plan or Load Layers."),
                io.Int.Input("steps", default=50, min=2, max=1000, tooltip="Steps of the whole schedule."),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", tooltip="The schedule."
                ),
                io.Combo.Input(
                    "sampler",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="euler retraces the inversion most closely.",
                ),
                io.Float.Input(
                    "harmonize",
                    default=0.2,
                    min=0.02,
                    max=0.9,
                    step=0.01,
                    round=0.001,
                    tooltip="Part of the steps, the last ones, in which the layers blend with their new surroundings. "
                    "More blends better and changes the layers more.",
                ),
                io.Float.Input(
                    "guidance",
                    default=7.5,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How hard the places behind removed layers forget them; as in Key-Masked Self-Attention.",
                ),
                io.Combo.Input(
                    "mode", options=list(MODES), default="multiply", advanced=True, tooltip="How keys are masked."
                ),
                io.Float.Input(
                    "grow",
                    default=round(DILATION, 4),
                    min=0.0,
                    max=256.0,
                    step=0.001,
                    round=0.0001,
                    advanced=True,
                    tooltip="How far edited areas reach beyond the masks: below 1 a share of the width, else pixels.",
                ),
                io.Int.Input(
                    "refinements",
                    default=0,
                    min=0,
                    max=5,
                    advanced=True,
                    tooltip="Extra evaluations per step of the inversion, for a more exact way back.",
                ),
                io.String.Input("blocks", default="all", advanced=True, tooltip="Where in the model keys are masked."),
                io.Boolean.Input(
                    "ignore_layers",
                    default=False,
                    advanced=True,
                    tooltip="Layers that stay must not leak into the areas that are filled.",
                ),
                io.Boolean.Input(
                    "keep_pixels",
                    default=True,
                    tooltip="Layers show their own pixels, and nothing around them loses detail to the VAE. "
                    "Off: all of it is what the model and the VAE return, which blends in colours and grain.",
                ),
                io.Mask.Input(
                    "artifact_mask",
                    optional=True,
                    tooltip="More to forget while filling: shadows and reflections of what is removed.",
                ),
                io.Boolean.Input(
                    "forget_lookalikes",
                    default=True,
                    optional=True,  # for graphs that were saved before there was this
                    advanced=True,
                    tooltip="What looks like a layer that goes must not be copied into its place.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The edited picture; elsewhere every pixel is the same."),
                io.Mask.Output(display_name="masks", tooltip="Each layer where it is now, back to front."),
                io.Image.Output(display_name="layout", tooltip="Old and new places, drawn over the picture."),
            ],
        )

    @classmethod
    @override
    def execute(
        cls, model, vae, conditioning, image, layers, steps, scheduler, sampler, harmonize, guidance, mode, grow,
        refinements, blocks, ignore_layers, keep_pixels, artifact_mask=None, forget_lookalikes=True,
    ) -> io.NodeOutput:  # fmt: skip
        layout = lay_out(image, layers, grow)
        settings = EditSettings(
            steps, scheduler, sampler, harmonize, mode, guidance, blocks, refinements, ignore_layers,
            forget_lookalikes, keep_pixels,
        )  # fmt: skip
        edited, nodes = EditGraph(layout, settings, model, vae, conditioning).build(artifact_mask, image)
        preview = layout_preview(layout.source, layout.layers)
        return io.NodeOutput(
            edited, layout.final_masks(), preview, expand=nodes, ui=ui.PreviewImage(preview, cls=cls)
        )  # fmt: skip


class Value(io.ComfyNode):
    """A value inside an expanded graph."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersValue",
            display_name="Value",
            category=CATEGORY,
            description="Part of Layered Edit; of no use on its own.",
            is_dev_only=True,
            inputs=[io.String.Input("content", socketless=True, tooltip="Set by Layered Edit.")],
            outputs=[io.AnyType.Output(display_name="value", tooltip="The value.")],
        )

    @classmethod
    @override
    def execute(cls, content) -> io.NodeOutput:
        return io.NodeOutput(carried(content, "Value"))


class LayOn(io.ComfyNode):
    """A layer on a picture, inside an expanded graph: Transform Layer with its geometry worked out already."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersLayOn",
            display_name="Lay On",
            category=CATEGORY,
            description="Part of Layered Edit; of no use on its own.",
            is_dev_only=True,
            inputs=[
                io.Image.Input("canvas", tooltip="What lies behind."),
                io.String.Input("part", socketless=True, tooltip="Set by Layered Edit."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The layer on it.")],
        )

    @classmethod
    @override
    def execute(cls, canvas, part) -> io.NodeOutput:
        placed = carried(part, "Lay On")
        return io.NodeOutput(lay_on(canvas, placed.on_canvas, placed.moves))


class Detail(io.ComfyNode):
    """What an edit has changed, without what the VAE has, inside an expanded graph."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersDetail",
            display_name="Detail",
            category=CATEGORY,
            description="Part of Layered Edit; of no use on its own.",
            is_dev_only=True,
            inputs=[
                io.Image.Input("decoded", tooltip="What the model made of it."),
                io.Image.Input("laid", tooltip="The picture with the layers on it."),
                io.Image.Input("round_trip", tooltip="That picture, encoded and decoded."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="What the model made of it, with full detail.")],
        )

    @classmethod
    @override
    def execute(cls, decoded, laid, round_trip) -> io.NodeOutput:
        return io.NodeOutput(with_detail(decoded, laid, round_trip))


class Remember(io.ComfyNode):
    """A result that is asked for only when the last runs of an edit did not leave it behind."""

    memory = Memory()

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersRemember",
            display_name="Remember",
            category=CATEGORY,
            description="Part of Layered Edit; of no use on its own.",
            is_dev_only=True,
            inputs=[
                io.String.Input("key", socketless=True, tooltip="Set by Layered Edit."),
                io.Model.Input("model", tooltip="What the result was made with."),
                io.Vae.Input("vae", tooltip="What the result was made with."),
                io.Conditioning.Input("conditioning", tooltip="What the result was made with."),
                io.AnyType.Input("value", lazy=True, tooltip="The result."),
            ],
            outputs=[io.AnyType.Output(display_name="value", tooltip="The result.")],
        )

    @classmethod
    @override
    def check_lazy_status(cls, key, model, vae, conditioning, value=None) -> list[str]:
        return [] if cls.memory.has(key, (model, vae, conditioning)) else ["value"]

    @classmethod
    @override
    def execute(cls, key, model, vae, conditioning, value=None) -> io.NodeOutput:
        memory, objects = cls.memory, (model, vae, conditioning)
        if value is None:
            return io.NodeOutput(memory.get(key))
        memory.put(key, objects, value)
        return io.NodeOutput(value)


class Stage(io.ComfyNode):
    """A model for one stage of an expanded edit."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersStage",
            display_name="Stage",
            category=CATEGORY,
            description="Part of Layered Edit; of no use on its own.",
            is_dev_only=True,
            inputs=[
                io.Model.Input("model", tooltip="The model."),
                io.String.Input("stage", socketless=True, tooltip="Set by Layered Edit."),
            ],
            outputs=[io.Model.Output(tooltip="The model, which reports the whole edit's progress.")],
        )

    @classmethod
    @override
    def execute(cls, model, stage) -> io.NodeOutput:
        return io.NodeOutput(with_progress(model, carried(stage, "Stage")))


NODES = [LayeredEdit, Value, LayOn, Detail, Remember, Stage]
