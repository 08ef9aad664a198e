"""Load Segment Anything and Segment Anything: points and boxes become masks."""

from comfy_api.latest import io
from typing_extensions import override

from ..masks import sam_host
from ..masks.sam import CHOICES

CATEGORY = "latent layers/masks"

# Other packs call theirs SAM_MODEL and SAM, and mean several things that are not this one.
SamModel = io.Custom("LATENT_LAYERS_SAM")  # masks.sam_host.LoadedSam


class LoadSegmentAnything(io.ComfyNode):
    """A checkpoint -> LATENT_LAYERS_SAM."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersSamLoader",
            display_name=sam_host.LOADER,
            category=CATEGORY,
            description="Loads a Segment Anything checkpoint from models/sams. Which of the three sizes it is, is read "
            "from the file.",
            search_aliases=["SAM loader", "load sam", "sam_vit_b", "sam_vit_h", "segmentation model"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=sam_host.checkpoints(),
                    tooltip="A file in models/sams: sam_vit_b (small), sam_vit_l or sam_vit_h (best), .pth or "
                    ".safetensors. Press R to list files that are new.",
                )
            ],
            outputs=[SamModel.Output(display_name="sam", tooltip="The model, for Segment Anything.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, checkpoint: str | None) -> bool | str:
        # None: another node will say, and loading checks again
        return True if checkpoint is None else sam_host.check_exists(checkpoint) or True

    @classmethod
    @override
    def execute(cls, checkpoint) -> io.NodeOutput:
        return io.NodeOutput(sam_host.load(checkpoint))


class SegmentAnything(io.ComfyNode):
    """LATENT_LAYERS_SAM x IMAGE x points x boxes -> MASK, scores, IMAGE."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersSegmentAnything",
            display_name=sam_host.SEGMENT,
            category=CATEGORY,
            description="Makes the mask of an object from a point on it, or a box around it. A picture is looked at "
            "once; after that, other points and boxes take a moment.",
            search_aliases=["SAM", "segment", "points to mask", "click to mask", "box to mask", "cut out object"],
            inputs=[
                SamModel.Input("sam", tooltip="From Load Segment Anything."),
                io.Image.Input("image", tooltip="One picture, not a batch."),
                io.String.Input(
                    "positive",
                    default="",
                    tooltip="Points on the object: x, y in pixels from the left top. Semicolons between several.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    tooltip="Points beside the object, on what came along but is not meant.",
                ),
                io.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    force_input=True,
                    tooltip="Boxes around objects, from any box node. Each is an object of its own, with the points "
                    "that lie in it.",
                ),
                io.Combo.Input(
                    "multimask",
                    options=list(CHOICES),
                    default="best",
                    tooltip="A point can mean a part or the whole, so the model offers three masks. best: the one with "
                    "the highest score. all: all three. off: one mask only, good for several points.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="How sure the model has to be of a pixel. Lower: larger masks.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="masks", tooltip="One per object, or three, best first, as a batch."),
                io.String.Output(
                    display_name="scores", tooltip="How good the model thinks each mask is, one line each; 1 is best."
                ),
                io.Image.Output(
                    display_name="preview", tooltip="The picture with masks, boxes and points drawn over it."
                ),
            ],
        )

    @classmethod
    @override
    def execute(cls, sam, image, positive, negative, multimask, threshold, bboxes=None) -> io.NodeOutput:
        return io.NodeOutput(*sam_host.segment(sam, image, positive, negative, bboxes, multimask, threshold))


NODES = [LoadSegmentAnything, SegmentAnything]
