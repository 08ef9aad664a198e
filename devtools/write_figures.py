"""Write docs/figures.md from the benchmarks' results.

    python dev.py bench removal --json > figures/removal.json      for every NAME below
    .dev/venv/bin/python devtools/write_figures.py figures

Every table is what the benchmark prints; only the sentences around it are written here. Sections
whose benchmark has no file in the folder stay as they are.
"""

import argparse
import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pack
from bench import MODULES
from plot_sweeps import draw_sweeps

DOCS = pack.ROOT / "docs"
ALL = "10000-10063"  # what benchmarks run on unless they are told otherwise

HEAD = """# Figures

Every table is what the command above it prints, on this code and these weights. Scenes from seed 10000 up were used \
for nothing else: neither for training nor to choose a setting. Machine: two AMD EPYC cores, 24 GiB, no GPU.
"""


@dataclass(frozen=True)
class Section:
    """One benchmark in the document."""

    name: str
    title: str
    before: str
    after: str = ""
    preformatted: bool = False


SECTIONS = (
    Section(
        "removal",
        "Removing an object",
        "Scenes of 1 to 3 objects, one of which goes. The mask is what is seen of it, grown by 20/1024 of the width. "
        "Everything runs on the same model, schedule and (empty) prompt; the host's inpainting is Set Latent Noise "
        "Mask with KSampler from full noise. Twins of the object are forgotten by Lookalike Mask, as in the graphs. A "
        "perfect edit decodes to what the autoencoder makes of the truth, hence "
        "the first column.",
    ),
    Section(
        "sweep",
        "Why these defaults",
        "K is the number of steps, from the noisiest on, in which the mask acts. K = 40 with guidance 7.5 are the "
        "paper's settings and the defaults. Masks on Q or V, and the short range K = 10, are the paper's ablations.",
        "The paper's settings are the best of all with the mask on K. A mask on Q without guidance is better still "
        "on these scenes, at 40 evaluations less: inside the hole every pixel then attends to the whole picture "
        "evenly, which suits backgrounds that are the same all over. The paper found it to blur photographs, and "
        "there is none here to judge by, so that it is no default.",
    ),
    Section(
        "layers",
        "Layers: move, resize, rotate, flip, duplicate, swap, several at once, compose, complete",
        "The truth is the scene drawn again with the edit. *Move*: by up to 0.3 of the frame, not by multiples of 8 "
        "pixels. *Resize*: 0.6 to 1.6, each side for itself. *Rotate*: 15 to 165 degrees. *Multi*: of four objects "
        "one is removed, one moved, one resized and one duplicated, in one run. *Occlusion*: an object moves out from "
        "behind another one; its hidden part is not known to anybody. *Cross*: an object of a picture of another size "
        "is laid on. *Pan, zoom, zoom_far*: the same world seen 0.2 to the side, from 1.25 and 1.5 times as far away.",
        "Cut, paste and inpaint knows the object's exact pixels, which the toy's flat colours reward; what it leaves "
        "behind is the hole. Layers keep their own pixels, and of their surroundings the detail that the autoencoder "
        "would lose; *without* is what the model and the autoencoder make of all of it, which lies nearer to the truth "
        "as the autoencoder returns it, and further from the raw one.",
    ),
    Section(
        "fills",
        "Pan and zoom-out: what to start from",
        "The paper starts from the original canvas with guidance 7.5. *Fresh noise* replaces the inverted noise in "
        "the exposed area; *objects ignored* hides the scene's objects from it. Guidance leads away from what the "
        "unmasked model makes, which here is no copy of an object but a continued background: without it (g 1) the "
        "filling is nearer to the truth and costs 40 evaluations of 140 less. The graphs take the best row.",
    ),
    Section(
        "masks",
        "Masks by words, and many turns",
        "Scenes of 1 to 3 objects; the edit prompt is the caption with another colour (even seeds) or shape (odd ones) "
        "of one object. Instant Attention Mask runs with the node's defaults (20 steps, strength 0.5) and the caption "
        "as *source_text*; drawing again takes 25 of 50 steps. DiffEdit: the difference of the noise predicted for two "
        "prompts, over 10 noises, on the same model, then 25 of 50 steps. The mask is grown by 20 px before the "
        "picture is drawn again in it, and *Change Threshold* closes the edit. CFG 7.5, the node's default: much "
        "for the toy model, whose colours burn out and spill into the cells beside, which the turns show.",
        "Two things make the mask: what the edit replaces is looked for in the attention to the source's words, which "
        "guidance evaluates anyway, and the map follows the edges of the picture's latent. Flat colours have clear "
        "edges; on photographs expect less of that.",
    ),
    Section(
        "softedit",
        "Soft edits",
        "The caption is edited in one attribute: an object's colour, its shape, the kind of background, a size word, a "
        "count. 20 steps; CFG 3, and 1.5 where the negative is the caption. *Prompt-to-prompt* holds all shared words "
        "for one time, the best one on scenes below 10000. Real pictures are edited under Proximal Guidance, with "
        "their caption as the negative, as in the graphs, but for the rows that say otherwise and for the edit prompt "
        "alone.",
        "![Curves: edits that came through, and what was kept, by setting](soft_sweeps.png)\n\n*The grey line is the "
        "default.*\n\n![One edit under every setting](../web/docs/LatentLayersWordTimings/soft_edit.png)\n\n*A red "
        "circle becomes yellow. First row: the picture, where the edit is found to be (S_V), the soft edit, the edit "
        "prompt alone. Last row: all words held alike and S_V 1 everywhere, from their own map from the start (tau 0) "
        "to the source's all the way (tau 1).*",
    ),
    Section("inversion", "There and back: inversion", "Decoded round trip against the decoded encoding of the source."),
    Section(
        "attention",
        "What the patch costs",
        "One forward pass of a UNet of SD 1.5's size (random weights, 512×512), ratio to the unpatched pass in the "
        "same run.",
        preformatted=True,
    ),
    Section(
        "model",
        "The toy model",
        "Whether a picture shows each named colour and shape at the named count is measured on pixels "
        "(`toyscenes/measure.py`).",
        "![Samples of the toy model](samples.png)\n\nThe captions of the samples are printed by "
        "`python dev.py bench pictures`. They are drawn by dpmpp_2s_ancestral, 30 steps: the noise that it adds on the "
        "way gives the model room to mend what it began wrongly, as the second stage of its training taught it.\n\nThe "
        "weights are those of `python dev.py train`, with two differences: from step 9,000 to 11,000 the learning rate "
        "was up to a tenth higher, since the run was then meant to be longer, and the second stage began from the "
        "half-precision weights of the first. The time in the file's metadata is that of a machine with other work "
        "beside it; alone it takes half a second a step.",
    ),
)


def section_text(section: Section, figures: dict) -> str:
    """A section of the page: heading, sentences, command and table."""
    table = importlib.import_module(MODULES[section.name]).table(figures)
    if section.preformatted:
        table = f"```\n{table}\n```"
    seeds = figures.get("seeds", ALL)
    options = "" if seeds in (ALL, "0-31") else f" --seeds {seeds}"
    # of layers, perhaps only some tasks were run
    tasks = [f" --task {name}" for name in figures.get("tasks", {})] or [""]
    command = "\n".join(f"    python dev.py bench {section.name}{task}{options}" for task in tasks)
    texts = [f"## {section.title}", section.before, command, table, section.after]
    return "\n\n".join(text for text in texts if text) + "\n"


def document(folder: Path, page: str) -> str:
    """The page with the sections renewed that there are results of: folder/NAME.json, its last line the JSON."""
    head, *old = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    kept = {text.splitlines()[0].removeprefix("## "): text.rstrip("\n") + "\n" for text in old}
    parts = [head.rstrip("\n") + "\n" if page else HEAD]
    for section in SECTIONS:
        path = folder / f"{section.name}.json"
        if path.exists():
            figures = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
            if section.name == "softedit":
                draw_sweeps(figures, DOCS / "soft_sweeps.png")
            parts.append(section_text(section, figures))
        elif section.title in kept:
            print(f"no {path.name}: {section.title} stays as it is")
            parts.append(kept[section.title])
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="with one JSON file per benchmark")
    folder = parser.parse_args().folder
    pack.load_host()
    pack.load_pack()
    page = DOCS / "figures.md"
    page.write_text(document(folder, page.read_text(encoding="utf-8") if page.exists() else ""), encoding="utf-8")


if __name__ == "__main__":
    main()
