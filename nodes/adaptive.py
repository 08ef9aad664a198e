"""Adaptive Attention Guider: an edit prompt that takes over word by word and pixel by pixel."""

from comfy_api.latest import io
from typing_extensions import override

from ..attention.adaptive import MASK_MODES, SPATIAL
from ..attention.adaptive_host import HOLD, LAMBDA_S, LAMBDA_SV, adaptive_guider
from .types import Trajectory, WordTimings

CATEGORY = "latent layers/attention"


def _part(name: str, default: float, tooltip: str, most: float = 1.0) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=0.01, round=0.001, tooltip=tooltip)


class AdaptiveAttentionGuider(io.ComfyNode):
    """MODEL x two CONDITIONINGs x WORD_TIMINGS -> GUIDER."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersAdaptiveAttentionGuider",
            display_name="Adaptive Attention Guider",
            category=CATEGORY,
            description="Edits a picture softly by a prompt: the source is denoised beside the edit, which takes "
            "attention over word by word, and only where the edit is to be. For Sample Trajectory with a real "
            "picture, or for SamplerCustomAdvanced.",
            search_aliases=["adapedit", "prompt to prompt", "soft edit", "cross attention control", "emu edit"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that the timings were made with."),
                io.Conditioning.Input("source", tooltip="Word Timings' source_text, from CLIP Text Encode."),
                io.Conditioning.Input("edit", tooltip="Word Timings' edit_text, from CLIP Text Encode."),
                WordTimings.Input("timings", tooltip="Which words stay, and for how long, from Word Timings."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely text is followed. 1 needs one model evaluation less at each step.",
                ),
                _part("lambda_s", LAMBDA_S, "Strength of the edit: 0 is the source, 1 the most."),
                _part(
                    "lambda_sv",
                    LAMBDA_SV,
                    "Factor of the map of the place, cut at 1. Higher edits further around it.",
                    most=4.0,
                ),
                _part(
                    "hold",
                    HOLD,
                    "Share of the sampling, from its start, in which the source's layout is held inside the edit too. "
                    "0.5 keeps outlines; leave it at 0 for new shapes.",
                ),
                Trajectory.Input(
                    "trajectory",
                    optional=True,
                    tooltip="The picture to edit, from Invert with the source conditioning; give the same to Sample "
                    "Trajectory. Without one, a source is generated beside the edit, from the same noise.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What the edit should not be. Leave it out with a real picture: then guidance leads from "
                    "the source's text to the edit's, and what both say stays.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="How strongly each pixel is edited, for example from Soft Mask: white, grey, black.",
                ),
                io.Combo.Input(
                    "mask_mode",
                    options=list(MASK_MODES),
                    default="multiply",
                    tooltip="multiply: the mask limits the map that the model finds. replace: the mask alone.",
                ),
                io.Combo.Input(
                    "spatial",
                    options=list(SPATIAL),
                    default=SPATIAL[0],
                    advanced=True,
                    tooltip="fixed: the map of Word Timings. moving: it is read anew at every step, as in the article.",
                ),
                io.Boolean.Input(
                    "pair",
                    default=False,
                    advanced=True,
                    tooltip="Without a trajectory: return the generated source before the edit, in one batch.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For Sample Trajectory or SamplerCustomAdvanced.")],
        )

    @classmethod
    @override
    def execute(
        cls, model, source, edit, timings, cfg, lambda_s, lambda_sv, hold, mask_mode, spatial, pair, trajectory=None,
        negative=None, mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        guider = adaptive_guider(
            model, source, edit, negative, cfg, timings, lambda_s=lambda_s, lambda_sv=lambda_sv, trajectory=trajectory,
            mask=mask, mask_mode=mask_mode, hold=hold, pair=pair, spatial=spatial,
        )  # fmt: skip
        return io.NodeOutput(guider)


NODES = [AdaptiveAttentionGuider]
