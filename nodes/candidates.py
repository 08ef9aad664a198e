"""Best Of: several results of one edit, ranked."""

from comfy_api.latest import io
from typing_extensions import override

from ..masks.candidates import FIDELITY, describe, fidelity, prepare, rank
from ..masks.candidates_host import text_scores
from ..masks.candidates_sheet import contact_sheet

CATEGORY = "latent layers/masks"


class BestOf(io.ComfyNode):
    """Several candidates -> the best, the ranking, and a sheet of all."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersBestOf",
            display_name="Best Of",
            category=CATEGORY,
            description="Ranks several results of one edit by how well they keep the source and, with CLIP models, how "
            "well they show a text. Keeps the best and shows the scores of all.",
            search_aliases=["rank images", "choose best", "clip score", "similarity", "ssim", "compare seeds"],
            inputs=[
                io.Image.Input("candidates", tooltip="The results, as a batch. Single pictures: Batch Images."),
                io.Image.Input("source", tooltip="The picture that was edited, of the same size."),
                io.Int.Input(
                    "keep",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="How many of the best to return; all, where there are fewer.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What the result should show. Needs clip and clip_vision. Empty: only the source counts.",
                ),
                io.String.Input(
                    "source_text",
                    default="",
                    multiline=True,
                    tooltip="What the source shows. With it, also the change must go where the texts go. May be empty.",
                ),
                io.Float.Input(
                    "text_weight",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Share of the text in the score: 0 is the source alone, 1 the text alone.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the edit was meant: outside everything must stay. One, or one for each candidate. "
                    "Without a mask, shapes must stay and colours may change.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder of the same CLIP as clip_vision, with its text projection. An SDXL "
                    "checkpoint's fits CLIP ViT-bigG.",
                ),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="Vision model of a CLIP: Load CLIP Vision."),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The best, in their order, as a batch."),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="Their places among the candidates, from 0: for Get Image or Get Latent From Batch.",
                ),
                io.String.Output(display_name="ranking", tooltip="All candidates with their scores, best first."),
                io.Image.Output(display_name="sheet", tooltip="The source and all candidates with their scores."),
            ],
        )

    @classmethod
    @override
    def execute(
        cls, candidates, source, keep, text, source_text, text_weight, mask=None, clip=None, clip_vision=None
    ) -> io.NodeOutput:
        checked = prepare(candidates, source, mask)
        texts = text_scores(checked, clip, clip_vision, text, source_text)
        ranking = rank({FIDELITY: fidelity(checked), **texts}, text_weight)
        best = ranking.order[:keep]
        sheet = contact_sheet(checked, ranking, keep)
        return io.NodeOutput(candidates[best], best, describe(ranking, keep), sheet.to(candidates.device))


NODES = [BestOf]
