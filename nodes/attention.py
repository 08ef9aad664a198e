"""Key-Masked Self-Attention and Keep Source."""

from comfy_api.latest import io
from typing_extensions import override

from ..attention.host import apply_keep_source, apply_key_mask
from ..attention.key_mask import MODES
from .types import Trajectory

CATEGORY = "latent layers/attention"


def _percent(name: str, default: float, tooltip: str, **options) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, round=0.001, tooltip=tooltip, **options)


class KeyMaskedSelfAttention(io.ComfyNode):
    """Hide an area from the model's self-attention, so that it is filled from its surroundings."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersKeyMaskedSelfAttention",
            display_name="Key-Masked Self-Attention",
            category=CATEGORY,
            description=(
                "Nothing in the picture can look at the masked area any more, so the object in it is forgotten and "
                "the area is filled from what surrounds it. Use together with Keep Source. SD 1.x, SD 2.x and SDXL."
            ),
            search_aliases=["remove object", "designedit", "attention mask", "erase", "inpaint without prompt"],
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint of the SD 1.x, SD 2.x or SDXL family."),
                io.Mask.Input("mask", tooltip="The object to remove, a little larger than it is: white is hidden."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="multiply",
                    tooltip="multiply: as in the paper, masked pixels lose their pull. exclude: they do not exist, "
                    "which is faster the larger the mask. soft: they count as much as the mask is black.",
                ),
                io.Float.Input(
                    "guidance",
                    default=7.5,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How hard the masked prediction is followed. 1 is the mask alone and costs nothing; other "
                    "values need one more model evaluation per step; 0 turns the node off.",
                ),
                _percent(
                    "start_percent", 0.0, "Part of the sampling at which the mask begins to act; 0 is pure noise."
                ),
                _percent("end_percent", 0.8, "Part of the sampling at which the mask ends; the rest blends things in."),
                io.Mask.Input(
                    "artifact_mask",
                    optional=True,
                    tooltip="More to hide at first, for example leftovers of an earlier try: shadows, reflections.",
                ),
                _percent("artifact_end", 0.5, "Part of the sampling at which the artifact mask ends.", advanced=True),
                io.Mask.Input(
                    "ignore_mask",
                    optional=True,
                    tooltip="Other objects whose look must not leak into the hole. They stay in the picture.",
                ),
                io.Float.Input(
                    "guidance_end",
                    default=-1.0,
                    min=-1.0,
                    max=50.0,
                    step=0.1,
                    round=0.01,
                    advanced=True,
                    tooltip="Guidance at the end of the range, reached in a straight line. -1: the same all the way.",
                ),
                io.String.Input(
                    "blocks",
                    default="all",
                    advanced=True,
                    tooltip="Where in the model: all, down, mid, up, d4, u3-u8, d7.0-4 (layers inside a block), "
                    "grid1-2 (half and quarter size), !mid (all but). Commas between.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the mask in place.")],
        )

    @classmethod
    @override
    def execute(
        cls, model, mask, mode, guidance, start_percent, end_percent, artifact_end, guidance_end, blocks,
        artifact_mask=None, ignore_mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        patched = apply_key_mask(
            model,
            mask,
            mode=mode,
            guidance=guidance,
            guidance_end=guidance_end if guidance_end >= 0 else None,
            start=start_percent,
            end=end_percent,
            artifact_mask=artifact_mask,
            artifact_end=artifact_end,
            ignore_mask=ignore_mask,
            blocks=blocks,
        )
        return io.NodeOutput(patched)


class KeepSource(io.ComfyNode):
    """Outside the mask, follow the source picture exactly."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersKeepSource",
            display_name="Keep Source",
            category=CATEGORY,
            description=(
                "Outside the mask the sampling follows the source picture's own trajectory, at every step and with any "
                "sampler; at the end the latent there is exactly the source's."
            ),
            search_aliases=["preserve background", "latent blend", "designedit", "inpaint"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample."),
                Trajectory.Input(
                    "trajectory", tooltip="The source, from Invert, made with the same sigmas as are sampled."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="The area that may change; a grey pixel so strongly as it is white. Black keeps the "
                    "source.",
                ),
                _percent("start_percent", 0.0, "Part of the sampling at which keeping begins; 0 is pure noise."),
                _percent("end_percent", 1.0, "Part of the sampling at which keeping ends; 1 keeps the source exactly."),
            ],
            outputs=[io.Model.Output(tooltip="The model that keeps the source outside the mask.")],
        )

    @classmethod
    @override
    def execute(cls, model, trajectory, mask, start_percent, end_percent) -> io.NodeOutput:
        return io.NodeOutput(apply_keep_source(model, trajectory, mask, start=start_percent, end=end_percent))


NODES = [KeyMaskedSelfAttention, KeepSource]
