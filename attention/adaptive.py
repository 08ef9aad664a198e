"""Soft attention in time and space: an edit prompt that takes over word by word and pixel by pixel.

AdapEdit, equations 4 and 8 (the DPS module), and Emu Edit's control of attention by a soft mask,
which is the same mixing with a weight from outside. Two branches are denoised, the source with
its prompt c and the edit with c*. In every cross-attention of the edit branch word i has

    w * Mbar_i + (1 - w) * M_i,        w = lambda_S * S_V at every pixel,

Mbar_i being the source's map M_i in the first tau_i of the schedule, and the word's own M*_i after
that (`attention.timings`). New words have no M_i and always their own map.

The article leaves open which values the source's side of the mixture meets. Here it meets the
source's own, so that the side is the source's cross-attention itself, whatever its prompt:

    out = w * (sum_i Mbar_i V*_i) + (1 - w) * (sum_j M_j V_j)

w = 0 is then the source, and w = 1 with no word held the edit, to the last bit. The attention
itself runs untouched in every backend. What words are held by is added to its output:
sum over them of (M_i - M*_i) V*_i. Only these sums need maps, of pixels by tokens.

Structure can be held besides: early in the schedule the coarse self-attentions of the edit take
queries and keys from the source. Where w is below a quarter they do so to the end, and take values
too, the more the less w is, so that beside the edit the layout is the source's, at w = 0 wholly.
(Were the layout held by as much as 1 - w, an edit of half the strength would hardly show.)

The branches are evaluated one after the other, the source first. What the edit will need of it is
kept in between: of every cross-attention the output and, while words are held, queries and keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks.grid import to_grid
from .alignment import NONE
from .timings import WordTimings, saliency

WHO = "Adaptive Attention Guider"
MASK_MODES = ("multiply", "replace")
SPATIAL = ("fixed", "moving")
FREE_FROM = 0.25  # weight from which self-attention is the edit's own

BlockKey = tuple[str, int, int]
QKV = tuple[Tensor, Tensor, Tensor]


def token_maps(q: Tensor, k: Tensor, heads: int, tokens: int, context: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) of every head, q (B, N, C), k (B, K, C) -> (B, heads, N, tokens) float32.

    As `attention.capture.attention_map`, but before the mean over heads. `context` keys are the
    prompt's, what patches have appended takes part in the softmax; `tokens` are the prompt's
    before the host repeated it, and what repeats of a token get is counted together.
    """
    q, k = (t.float().unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
    maps = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1)[..., :context]
    return maps if context == tokens else maps.unflatten(3, (-1, tokens)).sum(dim=3)


def held_change(own: Tensor, source: Tensor, values: Tensor) -> Tensor:
    """Sum over held tokens of (M_i - M*_i) V*_i: what holding them adds to the attention's output.

    own, source  M*_i and M_i of the held tokens (B, heads, N, n)
    values       V*_i (B, n, C)
    Returns (B, N, C) float32, heads side by side as the attention's output has them.
    """
    values = values.float().unflatten(2, (own.shape[1], -1)).transpose(1, 2)
    return ((source - own) @ values).transpose(1, 2).flatten(2)


class SpatialWeight:
    """w = lambda_S * S_V on every attention grid, S_V by equation 9, by a soft mask, or both.

    S_V is read from the hidden states of the edit's own branch. Their block comes late in the
    UNet, so an evaluation mixes by what the one before has left, and the first one by the map
    that the timings were made with.
    """

    def __init__(
        self,
        timings: WordTimings,
        lambda_s: float,
        lambda_sv: float,
        mask: Tensor | None,
        mask_mode: str,
        spatial: str,
    ) -> None:
        """mask: (B or 1, H, W) float32 on the CPU; mask_mode: multiply or replace S_V; spatial: moving or fixed."""
        self.lambda_s, self.lambda_sv = lambda_s, lambda_sv
        self.mask = mask
        self._keyword, self._centre = timings.keyword, timings.centre
        self._replaces = mask is not None and mask_mode == "replace"
        # 1 everywhere: then the edit's cross-attention is left alone
        self.is_one = self._replaces and lambda_s == 1 and mask is not None and bool((mask == 1).all())
        self.is_read = spatial == "moving" and not self._replaces and lambda_s > 0
        self._salient = (lambda_sv * timings.saliency).clamp(0, 1)[None]
        self._next: Tensor | None = None
        self._on_grid: dict[tuple[int, int, torch.device], Tensor] = {}
        self._masks: dict[tuple[int, int, torch.device], Tensor] = {}

    def begin(self) -> None:
        """A new evaluation: mix by the S_V that the last one has left."""
        if self._next is not None:
            self._salient, self._next = self._next, None
        if self.is_read:
            self._on_grid.clear()

    def read(self, values: Tensor) -> None:
        """Equation 9 for the next evaluation, from E_V (B, C, h, w) of this one; its first call counts."""
        if self._next is None:
            if self._keyword.device != values.device:  # once in a run
                self._keyword = self._keyword.to(values.device)
                self._centre = None if self._centre is None else self._centre.to(values.device)
            self._next = saliency(self._keyword, values, self.lambda_sv, self._centre)

    def on(self, height: int, width: int, device: torch.device) -> Tensor:
        """Weight of a grid's cells, (B or 1, height * width, 1) float32 in [0, 1]."""
        key = (height, width, device)
        if key not in self._on_grid:
            self._on_grid[key] = self.lambda_s * self._space(key).flatten(1).unsqueeze(2)
        return self._on_grid[key]

    def _space(self, key: tuple[int, int, torch.device]) -> Tensor:
        """S_V (B or 1, height, width), with the mask."""
        height, width, device = key
        if self.mask is not None and key not in self._masks:
            self._masks[key] = to_grid(self.mask, height, width).to(device, non_blocking=True)
        if self._replaces:
            return self._masks[key]
        salient = self._salient.to(device)[:, None]
        salient = F.interpolate(salient, (height, width), mode="bilinear", antialias=True)[:, 0].clamp(0, 1)
        return salient if self.mask is None else salient * self._masks[key]


@dataclass(frozen=True)
class Held:
    """Tokens of the edit prompt that have the source's map, and the source's tokens, (n,) each."""

    edit: Tensor
    source: Tensor

    def to(self, device: torch.device) -> "Held":
        """The same on another device."""
        return Held(self.edit.to(device), self.source.to(device))


@dataclass(frozen=True)
class Kept:
    """What one cross-attention of the source leaves for the edit: q, k where words are held, and its output."""

    q: Tensor | None
    k: Tensor | None
    out: Tensor
    context: int  # of the keys, how many are the prompt's own


class AdaptiveRun:
    """One sampling run: what acts at the current noise level, and what the source's evaluation has left.

    Made for one run. Between `begin` and `end` of an evaluation the source's branch runs, under a
    `SourcePass` for every call of the UNet, and then the edit's, under an `EditPass`.
    """

    def __init__(
        self,
        timings: WordTimings,
        weight: SpatialWeight,
        token_sigmas: Sequence[float],
        hold_sigma: float,
        hold_blocks: frozenset[BlockKey],
    ) -> None:
        """token_sigmas: for each token of the edit prompt the noise level above which it is held.

        hold_sigma: that of the self-attentions `hold_blocks`; below it they are held beside the edit.
        """
        self.timings, self.weight = timings, weight
        self.source_tokens, self.edit_tokens = timings.alignment.source.length, timings.alignment.edit.length
        self._limits = [
            (sigma, token, partner)
            for token, (sigma, partner) in enumerate(zip(token_sigmas, timings.alignment.tokens, strict=True))
            if partner != NONE
        ]
        self._hold_sigma, self._hold_blocks = hold_sigma, hold_blocks
        self._held: tuple[tuple[int, ...], Held] | None = None
        self.end()

    def begin(self, sigma: float, device: torch.device) -> None:
        """A new evaluation, at a noise level."""
        self.weight.begin()
        self.holds_layout = sigma > self._hold_sigma
        self.hold_blocks = self._hold_blocks if self.holds_layout or not self.weight.is_one else frozenset()
        held = [(token, partner) for limit, token, partner in self._limits if sigma > limit]
        tokens = tuple(token for token, _ in held)
        if held and (self._held is None or self._held[0] != tokens):
            numbers = torch.tensor(held, dtype=torch.long).T.contiguous()
            self._held = (tokens, Held(numbers[0], numbers[1]).to(device))
        self.held = self._held[1] if held and self._held is not None else None

    def end(self) -> None:
        """The evaluation is over: free what it has left."""
        self.held: Held | None = None
        self.holds_layout = False
        self.hold_blocks: frozenset[BlockKey] = frozenset()
        self.kept: dict[BlockKey, Kept] = {}
        self.kept_hidden: dict[BlockKey, Tensor] = {}

    @property
    def mixes(self) -> bool:
        """Whether the edit's cross-attentions take anything of the source's now."""
        return self.held is not None or not self.weight.is_one

    @property
    def needs_source(self) -> bool:
        """Whether the edit takes anything of the source now; if not, the source need not be evaluated."""
        return self.mixes or bool(self.hold_blocks)


@dataclass(frozen=True)
class _Layout:
    block: BlockKey
    height: int
    width: int
    context: int  # tokens as the host hands them in
    batch: int


class AttentionPass:
    """One call of the UNet with a branch in its batch; what is noted between two patch points lives here.

    `mark` at `attn2_patch`, before q and k are projected, notes whose cross-attention is called
    next; `attend` and `replaced`, where it is called, see q, k, v and the output; `self_mark` is
    the `attn1_patch` point. A subclass says what its branch does there.
    """

    def __init__(self, run: AdaptiveRun, rows: Sequence[slice]) -> None:
        """rows: of the call's batch, which are the branch's; several where prompts are combined."""
        self.run, self.rows = run, rows
        self._next: _Layout | None = None

    def mark(self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> QKV:
        """The `attn2_patch` point, the first of its patches: hidden states and context, handed on as they are."""
        height, width, self._next = *extra["activations_shape"][-2:], None
        if k is not None:
            self._next = _Layout(_key(extra), height, width, k.shape[1], len(q))
            if q.shape[1] != height * width:
                raise ValueError(
                    f"{WHO}: another patch has left {q.shape[1]} queries of a grid of {width}x{height} in block "
                    f"{self._next.block}, so it is unknown where they are; take that patch off this model"
                )
            self._hidden(self._next, q)
        return q, k, v

    def attend(self, attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Call an attention function of the host (q, k, v, heads ...)."""
        layout, self._next = self._next, None
        out = attention(*args, **kwargs)
        if layout is None:
            return out
        q, k, v = args[:3]
        return self._mixed(layout, q, k, v, args[3] if len(args) > 3 else kwargs["heads"], out)

    def replaced(self, other: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        """The `attn2` replacement of another pack, which calls the attention itself, or several."""
        layout, self._next = self._next, None
        out = other(q, k, v, extra)
        return out if layout is None else self._mixed(layout, q, k, v, extra["n_heads"], out)

    def forget(self, out: Tensor, extra: dict[str, Any]) -> Tensor:
        """The `attn2_output_patch` point: this block's cross-attention is over."""
        if self._next is not None:
            raise ValueError(
                f"{WHO}: another patch computes the cross-attention of block {self._next.block} without the host's "
                "attention function; take that patch off this model"
            )
        return out

    def self_mark(self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> QKV:
        """The `attn1_patch` point, the first of its patches: hidden states (B, N, C) for q, k and v."""
        if _key(extra) in self.run.hold_blocks:
            height, width = extra["activations_shape"][-2:]
            return self._self_hidden(_key(extra), height, width, q, k, v)
        return q, k, v

    def _mixed(self, layout: _Layout, q: Tensor, k: Tensor, v: Tensor, heads: int, out: Tensor) -> Tensor:
        if len(q) != layout.batch:
            raise ValueError(
                f"{WHO}: another patch has made {len(q)} pictures of {layout.batch} in the cross-attention of block "
                f"{layout.block}, so it is unknown which is whose; take that patch (regional prompts) off this model"
            )
        return self._attended(layout, q, k, v, heads, out)

    def _hidden(self, layout: _Layout, hidden: Tensor) -> None:
        raise NotImplementedError

    def _attended(self, layout: _Layout, q: Tensor, k: Tensor, v: Tensor, heads: int, out: Tensor) -> Tensor:
        raise NotImplementedError

    def _self_hidden(self, block: BlockKey, height: int, width: int, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        raise NotImplementedError


def _key(extra: dict[str, Any]) -> BlockKey:
    side, number = extra["block"]
    return (side, number, extra.get("block_index", 0))


class SourcePass(AttentionPass):
    """The source's branch: keeps what the edit will take, and changes nothing.

    The first evaluation of a noise level counts, not those that guidance adds.
    """

    def _own(self, tensor: Tensor) -> Tensor:
        """The branch's rows (B, N, C), without holding on to others."""
        part = tensor[self.rows[0]]
        return part if len(part) == len(tensor) else part.clone()

    def _hidden(self, layout: _Layout, hidden: Tensor) -> None:
        pass

    def _attended(self, layout: _Layout, q: Tensor, k: Tensor, v: Tensor, heads: int, out: Tensor) -> Tensor:
        if self.run.mixes and layout.block not in self.run.kept:
            held = self.run.held is not None
            self.run.kept[layout.block] = Kept(
                self._own(q) if held else None, self._own(k) if held else None, self._own(out), layout.context
            )
        return out

    def _self_hidden(self, block: BlockKey, height: int, width: int, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        if block not in self.run.kept_hidden:
            self.run.kept_hidden[block] = self._own(q)
        return q, k, v


class EditPass(AttentionPass):
    """The edit's branch: equations 4 and 8, and the held self-attentions."""

    def _hidden(self, layout: _Layout, hidden: Tensor) -> None:
        weight = self.run.weight
        if weight.is_read and layout.block == self.run.timings.block:
            weight.read(hidden[self.rows[0]].mT.unflatten(2, (layout.height, layout.width)))

    def _attended(self, layout: _Layout, q: Tensor, k: Tensor, v: Tensor, heads: int, out: Tensor) -> Tensor:
        if not self.run.mixes:
            return out
        kept = self.run.kept.get(layout.block)
        result = out.clone()  # a replacement may have handed out something of its own
        for rows in self.rows:
            if kept is None or kept.out.shape != out[rows].shape:
                raise ValueError(
                    f"{WHO}: the source has left nothing that fits block {layout.block}; its conditioning has to act "
                    "over the whole schedule, and patches that skip or shrink blocks have to come off this model"
                )
            mixed = out[rows].float()
            if self.run.held is not None:
                mixed = mixed + self._held_change(layout, self.run.held, kept, q[rows], k[rows], v[rows], heads)
            if not self.run.weight.is_one:
                weight = self.run.weight.on(layout.height, layout.width, out.device)
                mixed = torch.lerp(kept.out.to(mixed), mixed, weight.expand_as(mixed))
            result[rows] = mixed.to(out.dtype)
        return result

    def _held_change(
        self, layout: _Layout, held: Held, kept: Kept, q: Tensor, k: Tensor, v: Tensor, heads: int
    ) -> Tensor:
        assert kept.q is not None and kept.k is not None
        held = held.to(q.device)
        own, theirs = self.run.edit_tokens, self.run.source_tokens
        for name, keys, tokens, context in (
            ("edit", k, own, layout.context),
            ("source", kept.k, theirs, kept.context),
        ):
            if context % tokens or keys.shape[1] < context:
                raise ValueError(
                    f"{WHO}: the {name} conditioning has {context} tokens and its attention {keys.shape[1]} keys, but "
                    f"the prompt of the timings has {tokens}; take patches that drop keys off this model"
                )
        maps = token_maps(q, k, heads, own, layout.context).index_select(3, held.edit)
        source = token_maps(kept.q.to(q), kept.k.to(q), heads, theirs, kept.context).index_select(3, held.source)
        return held_change(maps, source, v.index_select(1, held.edit))

    def _self_hidden(self, block: BlockKey, height: int, width: int, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        kept, weight = self.run.kept_hidden.get(block), self.run.weight
        layout, values = q.clone(), v if weight.is_one else v.clone()
        for rows in self.rows:
            if kept is None or kept.shape != q[rows].shape:
                raise ValueError(
                    f"{WHO}: the source has left nothing that fits block {block}; its conditioning has to act over "
                    "the whole schedule"
                )
            source = kept.to(q)
            if not weight.is_one:
                share = (weight.on(height, width, q.device) / FREE_FROM).clamp(max=1.0).to(q.dtype).expand_as(source)
                values[rows] = torch.lerp(source, v[rows], share)
                source = source if self.run.holds_layout else torch.lerp(source, q[rows], share)
            layout[rows] = source
        return layout, layout, values
