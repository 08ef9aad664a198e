"""Instant Attention Mask and Word Mask: masks that the model finds itself, by words."""

import comfy.samplers
from comfy_api.latest import io, ui
from typing_extensions import override

from ..masks.instant import Settings
from ..masks.instant_host import instant_mask, word_mask
from .types import Trajectory

CATEGORY = "latent layers/masks"


def _part(name: str, default: float, tooltip: str, minimum: float = 0.0, **options) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=minimum, max=1.0, step=0.01, round=0.001, tooltip=tooltip, **options
    )


class InstantAttentionMask(io.ComfyNode):
    """MODEL x CLIP x text x LATENT -> MASK, edited LATENT."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersInstantAttentionMask",
            display_name="Instant Attention Mask",
            category=CATEGORY,
            description="Edits a picture by a prompt and finds by itself where: the mask is read from the model's "
            "attention to the words, in the very steps that make the edit, and costs nothing more.",
            search_aliases=["instdiffedit", "automatic mask", "mask by text", "edit by words", "attention map"],
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint of the SD 1.x, SD 2.x or SDXL family."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The edit prompt: what the picture shows when it is edited. Short ones give clear masks.",
                ),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode; one. A noise mask is ignored."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What the edit should not be; an empty prompt will do. With source_text, that takes its "
                    "place.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the noise.",
                ),
                io.Int.Input(
                    "seeds",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Noises that are tried together; their attention is averaged, which steadies the mask. "
                    "Time and memory grow with it.",
                ),
                io.Int.Input("steps", default=20, min=2, max=1000, tooltip="Steps of the whole schedule."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely text is followed.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="Any sampler; the article's is euler.",
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", tooltip="The schedule."
                ),
                _part(
                    "strength",
                    0.5,
                    "Share of the steps that is noised and denoised again, between 0 and 1. More changes more, and "
                    "forgets more of where things are.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    optional=True,
                    tooltip="Roles that you give to words of text: +star is part of the mask, -background is not, ~red "
                    "takes no part, =circle leads the search. Commas between; other words keep the role that is found. "
                    "The mask is then read from text alone.",
                ),
                io.String.Input(
                    "source_text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the picture shows now, in the same words as text where nothing changes. Guidance "
                    "then leads from it to text, and what text replaces is looked for by its own words, which finds "
                    "the place far more surely.",
                ),
                _part("phi", 0.4, "Threshold of the mask: higher makes it smaller. -1: automatic.", minimum=-1.0),
                _part("lambda1", 0.7, "Words at least this similar to the leading word make the mask.", advanced=True),
                _part("lambda2", 0.3, "Words at most this similar are taken off the mask.", advanced=True),
                io.Boolean.Input(
                    "blur",
                    default=True,
                    advanced=True,
                    tooltip="Without edges: smooth the map before the threshold, as in the paper.",
                ),
                io.Boolean.Input(
                    "invert_start",
                    default=True,
                    advanced=True,
                    tooltip="Look for the leading word where the start token does not look, as the released code does.",
                ),
                io.Boolean.Input(
                    "running_mean",
                    default=True,
                    advanced=True,
                    tooltip="Average the attention over all steps so far. Off: each step's mask is of that step alone.",
                ),
                io.Boolean.Input(
                    "correlation",
                    default=True,
                    advanced=True,
                    tooltip="Compare words by correlation, so that words which look nowhere (a, on) do not lead. Off: "
                    "by cosine, as in the paper.",
                ),
                io.Boolean.Input(
                    "edges",
                    default=True,
                    optional=True,  # for graphs that were saved before there was this
                    advanced=True,
                    tooltip="Let the mask follow the edges of the picture. Off: it is blurred, as in the paper.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="The area of the edit, black and white, of the last step."),
                io.Mask.Output(display_name="soft", tooltip="The same before the threshold: greys."),
                io.Latent.Output(
                    display_name="edited", tooltip="The edit, of the first seed; outside the mask it is the source."
                ),
                io.String.Output(display_name="roles", tooltip="Each word's role: +1 mask, 0 no part, -1 not mask."),
                io.Image.Output(display_name="strip", tooltip="The mask at every step, orange in its grey map."),
            ],
        )

    @classmethod
    @override
    def execute(
        cls, model, clip, text, latent, negative, seed, seeds, steps, cfg, sampler_name, scheduler, strength, phi,
        lambda1, lambda2, blur, invert_start, running_mean, correlation=True, words="",
        source_text="", edges=True,
    ) -> io.NodeOutput:  # fmt: skip
        settings = Settings(lambda1, lambda2, phi, blur, invert_start, running_mean, correlation, edges)
        found = instant_mask(
            model, clip, text, latent["samples"], negative, seed=seed, seeds=seeds, steps=steps, cfg=cfg,
            sampler=sampler_name, scheduler=scheduler, strength=strength, words=words,
            source_text=source_text, settings=settings,
        )  # fmt: skip
        strip = found.strip()
        return io.NodeOutput(
            found.hard, found.soft, {"samples": found.edited}, found.roles_text(), strip,
            ui=ui.PreviewImage(strip, cls=cls),
        )  # fmt: skip


class WordMask(io.ComfyNode):
    """TRAJECTORY x words -> MASK."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersWordMask",
            display_name="Word Mask",
            category=CATEGORY,
            description="Where named words are in a real picture, read from the model's attention along the picture's "
            "own trajectory. For things too scattered to paint: letters, patterns, decorations.",
            search_aliases=["mask by text", "text mask", "attention map", "select by words", "designedit"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that inverted the picture."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                Trajectory.Input("trajectory", tooltip="The picture, from Invert."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows, the wanted words among it.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="The words of the text that make the mask, with commas between; star#2 is the second star.",
                ),
                io.Int.Input(
                    "steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="Noise levels of the trajectory that are read: one model evaluation each.",
                ),
                _part("start_percent", 0.5, "Part of the schedule from which levels are read; 0 is pure noise."),
                _part("end_percent", 0.9, "Part of the schedule up to which levels are read."),
                _part(
                    "threshold",
                    -1.0,
                    "Higher makes the mask smaller. -1: found for each picture, where its map parts best in two.",
                    minimum=-1.0,
                ),
                io.Boolean.Input(
                    "edges",
                    default=True,
                    optional=True,  # for graphs that were saved before there was this
                    advanced=True,
                    tooltip="Let the mask follow the edges of the picture. Off: the attention as it is, which is soft.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Where the words are, black and white."),
                io.Mask.Output(display_name="soft", tooltip="The same before the threshold: greys."),
                io.Image.Output(display_name="strip", tooltip="The map at every level, orange above the threshold."),
            ],
        )

    @classmethod
    @override
    def execute(
        cls, model, clip, trajectory, text, words, steps, start_percent, end_percent, threshold, edges=True
    ) -> io.NodeOutput:
        found = word_mask(
            model, clip, trajectory, text, words, steps=steps, start=start_percent, end=end_percent,
            threshold=threshold, edges=edges,
        )  # fmt: skip
        strip = found.strip()
        return io.NodeOutput(found.hard, found.soft, strip, ui=ui.PreviewImage(strip, cls=cls))


NODES = [InstantAttentionMask, WordMask]
