"""Word timings on ComfyUI's models: one evaluation with the edit prompt, and what is read from it.

The article reads at the last step of a pass with the edit prompt. A picture's trajectory has the
latent of that step already, so that one evaluation is enough, of a generated picture (Sample
Trajectory with the edit prompt) as of a real one (Invert).

A real picture does not show what the new words say. Where one of them takes the place of a word
of the source's, the place is looked for by that word, which the picture does show, in a second
evaluation, with the source's prompt: E_k (equation 6) is then made of its map. Not every word
that goes can be seen (small, two), so that the words it stands together with are asked too: the
one whose map is the clearest leads, and those that look where it looks join in.

Their map itself counts as well. One embedding stands for one look, and a striped background has
two: S_V is then the larger of equation 9 and the words' map, scaled to [0, 1]. And what comes may
be larger than what goes: the place is grown. Words that are added elsewhere in the text are looked for
by their own phrase: *a wooden chair* by the chair.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ..inversion.host import model_family, sample_counted
from ..inversion.trajectory import Trajectory
from ..masks.grid import dilate
from ..masks.instant import clearest, min_max, word_maps
from ..masks.instant import similarities as alike_maps
from ..masks.instant_words import gone_and_added, phrases
from .alignment import Alignment, align
from .blocks import Block
from .capture import Capture
from .capture_host import apply_capture, blocks_near, read_prompt
from .timings import (
    ALPHA_M,
    LAMBDA_TAU,
    Timing,
    WordTimings,
    filtered,
    keyword_embedding,
    read_table,
    saliency,
    similarities,
    tau_of,
    voting,
    word_embeddings,
)
from .timings_sheet import timings_sheet
from .words import Prompt, find_words, listing

WHO = "Word Timings"
CELLS = 32  # the article's grid, at 512 pixels
PERCENT = 1.0  # the article's
SHOWS = ("source", "edit")
GROW, MOST_GROWN = 0.0625, 0.25  # share of the width by which the place is grown
JOINS = 0.5  # correlation of its map to the leading one's, from which a word joins in
_KEY = "latent_layers_word_timings"


@dataclass(frozen=True, eq=False)
class Reading:
    """What one run of Word Timings leaves.

    maps         of every word, before the alpha_m filter, (N, h, w) float32
    faint        words whose map lies below alpha_m everywhere, and was taken whole
    looked_for   words that E_k is made of, the source's or the edit's
    evaluations  pictures that went through the UNet
    """

    timings: WordTimings
    maps: Tensor
    faint: tuple[str, ...]
    looked_for: tuple[str, ...]
    evaluations: int

    def text(self) -> str:
        """For people: the alignment, and by which words the place of the edit was looked for."""
        return f"{self.timings.alignment.text()}\nlooked for: {', '.join(self.looked_for)}"

    def strip(self) -> Tensor:
        """Every word's map and S_V, labelled, IMAGE (1, H, W, 3)."""
        return timings_sheet(self.timings, self.maps)


class HiddenStates:
    """E_V of one evaluation: what a block's cross-attention is given, at the host's `attn2_patch`.

    The first call since the last `take` counts: what guidance evaluates comes after the sampler's own.
    """

    def __init__(self, block: tuple[str, int, int]) -> None:
        self.block = block
        self.cleanup()

    def patch(self, n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Note hidden states (B, h * w, C) and their grid; hand everything on as it is."""
        if self._seen is None and (*extra["block"], extra.get("block_index", 0)) == self.block:
            self._seen, self._grid = n, tuple(extra["activations_shape"][-2:])
        return n, context, value

    def take(self) -> Tensor:
        """(B, C, h, w) float32 where the model computes; forgets it. RuntimeError where there is none."""
        seen, grid = self._seen, self._grid
        self.cleanup()
        if seen is None or seen.shape[1] != grid[0] * grid[1]:
            found = "none" if seen is None else f"{seen.shape[1]} for a grid of {grid[1]}x{grid[0]}"
            raise RuntimeError(
                f"{WHO}: hidden states of block {self.block}: {found}; take patches that shrink or skip blocks off "
                "this model"
            )
        return seen.float().mT.unflatten(2, grid)

    def cleanup(self) -> None:
        """Free what belongs to a run (called when sampling ends, also on an error)."""
        self._seen: Tensor | None = None
        self._grid: tuple[int, ...] = (0, 0)


class OneEvaluation(comfy.samplers.Sampler):
    """The host's sampler interface: no sampling, one evaluation at a latent of the trajectory's own."""

    def __init__(self, trajectory: Trajectory, capture: Capture, hidden: HiddenStates) -> None:
        self.trajectory, self.capture, self.hidden = trajectory, capture, hidden
        self.attention = self.values = torch.empty(0)  # (B, tokens, h, w) and E_V (B, C, h, w)

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Evaluate the model at the only sigma; returns the latent as it is."""
        level = float(sigmas[0])
        x = self.trajectory.at(level).to(noise)
        denoised = model_wrap(x, level * noise.new_ones([len(noise)]), **extra_args)
        self.attention, self.values = self.capture.take(), self.hidden.take()
        if callback is not None:
            callback(0, denoised, x, 1)
        return x


def word_timings(
    model: ModelPatcher,
    clip: Any,
    source_text: str,
    edit_text: str,
    trajectory: Trajectory,
    *,
    lambda_tau: float = LAMBDA_TAU,
    alpha_m: float = ALPHA_M,
    keywords: str = "",
    taus: str = "",
    percent: float = PERCENT,
    correlation: bool = True,
    shows: str = "source",
    grow: float = GROW,
) -> Reading:
    """How long each word of the edit prompt keeps the source's attention, see `attention.timings`.

    source_text  what the source shows
    edit_text    what the edited picture shows
    trajectory   of one picture: the real one (Invert), or one made with the edit prompt
    lambda_tau   factor of every tau, see equation 7
    alpha_m      what of a word's map is too little to count
    keywords     words of the edit prompt that the edit is about, see `attention.words.find_words`;
                 where empty, see `shows`
    taus         times of the user's own, see `attention.timings.read_table`
    percent      level of the trajectory that is read, the nearest to this part of the schedule
                 (0 = pure noise); 1 is the last step's
    correlation  compare hidden states by correlation; False is the article's cosine
    shows        source: the trajectory's picture is the one before the edit, and E_k is made of the
                 words that go, as far as there are any; edit: it was made with the edit prompt, and
                 E_k is made of the words that the source's prompt has not, but for faint ones
    grow         of a picture before the edit: share of the width by which S_V is grown, 0 to 0.25

    One evaluation of the UNet, or two where the source's words are asked, without guidance. Raises
    ValueError for inputs that do not fit, before anything is encoded or loaded.
    """
    if shows not in SHOWS:
        raise ValueError(f"{WHO}: shows is {shows!r}; use {' or '.join(SHOWS)}")
    _check_numbers(
        lambda_tau=(lambda_tau, 4.0), alpha_m=(alpha_m, 1.0), percent=(percent, 1.0), grow=(grow, MOST_GROWN)
    )
    blocks = blocks_near(model, trajectory.shape, WHO, CELLS)
    trajectory.check_model(model_family(model, WHO), f"{WHO}: trajectory")
    if trajectory.batch != 1:
        raise ValueError(
            f"{WHO}: trajectory holds {trajectory.batch} pictures, and words look elsewhere in each; "
            "give the trajectory of one (Get Latent From Batch takes one out before Invert)"
        )
    if clip is None:
        raise ValueError(f"{WHO}: clip is empty; this checkpoint has no text encoder, load one with Load CLIP")
    alignment = align(_read(clip, source_text, "source_text"), _read(clip, edit_text, "edit_text"), WHO)
    gone, added = (), ()
    if shows == "source" and not keywords.strip():
        gone, added = gone_and_added(alignment.edit, alignment.source)
    numbers, named = _keywords(alignment, keywords, bool(gone)), bool(keywords.strip())
    read_table(taus, listing(alignment.edit.words).split(", "), f"{WHO}: taus")  # before the work, if it is wrong
    level = _level(model, trajectory, percent)

    evaluate = partial(_evaluate, model, clip, trajectory, level, blocks)
    reading, evaluations = evaluate(edit_text, alignment.edit)
    source = None
    if gone:
        source, more = evaluate(source_text, alignment.source)
        evaluations += more

    block = _last_up(blocks).key
    found = _read_off(reading, source, alignment, numbers, gone, added, named, block, lambda_tau, alpha_m, correlation)
    timings = found.timings.with_table(taus, f"{WHO}: taus")
    if shows == "source":
        timings = replace(timings, saliency=dilate(timings.saliency[None], grow)[0])
    return replace(found, timings=timings, evaluations=evaluations)


def _evaluate(
    model: ModelPatcher, clip: Any, trajectory: Trajectory, level: float, blocks: frozenset[Block], text: str,
    prompt: Prompt,
) -> tuple[OneEvaluation, int]:  # fmt: skip
    """The model at a latent of the trajectory's own with a text; and how many pictures went through the UNet."""
    capture = Capture(blocks, prompt.length)
    hidden = HiddenStates(_last_up(blocks).key)
    patched = apply_capture(model, capture, WHO)
    patched.set_model_attn2_patch(hidden.patch)
    patched.add_callback_with_key(CallbacksMP.ON_CLEANUP, _KEY, lambda patcher: hidden.cleanup())
    reading = OneEvaluation(trajectory, capture, hidden)
    guider: Any = comfy.samplers.CFGGuider(patched)
    guider.inner_set_conds({"positive": clip.encode_from_tokens_scheduled(clip.tokenize(text))})
    guider.set_cfg(1.0)
    # Without a negative and at scale 1 the host evaluates the positive condition only.
    nothing = torch.zeros_like(trajectory.noisiest)
    _, evaluations = sample_counted(guider, nothing, nothing, reading, [level], 0, WHO)
    return reading, evaluations


def _read_off(
    reading: OneEvaluation,
    source: OneEvaluation | None,
    alignment: Alignment,
    numbers: tuple[int, ...],
    gone: tuple[int, ...],
    added: tuple[int, ...],
    named: bool,
    block: tuple[str, int, int],
    lambda_tau: float,
    alpha_m: float,
    correlation: bool,
) -> Reading:
    """Equations 5, 6, 7 and 9 on what the evaluations have left.

    numbers  keywords of the edit prompt, `named` by the user or not
    gone     words of the source's prompt to look for, where `source` has been evaluated
    added    words of the edit prompt that stand for none of these: besides, where they are looked for
    """
    words = alignment.edit.words
    names = listing(words).split(", ")
    maps = word_maps(reading.attention[0].cpu(), [word.tokens for word in words])
    values = (reading if source is None else source).values.cpu()
    centre = values[0].flatten(1).mean(1) if correlation else None
    embeddings = word_embeddings(maps, values[0], alpha_m, centre)
    is_faint = filtered(maps, alpha_m)[1]
    place: Tensor | None = None
    if source is None:
        asked = numbers if named else voting(numbers, is_faint)
        keyword, looked_for = keyword_embedding(embeddings, asked), [names[number] for number in asked]
    else:
        theirs = word_maps(source.attention[0].cpu(), [word.tokens for word in alignment.source.words])
        asked = seen_words(alignment.source, gone, theirs)
        keyword = keyword_embedding(word_embeddings(theirs, values[0], alpha_m, centre), asked)
        place = min_max(theirs[list(asked)].mean(0))
        looked_for = [listing(alignment.source.words).split(", ")[number] for number in asked]
        if added:
            joined = seen_words(alignment.edit, added, maps)
            place = torch.maximum(place, min_max(maps[list(joined)].mean(0)))
            looked_for += [names[number] for number in joined if names[number] not in looked_for]
    alike = similarities(embeddings, keyword)
    taus = tau_of(alike, numbers, lambda_tau)
    timings = tuple(Timing(*row) for row in zip(names, alike.tolist(), taus.tolist(), strict=True))
    faint = tuple(itertools.compress(names, is_faint))
    if faint:
        logging.info("Latent Layers %s: below alpha_m %g everywhere, taken whole: %s", WHO, alpha_m, ", ".join(faint))
    marked = saliency(keyword, values, 1.0, centre)[0]
    if place is not None:
        marked = torch.maximum(marked, place)
    found = WordTimings(alignment, timings, keyword, centre, block, marked)
    return Reading(found, maps, faint, tuple(looked_for), 0)


def seen_words(prompt: Prompt, gone: Sequence[int], maps: Tensor) -> tuple[int, ...]:
    """Numbers of the words by which words that go are looked for, maps (N, h, w) of all words.

    Of the phrase of each, the word with the clearest map, and those of it that look alike.
    """
    found: set[int] = set()
    for number in gone:
        phrase = phrases(prompt, (number,))
        own = maps[list(phrase)]
        joins = alike_maps(own[clearest(own)], own, correlation=True) > JOINS
        found.update(itertools.compress(phrase, joins.tolist()))
    return tuple(sorted(found))


def _check_numbers(**given: tuple[float, float]) -> None:
    for name, (value, most) in given.items():
        if not 0.0 <= value <= most:
            raise ValueError(f"{WHO}: {name} is {value:g}; use a number from 0 to {most:g}")


def _read(clip: Any, text: str, name: str) -> Prompt:
    if not text.strip():
        raise ValueError(f"{WHO}: {name} is empty; write what the picture shows, before the edit and after it")
    return read_prompt(clip, text, f"{WHO}: {name}")


def _keywords(alignment: Alignment, names: str, looks: bool) -> tuple[int, ...]:
    """Numbers of the keywords among the words of the edit prompt; `looks`: words that go are looked for."""
    words = alignment.edit.words
    if names.strip():
        return tuple(words.index(word) for word in find_words(alignment.edit, names, f"{WHO}: keywords"))
    if not alignment.new and not looks:
        raise ValueError(
            f"{WHO}: edit_text only leaves out {listing(alignment.left_out)}, no word is new; "
            f"set shows to source, or name in keywords what the edit is about, of {listing(words)}"
        )
    return tuple(number for number, partner in enumerate(alignment.partners) if partner is None)


def _level(model: ModelPatcher, trajectory: Trajectory, percent: float) -> float:
    """The trajectory's sigma above 0 that is nearest to a part of the schedule, in log scale."""
    noisy = [sigma for sigma in trajectory.sigmas.tolist() if sigma > 0]
    if not noisy:
        raise ValueError(f"{WHO}: trajectory has no noise level above 0; invert the picture with a schedule")
    sampling: Any = model.get_model_object("model_sampling")
    wanted = float(sampling.percent_to_sigma(percent))
    return min(noisy, key=lambda sigma: max(sigma, wanted) / min(sigma, wanted) if wanted > 0 else sigma)


def _last_up(blocks: frozenset[Block]) -> Block:
    """The last attention of the way up; the last of all where that has none."""
    order = ("input", "middle", "output")
    return max(blocks, key=lambda block: (order.index(block.side), block.number, block.depth))
