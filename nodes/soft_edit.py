"""Word Timings: how long each word of an edit prompt keeps the source's attention."""

from comfy_api.latest import io, ui
from typing_extensions import override

from ..attention.timings import ALPHA_M, LAMBDA_TAU
from ..attention.timings_host import GROW, MOST_GROWN, PERCENT, SHOWS, word_timings
from .types import Trajectory
from .types import WordTimings as Timings

CATEGORY = "latent layers/attention"


class WordTimings(io.ComfyNode):
    """MODEL x CLIP x two texts x TRAJECTORY -> WORD_TIMINGS."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersWordTimings",
            display_name="Word Timings",
            category=CATEGORY,
            description="Compares the prompt of a picture with the prompt of its edit: which words are new, which "
            "stay, how long each of those that stay keeps the picture's attention, and where the edit is. For Adaptive "
            "Attention Guider.",
            search_aliases=["adapedit", "prompt to prompt", "soft edit", "edit by words", "cross attention control"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that will edit the picture (SD 1.x, SD 2.x, SDXL)."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.String.Input(
                    "source_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows now.",
                ),
                io.String.Input(
                    "edit_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the edited picture shows, in the same words wherever nothing changes.",
                ),
                Trajectory.Input(
                    "trajectory",
                    tooltip="The picture, from Invert; or one made with the edit prompt, from Sample Trajectory.",
                ),
                io.Float.Input(
                    "lambda_tau",
                    default=LAMBDA_TAU,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Factor of all times. Higher keeps more of the picture's layout, lower lets go sooner.",
                ),
                io.Float.Input(
                    "alpha_m",
                    default=ALPHA_M,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="Attention below this counts as none, so that a word is told by what it really looks at.",
                ),
                io.String.Input(
                    "keywords",
                    default="",
                    optional=True,
                    tooltip="Words of edit_text that the edit is about, with commas between. Empty: found by itself, "
                    "see shows.",
                ),
                io.String.Input(
                    "taus",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Times of your own: a line for each word, such as star 0.3, or an edited table. Words that "
                    "are not named keep what is found.",
                ),
                io.Float.Input(
                    "percent",
                    default=PERCENT,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Part of the schedule at which the picture is read; 0 is pure noise, 1 the last step, as "
                    "in the article.",
                ),
                io.Boolean.Input(
                    "correlation",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Compare what words look at by correlation. Off: by cosine, as in the article, for which "
                    "everything in a picture is alike.",
                ),
                io.Combo.Input(
                    "shows",
                    options=list(SHOWS),
                    default=SHOWS[0],
                    optional=True,
                    advanced=True,
                    tooltip="What the trajectory's picture shows. source: the picture before the edit; the place is "
                    "looked for by the words that go. edit: one made with edit_text, as in the article; by the new "
                    "words.",
                ),
                io.Float.Input(
                    "grow",
                    default=GROW,
                    min=0.0,
                    max=MOST_GROWN,
                    step=0.0125,
                    round=0.0001,
                    optional=True,
                    tooltip="How far the edit may reach beyond what goes, as a share of the width: what comes may be "
                    "larger. 0 keeps more of the picture. Not used where shows is edit.",
                ),
            ],
            outputs=[
                Timings.Output(display_name="timings", tooltip="For Adaptive Attention Guider."),
                io.String.Output(
                    display_name="table",
                    tooltip="Each word's similarity to what the edit is about, and its tau: the share of the schedule, "
                    "from its beginning, in which it keeps the picture's attention.",
                ),
                io.String.Output(
                    display_name="alignment",
                    tooltip="Which words are new, which stay, which go; and by which the place was looked for.",
                ),
                io.Image.Output(
                    display_name="strip", tooltip="Where each word looks, and last where the edit is (white)."
                ),
            ],
        )

    @classmethod
    @override
    def execute(
        cls, model, clip, source_text, edit_text, trajectory, lambda_tau, alpha_m, keywords="", taus="",
        percent=PERCENT, correlation=True, shows=SHOWS[0], grow=GROW,
    ) -> io.NodeOutput:  # fmt: skip
        reading = word_timings(
            model, clip, source_text, edit_text, trajectory, lambda_tau=lambda_tau, alpha_m=alpha_m, keywords=keywords,
            taus=taus, percent=percent, correlation=correlation, shows=shows, grow=grow,
        )  # fmt: skip
        timings, strip = reading.timings, reading.strip()
        return io.NodeOutput(timings, timings.table(), reading.text(), strip, ui=ui.PreviewImage(strip, cls=cls))


NODES = [WordTimings]
