"""Soft Mask, Lookalike Mask and Change Threshold."""

from comfy_api.latest import io
from typing_extensions import override

from ..masks.grid import as_mask, check_aspect, check_batch, check_painted, union
from ..masks.lookalikes import LIKENESS, lookalikes
from ..masks.soft import soft_mask
from ..masks.threshold import ALPHA, change_picture, threshold_changes

CATEGORY = "latent layers/masks"


def _weight(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=10.0, step=0.05, round=0.001, tooltip=tooltip)


def _length(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1024.0, step=0.01, round=0.0001, tooltip=tooltip)


class SoftMask(io.ComfyNode):
    """MASK -> MASK: full strength on the object, falling off around it."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersSoftMask",
            display_name="Soft Mask",
            category=CATEGORY,
            description="Says for each pixel how strongly it is edited: a mix of the precise mask, the same mask grown "
            "and blurred, and the box around it.",
            search_aliases=["feather mask", "blur mask", "grow mask", "emu edit", "mask strength"],
            inputs=[
                io.Mask.Input("mask", tooltip="The precise mask of the object, or a batch of them."),
                _weight(
                    "precise_weight",
                    0.0,
                    "Share of the mask as it is. More of it: the strength drops right at the object's outline.",
                ),
                _weight(
                    "spread_weight",
                    1.0,
                    "Share of the grown and blurred mask. More of it: the strength falls off evenly around the object.",
                ),
                _weight(
                    "box_weight",
                    0.0,
                    "Share of the box around the object. More of it: some strength in the whole box, as room for "
                    "another shape.",
                ),
                _length(
                    "radius",
                    0.06,
                    "How far the grown mask reaches beyond the object. Below 1 a share of the picture's width, from 1 "
                    "on pixels.",
                ),
                _length(
                    "blur",
                    0.02,
                    "Softness of the grown mask: sigma of the Gaussian. Below 1 a share of the picture's width, from 1 "
                    "on pixels. With a third of the radius or less the object keeps its full strength.",
                ),
                _length(
                    "padding",
                    0.0,
                    "How far the box reaches beyond the object. Below 1 a share of the picture's width, from 1 on "
                    "pixels.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="The strength of the edit, 0 to 1.")],
        )

    @classmethod
    @override
    def execute(cls, mask, precise_weight, spread_weight, box_weight, radius, blur, padding) -> io.NodeOutput:
        soft = soft_mask(
            mask,
            precise_weight=precise_weight,
            spread_weight=spread_weight,
            box_weight=box_weight,
            radius=radius,
            blur_sigma=blur,
            padding=padding,
        )
        return io.NodeOutput(soft)


class LookalikeMask(io.ComfyNode):
    """LATENT x MASK -> MASK: where the picture shows something like what the mask covers."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersLookalikeMask",
            display_name="Lookalike Mask",
            category=CATEGORY,
            description="Finds what looks like the object under a mask, and not like its surroundings: twins that "
            "would be copied into its place. Connect it to artifact_mask of Key-Masked Self-Attention.",
            search_aliases=["twin", "similar object", "artifact mask", "artifact suppression", "duplicate"],
            inputs=[
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Mask.Input("mask", tooltip="What is removed, grown as for the removal."),
                io.Float.Input(
                    "likeness",
                    default=LIKENESS,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Higher finds more that is only a little like it. 0 finds nothing.",
                ),
                io.Mask.Input(
                    "artifact_mask",
                    optional=True,
                    tooltip="More to forget, added to what is found: shadows, reflections.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="What looks like it; black where nothing does.")],
        )

    @classmethod
    @override
    def execute(cls, latent, mask, likeness, artifact_mask=None) -> io.NodeOutput:
        who, samples = "Lookalike Mask", latent["samples"]
        if samples.ndim != 4:
            raise ValueError(f"{who}: the latent has {samples.ndim} dimensions; it works on pictures (4), not on video")
        mask = as_mask(mask, who)
        check_painted(mask, who)
        check_aspect(mask, samples.shape, who)
        check_batch(mask, len(samples), who)
        more = None
        if artifact_mask is not None:
            more = as_mask(artifact_mask, who, "artifact_mask")
            check_aspect(more, samples.shape, who, "artifact_mask")
            check_batch(more, len(samples), who, "artifact_mask")
        return io.NodeOutput(union(lookalikes(samples, mask, likeness), more))


class ChangeThreshold(io.ComfyNode):
    """IMAGE x IMAGE -> IMAGE, MASK, IMAGE: only what a turn has really changed is taken over."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersChangeThreshold",
            display_name="Change Threshold",
            category=CATEGORY,
            description="Compares two turns of editing and gives every pixel that has hardly changed back as it was, "
            "bit for bit, so that nothing drifts however many turns there are.",
            search_aliases=["difference mask", "compare images", "drift", "multi-turn editing", "emu edit"],
            inputs=[
                io.Image.Input("previous", tooltip="The picture before this turn."),
                io.Image.Input("new", tooltip="The same picture after this turn, of the same size."),
                io.Float.Input(
                    "alpha",
                    default=ALPHA,
                    min=0.0,
                    max=3.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="How much a pixel has to change to be new: the differences in red, green and blue added "
                    "up, 0 to 3. Higher keeps more of the previous picture; 0 keeps nothing.",
                ),
                io.Float.Input(
                    "low_pass",
                    default=2.0,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    round=0.01,
                    tooltip="Evens the differences out before they are compared: sigma of a Gaussian, in pixels. "
                    "Higher ignores single pixels and closes holes.",
                ),
                io.Float.Input(
                    "soft_edge",
                    default=0.0,
                    min=0.0,
                    max=256.0,
                    step=1.0,
                    round=0.01,
                    tooltip="Pixels around a change in which both pictures are mixed. 0: a hard edge.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where this turn may change anything at all; the rest is kept."
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The previous picture through VAE Encode and VAE Decode once. With it, what the VAE blurs "
                    "does not count as a change.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The new turn, with the previous one's pixels kept."),
                io.Mask.Output(display_name="mask", tooltip="What has changed, white."),
                io.Image.Output(
                    display_name="change_map",
                    tooltip="How much has changed: blue is kept, red to white is new, in rising order.",
                ),
            ],
        )

    @classmethod
    @override
    def execute(cls, previous, new, alpha, low_pass, soft_edge, mask=None, reference=None) -> io.NodeOutput:
        turn = threshold_changes(
            previous, new, alpha=alpha, low_pass=low_pass, soft_edge=soft_edge, mask=mask, reference=reference
        )
        return io.NodeOutput(turn.image, turn.mask, change_picture(turn.distance, alpha))


NODES = [SoftMask, LookalikeMask, ChangeThreshold]
