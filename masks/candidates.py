"""Best of several candidates: how well each keeps the source and shows the text, and the order that follows.

Emu Edit (Sheynin et al. 2023) makes several results of one edit, from several masks or seeds,
and keeps the best by CLIP's agreement of picture and text and by fidelity to the source.

Fidelity needs no model. With x a candidate, y the source, and Σ covariances of the colours
(3x3) in a Gaussian window of 11x11 pixels,

    S = mean over the pixels of (2 ‖Σxy‖ + C) / (‖Σxx‖ + ‖Σyy‖ + C),    ‖·‖ Frobenius, C = 3 · 0.03²

This is the contrast and structure term of SSIM (Wang et al. 2004, eq. 13 with C3 = C2/2, for
three channels) with the norm of the covariances in place of the covariance, as in linear CKA
(Kornblith et al. 2019). So it asks which pixels differ from their neighbours, and not how
they are coloured: it stays 1 when colours are shifted, inverted, exchanged or turned into each
other, and hardly notices a red ball that has become green; a ball that has become a box it does.

Without a mask fidelity is S. With a mask M the kept area is K = 1 - M; there the colours
have to stay as well, and what is inside has no effect at all:

    F = S_K · exp(-d_K / 0.1),    d_K the mean absolute difference of the colours, values in [0, 1]

where all means, also those in the windows, are weighted with K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from .grid import as_mask, check_aspect, check_batch, check_painted, to_grid

WHO = "Best Of"

# Pixels of the shorter side on which structure is compared: at full size a window would see
# the texture of a large picture only (Wang et al. scale their pictures in the same way).
_SIDE = 256
_SIGMA, _TRUNCATE = 1.5, 3.5  # 5 pixels on either side
_STABILITY = 3 * 0.03**2
_COLOUR = 0.1  # mean difference of colours at which fidelity falls to 1/e

# Where all candidates lie closer together than this, normalising must not blow the rest up to
# the whole range: a hundredth of fidelity, or of a cosine, decides nothing.
_SPREAD = 0.01
# A direction is noise where the picture's embedding moved less than this (unit vectors).
_SMALLEST_STEP = 0.02

FIDELITY, TEXT, DIRECTION = "fidelity", "text", "direction"


@dataclass(frozen=True, eq=False)
class Candidates:
    """Checked inputs, float32 on the CPU, values in [0, 1].

    pictures  (B, H, W, 3)
    source    (1, H, W, 3), the picture that was edited
    mask      (1 or B, H, W), 1 = was to be edited; None: the whole picture
    """

    pictures: Tensor
    source: Tensor
    mask: Tensor | None = None


def prepare(candidates: Tensor, source: Tensor, mask: Tensor | None = None) -> Candidates:
    """Check IMAGEs (B, H, W, 3 or 4) and (1, H, W, 3 or 4) and a MASK; a mask of another size is resized.

    Raises ValueError for other shapes, values that are not numbers, pictures of different
    sizes, and masks that are empty, full, of another shape or another batch.
    """
    pictures, original = (_colours(image, name) for image, name in ((candidates, "candidates"), (source, "source")))
    if len(original) != 1:
        raise ValueError(
            f"{WHO}: source has a batch of {len(original)}; connect the one picture that was edited "
            "(Get Image from Batch)"
        )
    (height, width), (rows, columns) = pictures.shape[1:3], original.shape[1:3]
    if (height, width) != (rows, columns):
        raise ValueError(
            f"{WHO}: candidates are {width}x{height}, source is {columns}x{rows}; "
            "crop or resize the source to the candidates' size"
        )
    if mask is not None:
        mask = as_mask(mask, WHO)
        check_painted(mask, WHO, verb="edit")
        check_batch(mask, len(pictures), WHO)
        check_aspect(mask, (height, width), WHO, other="candidates' {} pixels")
        if mask.shape[1:] != (height, width):
            mask = to_grid(mask, height, width)
    return Candidates(pictures, original, mask)


def _colours(image: Tensor, name: str) -> Tensor:
    if image.ndim != 4 or image.shape[-1] < 3 or image.numel() == 0:
        raise ValueError(f"{WHO}: {name} has shape {tuple(image.shape)}; an IMAGE is (batch, height, width, 3)")
    colours = image[..., :3].detach().to(device="cpu", dtype=torch.float32)
    broken = [number for number, one in enumerate(colours, 1) if not bool(torch.isfinite(one).all())]
    if broken:
        which = name if len(colours) == 1 else f"picture {broken[0]} of {name}"
        raise ValueError(f"{WHO}: {which} has values that are not numbers; make it again, or leave it out")
    return colours.clamp(0.0, 1.0)


def fidelity(candidates: Candidates) -> Tensor:
    """How well each candidate keeps the source, see the module -> (B,), float64, in [0, 1], 1 = kept.

    Every candidate is scored for itself, so that neither their number nor their order matters.
    """
    source = candidates.source[0].movedim(-1, 0).double()
    masks = candidates.mask
    scores = []
    for index, picture in enumerate(candidates.pictures):
        colours = picture.movedim(-1, 0).double()
        if masks is None:
            scores.append(structure(colours, source, torch.ones_like(source[0])))
            continue
        kept = 1 - masks[index % len(masks)].double()
        difference = ((colours - source).abs().mean(0) * kept).sum() / kept.sum()
        scores.append(structure(colours, source, kept) * torch.exp(-difference / _COLOUR))
    return torch.stack(scores)


def structure(picture: Tensor, source: Tensor, kept: Tensor) -> Tensor:
    """S of two pictures (3, H, W) with weights (H, W), all float64 -> a number in [0, 1]."""
    factor = max(1, round(min(kept.shape) / _SIDE))
    x, y = (_shrunk(colours * kept, factor) for colours in (picture, source))
    weights = _shrunk(kept[None], factor)[0]
    some = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    x, y = x / some, y / some
    total = _window(weights[None]).clamp(min=torch.finfo(weights.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return _window(values * weights) / total

    def covariance(a: Tensor, b: Tensor) -> Tensor:
        products = (a[:, None] * b[None]).flatten(0, 1)
        spread = mean(products) - (mean(a)[:, None] * mean(b)[None]).flatten(0, 1)
        return spread.norm(dim=0)

    alike = (2 * covariance(x, y) + _STABILITY) / (covariance(x, x) + covariance(y, y) + _STABILITY)
    return (alike * weights).sum() / weights.sum()


def _shrunk(values: Tensor, factor: int) -> Tensor:
    """Means of squares of `factor` pixels; those at the right and lower border may be narrower."""
    return F.avg_pool2d(values[None], factor, ceil_mode=True, count_include_pad=False)[0]


def _window(values: Tensor) -> Tensor:
    """Sums (N, H, W) in a Gaussian window; there is nothing outside the picture."""
    array = np.ascontiguousarray(values.numpy())
    return torch.from_numpy(ndimage.gaussian_filter(array, (0, _SIGMA, _SIGMA), mode="constant", truncate=_TRUNCATE))


def agreement(pictures: Tensor, text: Tensor) -> Tensor:
    """Cosine of CLIP embeddings, pictures (B, D) and a text (D,) -> (B,), float64 (Radford et al. 2021)."""
    return _unit(pictures) @ _unit(text)


def direction(pictures: Tensor, source: Tensor, text: Tensor, source_text: Tensor) -> Tensor:
    """Whether pictures changed as the texts differ: cosine of the two steps -> (B,), float64.

    CLIP directional similarity (Gal et al. 2021, StyleGAN-NADA), of embeddings (B, D),
    (D,), (D,), (D,). A picture that has hardly moved has no direction: below a step of 0.02 the
    cosine goes to 0 with it.
    """
    steps = _unit(pictures) - _unit(source)
    wanted = _unit(_unit(text) - _unit(source_text))
    return (steps @ wanted) / steps.norm(dim=1).clamp(min=_SMALLEST_STEP)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.detach().to(device="cpu", dtype=torch.float64), dim=-1)


def normalised(scores: Tensor) -> Tensor:
    """Scores (B,) of one kind beside each other: the best is 1, the worst 0.

    Where the best and the worst are closer than 0.01, the others lie below 1 by their
    distance in hundredths.
    """
    best = scores.max()
    return 1 - (best - scores) / (best - scores.min()).clamp(min=_SPREAD)


@dataclass(frozen=True)
class Ranking:
    """The order of candidates, and why.

    raw, normalised  scores by kind (fidelity, text, direction), one per candidate
    total            what they are ranked by, in [0, 1]
    order            indices, from 0, best first
    text_weight      share of the text in the total
    """

    raw: dict[str, list[float]]
    normalised: dict[str, list[float]]
    total: list[float]
    order: list[int]
    text_weight: float


def rank(scores: Mapping[str, Tensor], text_weight: float = 0.5) -> Ranking:
    """Rank by (1 - w) · fidelity + w · text, of normalised scores; ties stay in the candidates' order.

    scores       (B,) by kind; "fidelity" always, "text" and "direction" where there are any.
                 With both, the text's part is their mean; with neither, fidelity decides alone
    text_weight  w in [0, 1]

    Totals that differ by less than 0.0001 are a tie. Raises ValueError for another weight.
    """
    if not 0 <= text_weight <= 1:
        raise ValueError(f"{WHO}: text_weight is {text_weight}; it must be 0 to 1")
    levels = {kind: normalised(values.double()) for kind, values in scores.items()}
    texts = [levels[kind] for kind in (TEXT, DIRECTION) if kind in levels]
    weight = text_weight if texts else 0.0
    total = (1 - weight) * levels[FIDELITY]
    if texts:
        total = total + weight * torch.stack(texts).mean(0)
    totals = total.tolist()
    return Ranking(
        raw={kind: values.tolist() for kind, values in scores.items()},
        normalised={kind: values.tolist() for kind, values in levels.items()},
        total=totals,
        order=sorted(range(len(totals)), key=lambda index: -round(totals[index], 4)),
        text_weight=weight,
    )


def describe(ranking: Ranking, keep: int) -> str:
    """The ranking as text, a line for each candidate, best first; the first `keep` are marked with *."""
    lines = [f"{len(ranking.order)} candidate(s), best first, * = kept. Score: {_recipe(ranking)}."]
    lines += [
        ("* " if place < keep else "  ") + f"{place + 1}. " + ", ".join(score_lines(ranking, index))
        for place, index in enumerate(ranking.order)
    ]
    return "\n".join([*lines, *_notes(ranking)])


def _recipe(ranking: Ranking) -> str:
    """How the score is made."""
    if not ranking.text_weight:
        return "fidelity"
    texts = [kind for kind in (TEXT, DIRECTION) if kind in ranking.raw]
    text = texts[0] if len(texts) == 1 else f"({' + '.join(texts)}) / 2"
    return f"{1 - ranking.text_weight:.2f} x fidelity + {ranking.text_weight:.2f} x {text}"


def score_lines(ranking: Ranking, index: int) -> list[str]:
    """One candidate: its number, its score, and each kind as normalised (raw)."""
    kinds = [f"{kind} {ranking.normalised[kind][index]:.2f} ({raw[index]:.4f})" for kind, raw in ranking.raw.items()]
    return [f"candidate {index + 1} (index {index})", f"score {ranking.total[index]:.3f}", *kinds]


def _notes(ranking: Ranking) -> list[str]:
    """What the numbers do not say for themselves."""
    notes = []
    levels: Sequence[float] = ranking.raw[FIDELITY]
    if len(levels) > 1 and max(levels) - min(levels) < 1e-6:
        notes.append("Note: fidelity is the same for all. Are they composited already? Give the decoded pictures.")
    if TEXT in ranking.raw and max(ranking.raw[TEXT]) < 0.05:
        notes.append("Note: no candidate agrees with the text. Do clip and clip_vision belong together?")
    return notes
