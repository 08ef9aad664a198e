"""Proximal Guidance: text guidance that leaves a real picture alone where the prompt hardly speaks of it."""

from comfy_api.latest import io
from typing_extensions import override

from ..inversion.proximal import MODES
from ..inversion.proximal_host import Settings, apply_proximal_guidance
from .types import Trajectory

CATEGORY = "latent layers/trajectory"


def _share(name: str, default: float, tooltip: str, **options) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip, **options)


class ProximalGuidance(io.ComfyNode):
    """MODEL x TRAJECTORY -> MODEL."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersProximalGuidance",
            display_name="Proximal Guidance",
            category=CATEGORY,
            description="For edits of real pictures by a prompt: follows only the strongest of what CFG asks for, and "
            "draws everything else back to the source. Needs a CFG above 1.",
            search_aliases=["proxedit", "proximal", "negative prompt inversion", "preserve source", "real image edit"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample, of the SD 1.x, SD 2.x or SDXL family."),
                Trajectory.Input(
                    "trajectory",
                    tooltip="The source, from Invert, made with the same sigmas as are sampled. The prompt that it was "
                    "inverted with should be the negative.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="l0",
                    tooltip="l0: guidance above the threshold is kept whole. l1: it is lessened by the threshold, "
                    "which is gentler. none: all guidance is followed.",
                ),
                _share(
                    "quantile",
                    0.75,
                    "Share of the guidance that counts as weak and is dropped. Higher keeps more of the source.",
                ),
                io.Int.Input(
                    "dilation",
                    default=2,
                    min=0,
                    max=64,
                    tooltip="How far around strong guidance the source is not drawn back to, in latent pixels (8 "
                    "picture pixels). 2 is meant for pictures of 512; take 4 for 1024.",
                ),
                _share(
                    "recon_strength",
                    0.1,
                    "How far each step is drawn back to the source elsewhere. 0 leaves this out, 1 keeps the source.",
                ),
                _share(
                    "recon_start", 0.6, "Part of the sampling from which on the source is drawn back to; 0 is noise."
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with proximal guidance.")],
        )

    @classmethod
    @override
    def execute(cls, model, trajectory, mode, quantile, dilation, recon_strength, recon_start) -> io.NodeOutput:
        settings = Settings(mode, quantile, dilation, recon_strength, recon_start)
        return io.NodeOutput(apply_proximal_guidance(model, trajectory, settings))


NODES = [ProximalGuidance]
