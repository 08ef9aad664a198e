"""Invert, Sample, Trajectory To Latent: a picture's way up to noise and down again."""

from comfy_api.latest import io
from typing_extensions import override

from ..inversion import host
from .types import Trajectory

CATEGORY = "latent layers/trajectory"


class Invert(io.ComfyNode):
    """LATENT -> TRAJECTORY."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersInvert",
            display_name="Invert",
            category=CATEGORY,
            description="Finds the noise that a picture would have been made from, and every step between: "
            "the start of every edit of an existing picture (DDIM inversion). A noise mask on the latent is "
            "ignored, as every part of the picture needs its noise; give masks to the nodes that edit.",
            search_aliases=["ddim inversion", "invert latent", "unsampler", "noise inversion", "DesignEdit"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that will edit the picture (SD 1.x, SD 2.x, SDXL)."),
                io.Conditioning.Input(
                    "conditioning", tooltip="What the picture shows. An empty prompt is the robust choice."
                ),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode with this checkpoint's VAE."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The schedule, e.g. BasicScheduler with 50 steps. Give the same one to Sample. Either "
                    "direction; for a part of it (SplitSigmas) the latent stands at the part's lowest noise level.",
                ),
                io.Int.Input(
                    "refinements",
                    default=0,
                    min=0,
                    max=host.MAX_REFINEMENTS,
                    tooltip="Extra model evaluations per step that make the way back more exact. 0 as in the paper; "
                    "2 for a nearly perfect round trip at three times the time.",
                ),
            ],
            outputs=[
                Trajectory.Output(
                    display_name="trajectory", tooltip="The picture's noisy latents at every noise level."
                )
            ],
        )

    @classmethod
    @override
    def execute(cls, model, conditioning, latent, sigmas, refinements=0) -> io.NodeOutput:
        return io.NodeOutput(host.invert(model, conditioning, latent["samples"], sigmas, refinements))


class Sample(io.ComfyNode):
    """TRAJECTORY x GUIDER x SAMPLER x SIGMAS -> TRAJECTORY, LATENT."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersSample",
            display_name="Sample Trajectory",
            category=CATEGORY,
            description="Denoises from a point of a trajectory, keeping every step. What the model's patches change "
            "on the way is the edit. No noise is added at the start.",
            search_aliases=["denoise trajectory", "sampler custom advanced", "edit sampler", "resume sampling"],
            inputs=[
                io.Guider.Input("guider", tooltip="Basic Guider or CFG Guider with the (patched) model and prompt."),
                io.Sampler.Input("sampler", tooltip="Any sampler; euler retraces the inversion most closely."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The schedule that the trajectory was made with, or a part of it (SplitSigmas): "
                    "sampling starts from the trajectory at its first noise level.",
                ),
                Trajectory.Input("trajectory", tooltip="Where to start from: of Invert or another Sample Trajectory."),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    optional=True,
                    advanced=True,
                    tooltip="Seed of the noise that ancestral and SDE samplers add on the way. Others do not use it.",
                ),
            ],
            outputs=[
                Trajectory.Output(
                    display_name="trajectory",
                    tooltip="The trajectory given, from the first noise level on replaced by what was sampled.",
                ),
                io.Latent.Output(display_name="latent", tooltip="The result at the schedule's end, for VAE Decode."),
            ],
        )

    @classmethod
    @override
    def execute(cls, guider, sampler, sigmas, trajectory, noise_seed=0) -> io.NodeOutput:
        sampled, latent = host.sample_recording(guider, sampler, sigmas, trajectory, noise_seed)
        return io.NodeOutput(sampled, {"samples": latent})


class TrajectoryToLatent(io.ComfyNode):
    """TRAJECTORY -> LATENT."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersTrajectoryToLatent",
            display_name="Trajectory To Latent",
            category=CATEGORY,
            description="Takes one latent out of a trajectory, for VAE Decode or to look at.",
            search_aliases=["finish", "trajectory to image", "get latent from trajectory"],
            inputs=[
                Trajectory.Input("trajectory", tooltip="The trajectory to take a latent from."),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="How many steps of noise: 0 is the finished picture, the schedule's number of steps "
                    "is its noisiest latent.",
                ),
                io.Boolean.Input(
                    "predict",
                    default=False,
                    optional=True,
                    tooltip="Take the clean picture that the trajectory heads for there, not its noisy latent.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The latent at that step.")],
        )

    @classmethod
    @override
    def execute(cls, trajectory, step=0, predict=False) -> io.NodeOutput:
        return io.NodeOutput({"samples": host.latent_at_step(trajectory, step, predict)})


NODES = [Invert, Sample, TrajectoryToLatent]
