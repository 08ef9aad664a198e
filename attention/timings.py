"""Word timings: how long each word of an edit prompt keeps the source's attention (AdapEdit, FWT and equation 9).

From one evaluation of the model with the edit prompt: every word's cross-attention map, and the
hidden states E_V of a block on the same grid. A word is embedded as what it looks at (equation
5), the keywords, which are the words that the source's prompt has not, are pooled into one
embedding E_k (equation 6), and a word's tau follows from its similarity to that (equation 7).
The same E_k against every pixel's hidden state says how much the edit is about that pixel
(equation 9).

tau is a share of the schedule from its beginning, 0 at pure noise and 1 at the clean picture. A
word has the source's map until tau, and its own after that: what looks where the edit is goes
soon, the surroundings' words keep the layout. A new word has its own map from the start, its tau
is 0.

Three readings of the article. Its equation 4 has a word keep the source's map while t > tau, which
by t's usual direction would hold for ever what is most like the keywords. Its text has it the
other way (a smaller lambda_tau edits more; without word timings poses do not change; the keywords'
tau is 0), as have prompt-to-prompt and its own code, where tau is how long the source's maps are
injected: so t is the share of the schedule that is left, and the map is the source's while that is
above 1 - tau. Its "softmax normalisation" of a map is taken as division by its
sum: attention is a softmax already, and a second one over values between 0 and 0.2 would be
nearly flat. And hidden states have a large component in common, so that cosines between them are
all near 1 and every tau near 0. With a `centre`, the mean of E_V over the picture, taken off
before normalising, the cosines become correlations and spread from -1 to 1.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import NONE, Alignment

ALPHA_M = 0.03  # the article's
LAMBDA_TAU = 1.0


@dataclass(frozen=True)
class Timing:
    """A word of the edit prompt, A_i and tau_i.

    word        its name in the prompt, `star#2` for the second star
    similarity  of what it looks at to what the keywords look at, -1 to 1
    tau         share of the schedule, from its beginning, in which it has the source's map, 0 to 1
    """

    word: str
    similarity: float
    tau: float


@dataclass(frozen=True, eq=False)
class WordTimings:
    """What a soft edit needs to know of a pair of prompts.

    alignment   of the two prompts
    timings     one for each word of the edit prompt, in order
    keyword     E_k (C,) float32, of length 1
    centre      (C,) float32, the mean of E_V that was taken off, or None
    block       whose hidden states E_V are: the host's (side, number, depth)
    saliency    S_V (h, w) float32 in [0, 1] of the evaluation that was read, with a lambda_SV of 1; see
                `timings_host` on what else may count
    """

    alignment: Alignment
    timings: tuple[Timing, ...]
    keyword: Tensor
    centre: Tensor | None
    block: tuple[str, int, int]
    saliency: Tensor

    def table(self) -> str:
        """A line for each word, to read and to edit: `star     similarity 0.83   tau 0.16`."""
        wide = max(len(timing.word) for timing in self.timings)
        return "\n".join(f"{t.word:<{wide}}   similarity {t.similarity:5.2f}   tau {t.tau:.2f}" for t in self.timings)

    def with_table(self, text: str, where: str) -> "WordTimings":
        """The same with the tau of a table that was edited.

        Words that the table leaves out keep their tau, and similarities are not read: `star 0.3`
        is a line too. Raises ValueError as `read_table` does.
        """
        given = read_table(text, [timing.word for timing in self.timings], where)
        return replace(self, timings=tuple(replace(t, tau=given.get(t.word, t.tau)) for t in self.timings))

    def token_taus(self) -> Tensor:
        """Tau of every token of the edit prompt, (edit.length,) float32.

        Tokens of a word have the word's. Tokens that stand for no word but have a partner
        (start, end, padding, punctuation) have the smallest tau of the shared words: what they
        hold of the attention is what the words leave over, so they change over when the first
        word does. Tokens without a partner have 0, their own map always.
        """
        edit, partners = self.alignment.edit, self.alignment.partners
        shared = [t.tau for t, partner in zip(self.timings, partners, strict=True) if partner is not None]
        taus = torch.full((edit.length,), min(shared))
        for word, timing in zip(edit.words, self.timings, strict=True):
            taus[list(word.tokens)] = timing.tau
        taus[torch.tensor(self.alignment.tokens) == NONE] = 0.0
        return taus


_LINE = re.compile(
    r"(?P<word>\S*[^\s:=])(?:\s+similarity\s*[:=]?\s*\S+)?(?:\s+tau)?(?:\s*[:=]\s*|\s+)(?P<tau>\S+)", re.IGNORECASE
)


def read_table(text: str, names: Sequence[str], where: str) -> dict[str, float]:
    """The taus of a table, by word: lines of `WordTimings.table`, or as short as `star 0.3`.

    names  words of the edit prompt, as `attention.words.listing` calls them
    where  node and input, for errors

    Raises ValueError, with the line, for a word that the prompt has not or that comes twice, and
    for a tau that is no number from 0 to 1.
    """
    given: dict[str, float] = {}
    for line in map(str.strip, text.splitlines()):
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{where} has the line {line!r}; write a word and its tau, such as star 0.3")
        name = match["word"].lower()
        if name not in names:
            raise ValueError(
                f"{where} has the line {line!r}, but the edit prompt has the words {', '.join(names)}; "
                "begin each line with one of these"
            )
        if name in given:
            raise ValueError(f"{where} has two lines for {name!r}; leave one")
        given[name] = _share(match["tau"])
        if math.isnan(given[name]):
            raise ValueError(f"{where} has the line {line!r}; its tau is a share of the schedule, a number from 0 to 1")
    return given


def _share(text: str) -> float:
    """A number from 0 to 1; not a number for all else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if 0.0 <= value <= 1.0 else math.nan


def filtered(maps: Tensor, floor: float) -> tuple[Tensor, list[bool]]:
    """The alpha_m filter: values of maps (N, h, w) below `floor` become 0.

    A map that lies below everywhere stays whole, so that its word is still somewhere; True says
    so. Many fillers (a, on) are like that.
    """
    passed = maps.masked_fill(maps < floor, 0.0)
    faint = (maps < floor).flatten(1).all(dim=1)
    return torch.where(faint[:, None, None], maps, passed), faint.tolist()


def word_embeddings(maps: Tensor, values: Tensor, floor: float, centre: Tensor | None = None) -> Tensor:
    """Equation 5: E_i = sum over pixels of map_i(p) E_V(p), of length 1; (N, C) float32.

    maps    M_i (N, h, w), each is filtered and then divided by its sum
    values  E_V (C, h, w)
    centre  (C,) is taken off before E_i is brought to length 1
    """
    weights = filtered(maps.float(), floor)[0].flatten(1)
    weights = weights / weights.sum(dim=1, keepdim=True)
    embeddings = weights @ values.float().flatten(1).mT
    return F.normalize(embeddings if centre is None else embeddings - centre.float(), dim=1)


def keyword_embedding(embeddings: Tensor, numbers: Sequence[int]) -> Tensor:
    """E_k: mean of the keywords' rows of (N, C), of length 1; (C,)."""
    return F.normalize(embeddings[list(numbers)].mean(dim=0), dim=0)


def voting(keywords: Sequence[int], faint: Sequence[bool]) -> tuple[int, ...]:
    """Numbers of the keywords that E_k is made of: those that are not faint; all of them where all are.

    A new word is not always what the edit is about. Where *a black cross* becomes *an orange
    cross*, *an* looks nowhere in particular, and would pull E_k there.
    """
    return tuple(number for number in keywords if not faint[number]) or tuple(keywords)


def similarities(embeddings: Tensor, keyword: Tensor) -> Tensor:
    """Equation 6: A_i = E_i . E_k, both of length 1; (N, C), (C,) -> (N,) in [-1, 1]."""
    return (embeddings @ keyword).clamp(-1.0, 1.0)


def tau_of(similarity: Tensor, keywords: Sequence[int], lambda_tau: float = LAMBDA_TAU) -> Tensor:
    """Equation 7: 0 for keywords, else lambda_tau * (1 - exp(A_i - 1)), in [0, 1]; (N,) -> (N,)."""
    taus = (lambda_tau * (1.0 - torch.exp(similarity - 1.0))).clamp(0.0, 1.0)
    taus[list(keywords)] = 0.0
    return taus


def saliency(keyword: Tensor, values: Tensor, scale: float, centre: Tensor | None = None) -> Tensor:
    """Equation 9: S_V = lambda_SV * (E_k . E_V) in [0, 1], E_V of every pixel brought to length 1.

    keyword (C,), values (B, C, h, w), scale is lambda_SV, centre (C,) -> (B, h, w) float32. What
    is opposed to the keyword has 0. Nothing here makes the device wait.
    """
    values = values.float()
    if centre is not None:
        values = values - centre.to(values)[:, None, None]
    alike = torch.einsum("c,bchw->bhw", keyword.to(values), F.normalize(values, dim=1))
    return (scale * alike).clamp(0.0, 1.0)
