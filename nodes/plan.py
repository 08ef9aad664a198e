"""Plan Prompt, Parse Plan: a request in words becomes edits of layers, by any language model of the graph."""

from comfy_api.latest import io
from typing_extensions import override

from ..fusion import plan_prompt, plan_reading
from .types import Layers

CATEGORY = "latent layers/layers"


class PlanPrompt(io.ComfyNode):
    """STRING x EDIT_LAYERS -> STRING."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersPlanPrompt",
            display_name="Plan Prompt",
            category=CATEGORY,
            description="Writes the prompt that makes a language model plan the edit of the layers. Give it to any "
            "text node, local or not, and the answer to Parse Plan. This node asks nobody itself.",
            search_aliases=["instruction planning", "edit plan", "LLM layout", "language model", "DesignEdit"],
            inputs=[
                io.String.Input(
                    "request",
                    multiline=True,
                    default="",
                    tooltip="What is to change, in your own words, e.g. put the cup to the left of the book.",
                ),
                Layers.Input("layers", tooltip="What may be edited. The names tell the language model what is what."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The source picture, only for its size. Needed if every layer is cut from another picture, "
                    "or if masks are coarser than it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompt",
                    tooltip="The task, the layers with their places, what a plan may say, and two examples.",
                )
            ],
        )

    @classmethod
    @override
    def execute(cls, request, layers, image=None) -> io.NodeOutput:
        return io.NodeOutput(plan_prompt.prompt(request, layers, image))


class ParsePlan(io.ComfyNode):
    """STRING x EDIT_LAYERS -> EDIT_LAYERS, STRING."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersParsePlan",
            display_name="Parse Plan",
            category=CATEGORY,
            description="Takes the edit plan out of a language model's answer, checks it, and sets the layers "
            "accordingly. You can also write the plan yourself.",
            search_aliases=["instruction planning", "edit plan", "apply plan", "JSON", "DesignEdit"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="A language model's answer to Plan Prompt, or a plan of your own. What stands around "
                    "the plan does not matter; of several plans the last one counts.",
                ),
                Layers.Input("layers", tooltip="The layers that Plan Prompt had."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The source picture, only for its size. Needed if every layer is cut from another picture, "
                    "or if masks are coarser than it.",
                ),
            ],
            outputs=[
                Layers.Output(
                    display_name="layers",
                    tooltip="The layers as planned. What the plan does not mention stays as it was.",
                ),
                io.String.Output(
                    display_name="plan", tooltip="The plan as it was understood, to read, correct and give in again."
                ),
            ],
        )

    @classmethod
    @override
    def execute(cls, text, layers, image=None) -> io.NodeOutput:
        return io.NodeOutput(*plan_reading.carry_out(text, layers, image))


NODES = [PlanPrompt, ParsePlan]
