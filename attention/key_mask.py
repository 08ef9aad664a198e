"""Key-masked self-attention: an area of the picture that nothing can look at.

DesignEdit (Jia et al. 2024), equation 1: softmax(Q((1-M) * K)^T / sqrt(d)) V in every
self-attention of the UNet. M is 1 on the object to be removed, so that the pixels of the
hole build themselves from what surrounds them. M is multiplied into the hidden states
before `to_k`, which has no bias in Stable Diffusion, so this *is* masking K; Q, V and the
fused attention kernel stay as they are.

Modes
    multiply  the paper: a masked key's logit becomes 0 (it keeps some weight)
    exclude   masked keys (M >= 0.5) do not exist: fewer keys, less work
    soft      a bias of log(1-M) on the logits: a key keeps the share 1-M of its weight

Everything that depends on masks, grid, dtype and device is a `Plan`, made once per run and
shared by all steps and blocks; the blocks themselves only index and multiply.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks.grid import WHOLE, Window, to_grid

MODES = ("multiply", "exclude", "soft")

# Stands for -inf on a logit. exp(-1e4) is exactly 0 in every precision, it fits into fp16, and
# a kernel that works in blocks never meets a block whose largest logit is -inf (which is NaN).
NEGLIGIBLE = -1.0e4

# Under this name the host side hands in, per evaluation, the part of the latent that each
# conditioning covers (conditionings with an area see a crop): {uuid: Window}.
WINDOWS_KEY = "latent_layers_windows"

# Likewise the blocks whose self-attention another pack has replaced: (side, number[, depth]).
REPLACED_KEY = "latent_layers_replaced"


def kept_keys(masked: Tensor) -> Tensor:
    """Which keys exist in mode exclude, M (B, N) -> bool (B, N): those below 0.5.

    Where a coarse grid would lose all its keys, the least masked ones stay.
    """
    kept = masked < 0.5
    least = masked <= masked.amin(dim=1, keepdim=True)
    return torch.where(kept.any(dim=1, keepdim=True), kept, least)


def logit_bias(masked: Tensor) -> Tensor:
    """Bias of mode soft, log(1-M), M (B, N) -> (B, N): a key keeps the share 1-M of its weight."""
    return torch.log1p(-masked).clamp_(min=NEGLIGIBLE)


@dataclass(frozen=True, eq=False)
class KeyMask:
    """One mask and how it acts.

    mask     (B, H, W) float32 on the CPU, at image size, 1 = hidden; B is 1 or the image batch
    mode     one of MODES
    blocks   keys of the blocks it acts in, see `attention.blocks`; None is every block
    mask_on  what is multiplied by 1-M: k is the method, q and v are the paper's ablation
             (mode multiply only)
    """

    mask: Tensor
    mode: str = "multiply"
    blocks: frozenset[tuple[str, int, int]] | None = None
    mask_on: str = "k"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; use one of {', '.join(MODES)}")
        if self.mask_on not in ("q", "k", "v") or (self.mask_on != "k" and self.mode != "multiply"):
            raise ValueError(f"mask_on is {self.mask_on!r}; use k, or q or v in mode multiply")


class Layout(NamedTuple):
    """What a self-attention looks like from inside: the grid and how the batch is made up."""

    height: int
    width: int
    keys: int  # height * width, or more where another patch has appended keys
    chunks: int  # conditionings in this batch, in any order
    images: int  # images per conditioning
    fixed: bool  # keys may not be dropped: another patch works on queries in tiles, or on q, k and v
    windows: tuple[Window, ...] | None  # one per chunk, where conditionings see crops


@dataclass(frozen=True)
class Plan:
    """What is to be done to (q, k, v) of one layout. None: nothing.

    index    keys that stay: (n,) for all images, or (B, n)
    queries, keys, values   factors (B or 1, n, 1)
    bias     logit bias (B or 1, 1, 1, n): broadcast over heads and queries, never an N x N matrix
    """

    index: Tensor | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    bias: Tensor | None = None

    def on(self, device: torch.device, dtype: torch.dtype) -> "Plan":
        """The same plan where the hidden states are, in their precision."""
        moved = {name: t.to(device, dtype) for name, t in vars(self).items() if t is not None and name != "index"}
        return replace(self, index=None if self.index is None else self.index.to(device), **moved)


def mask_tokens(mask: Tensor, layout: Layout) -> Tensor:
    """M of one mask on a layout's keys, (B, N): B is 1 where all images and chunks agree."""
    if layout.windows is None:
        tokens = to_grid(mask, layout.height, layout.width).flatten(1)
        tokens = tokens if len(tokens) == 1 else tokens.repeat(layout.chunks, 1)
    else:
        parts = [to_grid(mask, layout.height, layout.width, window).flatten(1) for window in layout.windows]
        tokens = torch.cat([part.expand(layout.images, -1) for part in parts])
    return F.pad(tokens, (0, layout.keys - tokens.shape[1]))


def make_plan(masks: Sequence[KeyMask], layout: Layout) -> Plan:
    """Everything that several masks together do on one layout (CPU, float32).

    Several masks act as if they were applied one after the other: factors multiply, biases
    add, excluded areas unite.
    """
    tokens = [(key_mask, mask_tokens(key_mask.mask, layout)) for key_mask in masks]

    def product(mask_on: str) -> Tensor | None:
        """(1-M) of the masks in mode multiply, as one factor (B, N)."""
        factor = None
        for key_mask, masked in tokens:
            if key_mask.mode == "multiply" and key_mask.mask_on == mask_on:
                factor = 1 - masked if factor is None else factor * (1 - masked)
        return None if factor is None or bool((factor == 1).all()) else factor

    queries, keys, values = product("q"), product("k"), product("v")
    biases = [logit_bias(masked) for key_mask, masked in tokens if key_mask.mode == "soft"]
    bias = torch.stack(torch.broadcast_tensors(*biases)).sum(dim=0) if biases else None
    excluded = [masked for key_mask, masked in tokens if key_mask.mode == "exclude"]
    index = None
    if excluded:
        kept = kept_keys(torch.stack(torch.broadcast_tensors(*excluded)).amax(dim=0))
        if layout.fixed and not bool(kept.all()):
            hidden = torch.where(kept, 0.0, NEGLIGIBLE)
            bias = hidden if bias is None else bias + hidden
        elif not bool(kept.all()):
            index, padding = _key_index(kept)
            keys, values, bias = (None if t is None else take(t, index) for t in (keys, values, bias))
            if padding is not None:
                bias = padding if bias is None else bias + padding
    if bias is not None and not bool(bias.any()):
        bias = None
    return Plan(
        index=index,
        queries=None if queries is None else queries[:, : layout.height * layout.width, None],
        keys=None if keys is None else keys[..., None],
        values=None if values is None else values[..., None],
        bias=None if bias is None else bias[:, None, None, :].clamp(min=NEGLIGIBLE),
    )


def _key_index(kept: Tensor) -> tuple[Tensor, Tensor | None]:
    """Positions of the kept keys, and a bias that hides the padding of images that keep fewer.

    kept is bool (B, N); -> index (n,) where all images keep the same keys, else (B, n) with
    n the largest count, and a bias (B, n) where the counts differ.
    """
    if bool((kept == kept[:1]).all()):
        return kept[0].nonzero().squeeze(1), None
    counts = kept.sum(dim=1, keepdim=True)
    longest = int(counts.max())
    # a stable sort brings the kept positions to the front and leaves them in order
    index = torch.argsort(~kept, dim=1, stable=True)[:, :longest]
    surplus = torch.arange(longest)[None, :] >= counts
    return index, torch.where(surplus, NEGLIGIBLE, 0.0) if bool(surplus.any()) else None


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Entries (B, N) or hidden states (B, N, C) at an index (n,) or (B, n) of tokens."""
    if index.ndim == 1:
        return tokens.index_select(1, index)
    tokens = tokens.expand(len(index), *tokens.shape[1:])
    if tokens.ndim == 3:
        index = index[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, index)


class KeyMaskPatch:
    """Key masks as a patch for the host's `attn1_patch` point, before q, k and v are projected.

    Called with hidden states q, k, v (B, N, C) and the block's options; returns new ones and
    leaves the given tensors alone. Where a bias is needed it is left for `attend`, which the
    host calls for the attention itself; `forget` (the `attn1_output_patch` point) drops it
    where another pack has replaced that attention, so that it cannot meet a later one.
    """

    def __init__(self, masks: Sequence[KeyMask]) -> None:
        self.masks = tuple(masks)
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._pending: dict[torch.device, Tensor] = {}

    @property
    def may_bias(self) -> bool:
        """Whether `attend` and `forget` have to be in place: only multiply never needs a bias."""
        return any(mask.mode != "multiply" for mask in self.masks)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        plan = self._plan_for(q, k, extra)
        if plan is None:
            return q, k, v
        if plan.index is not None:
            k, v = take(k, plan.index), take(v, plan.index)
        if plan.queries is not None:
            q = q * plan.queries
        if plan.keys is not None:
            k = k * plan.keys
        if plan.values is not None:
            v = v * plan.values
        if plan.bias is not None:
            self._pending[q.device] = plan.bias
        return q, k, v

    def _plan_for(self, q: Tensor, k: Tensor, extra: dict[str, Any]) -> Plan | None:
        block = (*extra["block"], extra.get("block_index", 0))
        acting = tuple(i for i, mask in enumerate(self.masks) if mask.blocks is None or block in mask.blocks)
        if not acting:
            return None
        key = (acting, self._layout(q, k, block, extra), k.device, k.dtype)
        plan = self._plans.get(key)
        if plan is None:
            plan = make_plan([self.masks[i] for i in acting], key[1]).on(k.device, k.dtype)
            self._plans[key] = plan
        return plan

    def _layout(self, q: Tensor, k: Tensor, block: tuple[Any, ...], extra: dict[str, Any]) -> Layout:
        batch, _, height, width = extra["activations_shape"]
        if k.shape[0] != batch or k.shape[1] < height * width:
            raise ValueError(
                f"Key-Masked Self-Attention: another patch has left {k.shape[0]}x{k.shape[1]} keys of "
                f"{batch}x{height * width} in block {block}, so it is unknown where they are in the "
                f"picture; take that patch off this model"
            )
        batches = {len(mask.mask) for mask in self.masks} - {1}
        order = extra.get("cond_or_uncond")
        images = batch // len(order) if order else max(batches, default=batch)
        if batches - {images}:
            raise ValueError(
                f"Key-Masked Self-Attention: mask has a batch of {max(batches)}, "
                f"but {images} image(s) are sampled together; give 1 mask or {images}"
            )
        windows = extra.get(WINDOWS_KEY)
        crops = tuple(windows.get(uuid, WHOLE) for uuid in extra["uuids"]) if windows else None
        # a replacement may mix what has a row per query with what has a row per key (PAG returns v)
        replaced = extra.get(REPLACED_KEY, ())
        fixed = q.shape[0] != k.shape[0] or block in replaced or block[:2] in replaced
        return Layout(height, width, k.shape[1], batch // images, images, fixed, crops)

    def attend(self, attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Call an attention function of the host, with the bias that this block has left, if any.

        The arguments are the host's: q, k, v, heads, mask ..., with q (B, N, C) or (B, heads, N, d).
        """
        q, k = args[:2]
        bias = self._pending.pop(q.device, None)
        if bias is None:
            return attention(*args, **kwargs)
        if q.shape[0] != k.shape[0]:  # tiles: the host deals the keys out to them in order
            bias = bias.expand(k.shape[0], -1, -1, -1).reshape(q.shape[0], 1, 1, -1)
        if len(args) > 4:
            return attention(*args[:4], _add_masks(args[4], bias), *args[5:], **kwargs)
        kwargs["mask"] = _add_masks(kwargs.get("mask"), bias)
        return attention(*args, **kwargs)

    @property
    def has_pending(self) -> bool:
        """Whether the attention that runs next is one of ours and needs a bias."""
        return bool(self._pending)

    def forget(self, out: Tensor, extra: dict[str, Any]) -> Tensor:
        """The `attn1_output_patch` point: this block's self-attention is over."""
        self._pending.pop(out.device, None)
        return out

    def to(self, device_or_dtype: torch.device | torch.dtype) -> "KeyMaskPatch":
        """Plans are made where the hidden states are; a move of the model frees those elsewhere."""
        if isinstance(device_or_dtype, torch.device):
            self._plans = {key: plan for key, plan in self._plans.items() if key[2] == device_or_dtype}
        return self

    def cleanup(self) -> None:
        """Free what was made for a run (called when sampling ends, also on an error)."""
        self._plans.clear()
        self._pending.clear()


def _add_masks(mask: Tensor | None, bias: Tensor) -> Tensor:
    """A mask that is already there (bool or float, ending in (queries, keys)) and our bias."""
    if mask is None:
        return bias
    if mask.ndim == 3:
        mask = mask.unsqueeze(1)
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, NEGLIGIBLE)
    return mask + bias
