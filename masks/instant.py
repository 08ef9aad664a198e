"""Instant attention masks: where an edit prompt acts, read from the denoising that makes the edit.

InstDiffEdit (Zou et al., "Towards Efficient Diffusion-Based Image Editing with Instant Attention
Masks", AAAI 2024), section 4.2. The cross-attention of one evaluation becomes the mask of one step:

1. every word gets a map: the mean of its pieces' maps, on the latent's grid, scaled to [0, 1];
2. the start token's map is the reference. It is inverted first, as in the released code: the
   start token attends to what the words do not. The word most like it is the index word;
3. words like the index word have position +1, words unlike it -1, the others 0. This is decided
   at the first step only;
4. the mean of the +1 maps less that of the -1 maps, blurred, is the refined map A_ref, and what
   exceeds phi in it is the mask M_t.

Two things are done otherwise. In step 4 the map follows the edges of the picture's own latent
(`masks.edges`) where the article blurs it. And where it is known what the source shows, what the
edit replaces is looked for in the attention to the source's words (`masks.instant_words`), and
step 2's index word is sought in another way: with little to tell the start token's inverse from
a blank page, words that look nowhere often win there. The words around a word that is replaced
("a large [red] ring") look at the same thing as it does. So of its phrase that word leads whose
map parts most clearly into two.

Maps are (..., N, h, w): N words on a grid of any size, in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.words import Prompt, Word, listing
from .edges import following
from .instant_words import Given

SIGMA = 1.1  # of a 5x5 Gaussian, as OpenCV chooses it for that size
AUTOMATIC = -1.0  # as a threshold: Otsu's

# Relative spread below which a map says nothing: what float32 arithmetic makes of a constant.
FLAT = 1e-5


@dataclass(frozen=True)
class Settings:
    """The article's parameters; its own are 0.9, 0.6 and 0.2, neither correlation nor edges, all else True.

    lambda1       similarity to the index word from which a word belongs to the object (+1)
    lambda2       similarity up to which it belongs to the rest (-1)
    phi           what of the refined map, in [0, 1], is mask; -1 is Otsu's threshold, for each step
    edges         before the threshold the map follows the edges of the picture's latent
    blur          without that: two 5x5 Gaussians
    invert_start  the reference is 1 - the start token's map; False is the article's text
    running_mean  attention averaged over all steps so far; False is the current step's alone
    correlation   words are compared by correlation; False is the article's cosine, for which an even
                  grey is like everything, so that words which look nowhere (a, on, and) may lead
    refine        False is the article's ablation: the index word's own map, without position vector
    """

    lambda1: float = 0.7
    lambda2: float = 0.3
    phi: float = 0.4
    blur: bool = True
    invert_start: bool = True
    running_mean: bool = True
    correlation: bool = True
    edges: bool = True
    refine: bool = True

    def check(self, who: str) -> None:
        """Raise ValueError, naming the input, for parameters that make no sense."""
        for name in ("lambda1", "lambda2"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{who}: {name} is {value:g}; it is a cosine similarity, from 0 to 1")
        if self.lambda2 >= self.lambda1:
            raise ValueError(
                f"{who}: lambda2 is {self.lambda2:g} and lambda1 is {self.lambda1:g}; lambda2 has to be the lower one, "
                "so that no word is both object and background"
            )
        check_threshold(self.phi, who, "phi")

    def mask(self, refined: Tensor) -> Tensor:
        """What of A_ref (h, w) exceeds phi, 0 or 1."""
        return (refined > (otsu(refined) if self.phi == AUTOMATIC else self.phi)).float()


def check_threshold(value: float, who: str, name: str) -> None:
    """Raise ValueError unless a threshold is automatic or on a scale from 0 to 1."""
    if value != AUTOMATIC and not 0.0 <= value < 1.0:
        raise ValueError(f"{who}: {name} is {value:g}; use 0 up to below 1, or -1 for an automatic one")


@dataclass(frozen=True)
class Role:
    """A word of the prompt, its position P_n (+1, 0, -1) and its similarity S_n to the index word.

    `leads` is true of the index word, or of the words that the user has put in its place.
    """

    word: str
    position: int
    similarity: float
    leads: bool = False

    def __str__(self) -> str:
        sign = f"{self.position:+d}" if self.position else "0"
        return f"{self.word} {sign} ({'leads' if self.leads else f'similarity {self.similarity:.2f}'})"


def min_max(maps: Tensor) -> Tensor:
    """Scale every map (..., h, w) to [0, 1]; a map that is the same everywhere becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    spread = high - low
    flat = spread <= FLAT * torch.maximum(high.abs(), low.abs())
    return ((maps - low) / spread.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Bicubic resampling of maps (..., h, w) on another grid over the same picture, float32."""
    planes = maps.float().reshape(1, -1, *maps.shape[-2:])
    resized = F.interpolate(planes, size=(height, width), mode="bicubic", align_corners=False)
    return resized.reshape(*maps.shape[:-2], height, width)


def word_maps(attention: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Mean over each word's pieces: attention (..., tokens, h, w), N token lists -> (..., N, h, w), float32."""
    pooling = torch.zeros(len(words), attention.shape[-3])
    for row, tokens in zip(pooling, words, strict=True):
        row[list(tokens)] = 1.0 / len(tokens)
    maps = pooling.to(attention.device) @ attention.float().flatten(-2)
    return maps.unflatten(-1, attention.shape[-2:])


def reference_map(start: Tensor, invert: bool = True) -> Tensor:
    """The start token's map (h, w), scaled to [0, 1] and by default inverted: what the words attend to."""
    scaled = min_max(start)
    return min_max(1.0 - scaled) if invert else scaled


def similarities(one: Tensor, maps: Tensor, correlation: bool = False) -> Tensor:
    """Cosine similarity of a map (h, w) to each of (N, h, w) -> (N); 0 where a map is 0.

    With `correlation` the maps' means are taken off first.
    """
    one, maps = one.flatten()[None], maps.flatten(1)
    if correlation:
        one, maps = (t - t.mean(1, keepdim=True) for t in (one, maps))
    return F.cosine_similarity(one, maps, dim=1)


def index_word(reference: Tensor, maps: Tensor, correlation: bool = False) -> int:
    """The word whose map of (N, h, w) is most like the reference (h, w); the first of equals."""
    alike = similarities(reference, maps, correlation).tolist()
    return alike.index(max(alike))


def position_vector(similarity: Sequence[float], lambda1: float = 0.9, lambda2: float = 0.6) -> list[int]:
    """P_n from S_n: +1 from lambda1 on, -1 up to lambda2, else 0."""
    return [1 if s >= lambda1 else -1 if s <= lambda2 else 0 for s in similarity]


def refined_map(maps: Tensor, position: Sequence[int]) -> Tensor:
    """A_ref (h, w) of word maps (N, h, w): scaled mean of the +1 words less that of the -1 words, at least 0."""

    def mean(sign: int) -> Tensor | None:
        chosen = [n for n, p in enumerate(position) if p == sign]
        return min_max(torch.stack([maps[n] for n in chosen]).mean(0)) if chosen else None

    wanted, unwanted = mean(1), mean(-1)
    if wanted is None:
        return torch.zeros_like(maps[0])
    return wanted if unwanted is None else (wanted - unwanted).clamp(min=0.0)


def gaussian_blur(plane: Tensor) -> Tensor:
    """One 5x5 Gaussian over (h, w); the edge is repeated outwards."""
    weights = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).to(plane)
    padded = F.pad(plane[None, None], (2, 2, 2, 2), mode="replicate")
    rows = F.conv2d(padded, weights.view(1, 1, 5, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, 5))[0, 0]


def clearest(maps: Tensor) -> int:
    """Which of N maps (N, h, w) parts most clearly into two: the largest Fisher ratio at Otsu's threshold.

    That is the distance of the two classes' means over the sum of their standard deviations.
    """
    ratios = []
    for plane in maps:
        high = plane > otsu(plane)
        if not bool(high.any()):  # a map that is the same everywhere
            ratios.append(0.0)
            continue
        above, below = plane[high], plane[~high]
        spread = above.std(correction=0) + below.std(correction=0)
        ratios.append(float((above.mean() - below.mean()) / spread.clamp(min=1e-6)))
    return ratios.index(max(ratios))


class Refinement:
    """The mask module G of one run: attention in, M_t out, step after step.

    Holds sums only: the attention so far (where it is averaged) and, from the first step on,
    the position vector.
    """

    def __init__(
        self,
        prompt: Prompt,
        size: tuple[int, int],
        settings: Settings | None = None,
        given: Given | None = None,
        guide: Tensor | None = None,
    ) -> None:
        """Args as the run has them.

        Args:
            prompt: whose words are asked.
            size: grid (h, w) of the masks.
            settings: the article's parameters.
            given: what is decided beforehand, see `instant_words.read_roles`.
            guide: the picture's latent (C, h, w), whose edges the masks follow; None: none are.
        """
        self.words: tuple[Word, ...] = prompt.words
        self.settings = settings if settings is not None else Settings()
        self.roles: tuple[Role, ...] = ()
        self._tokens = [prompt.starts, *(word.tokens for word in prompt.words)]
        self._size = size
        self._given = given if given is not None else Given()
        self._follow: Callable[[Tensor], Tensor] | None = None
        if guide is not None and self.settings.edges:
            self._follow = following(guide)
        self._sum: Tensor | None = None
        self._steps = 0

    def maps(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Attention (tokens, h, w) -> the start token's map (h, w), as it is, and the words' (N, h, w) in [0, 1]."""
        pooled = resize(word_maps(attention, self._tokens), *self._size)
        return pooled[0], min_max(pooled[1:])

    def __call__(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """One step's attention (tokens, h, w) -> M_t and A_ref in [0, 1], both (h, w) float32 on the grid."""
        if self.settings.running_mean:
            self._sum = attention.float() if self._sum is None else self._sum + attention
            self._steps += 1
            attention = self._sum / self._steps
        start, maps = self.maps(attention)
        if not self.roles:
            self.roles = self._choose(start, maps)
        refined = refined_map(maps, [role.position for role in self.roles])
        if self._follow is not None:
            refined = self._follow(refined)
        elif self.settings.blur:
            refined = gaussian_blur(gaussian_blur(refined))
        refined = min_max(refined)
        return self.settings.mask(refined), refined

    def _choose(self, start: Tensor, maps: Tensor) -> tuple[Role, ...]:
        """Every word's role, from the first step's maps; a prompt of one word has no choice."""
        settings = self.settings
        leads, among = self._given.leads, self._given.among
        if not leads and among:
            leads = (among[clearest(maps[list(among)])],)
        if not leads:
            # a word that the user takes off cannot be what the others are compared with
            free = [n for n in range(len(maps)) if self._given.positions.get(n, 1) == 1]
            reference = reference_map(start, settings.invert_start)
            leads = (free[index_word(reference, maps[free], settings.correlation)],)
        lead = min_max(torch.stack([maps[n] for n in leads]).mean(0))
        similarity = similarities(lead, maps, settings.correlation).tolist()
        found = position_vector(similarity, settings.lambda1, settings.lambda2) if settings.refine else [0] * len(maps)
        found = [1 if n in leads else p for n, p in enumerate(found)]
        position = [self._given.positions.get(n, p) for n, p in enumerate(found)]
        names = listing(self.words).split(", ")
        return tuple(Role(names[n], position[n], similarity[n], n in leads) for n in range(len(names)))


class Refinements:
    """The mask module of several texts, each with its own attention: what any of them asks for is mask."""

    def __init__(self, parts: Sequence[Refinement]) -> None:
        self.parts = tuple(parts)

    def __call__(self, attention: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """M_t and A_ref as of a Refinement, from one step's attention to each text."""
        refined = [part(given)[1] for part, given in zip(self.parts, attention, strict=True)]
        together = torch.stack(refined).amax(0)
        return self.parts[0].settings.mask(together), together


def named_map(attention: Tensor, words: Sequence[Word]) -> Tensor:
    """Map in [0, 1] of some words together: attention (..., tokens, h, w) -> (..., h, w), float32.

    The plain mean: a word that is hardly attended to, and so says little, counts little.
    """
    return min_max(word_maps(attention, [word.tokens for word in words]).mean(-3))


def otsu(values: Tensor) -> float:
    """Threshold that parts values best into two classes (Otsu 1979): the largest variance between them.

    Exact: every split between two different values is tried, and the threshold lies in the
    middle of the gap. Values that are all the same have themselves as threshold.
    """
    ordered = values.flatten().cpu().double().sort().values
    sums = ordered.cumsum(0)
    below = torch.arange(1, len(ordered), dtype=torch.float64)
    above = len(ordered) - below
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    between = between.masked_fill(ordered[1:] == ordered[:-1], 0.0)
    if len(between) == 0 or not bool(between.any()):
        return float(ordered[0])
    split = int(between.argmax())
    return float((ordered[split] + ordered[split + 1]) / 2)


def strip(soft: Tensor, hard: Tensor, columns: int = 10, side: int = 64) -> Tensor:
    """Picture of a run's masks: (S, h, w) maps in [0, 1] and masks -> IMAGE (1, H, W, 3), CPU.

    In reading order, `columns` to a row; a map is grey, and orange where it is mask. The
    shorter side of each is at least `side` pixels.
    """
    scale = max(1, -(-side // min(soft.shape[-2:])))
    soft, hard = (t.detach().float().cpu()[..., None] for t in (soft, hard))
    orange = torch.tensor([1.0, 0.6, 0.15]) * (0.4 + 0.6 * soft)
    frames = torch.where(hard > 0.5, orange, soft)
    frames = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    steps, height, width, _ = frames.shape
    across = min(columns, steps)
    down = -(-steps // across)
    sheet = torch.full((down * (height + 2) - 2, across * (width + 2) - 2, 3), 0.25)
    for number, frame in enumerate(frames):
        top, left = (number // across) * (height + 2), (number % across) * (width + 2)
        sheet[top : top + height, left : left + width] = frame
    return sheet[None]
