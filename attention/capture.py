"""Cross-attention maps of a model's evaluation: how much each cell looks at each token.

A map is softmax(q k^T / sqrt(d)) over all tokens, averaged over heads and over the chosen
blocks, of one conditioning only, the positive one unless the negative is wanted. q and k are
those that the attention itself is given, so whatever other patches did to them is in the map.
The map is computed beside the attention, which runs untouched, in every backend; only the
chosen blocks pay for it, and nothing is kept but their running sum.

Like a key mask, a capture acts on two points of the host: `mark` at `attn2_patch`, before
q and k are projected, notes that the attention which is called next is a cross-attention of a
chosen block; `attend`, where the attention is called, computes the map and calls it.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING = (
    "the conditioning has not gone through the model; take patches that skip evaluations or blocks (EasyCache, "
    "LazyCache) off this model"
)


def attention_map(q: Tensor, k: Tensor, heads: int, tokens: int, context: int) -> Tensor:
    """Mean over heads of softmax(q k^T / sqrt(d)), q (B, N, C), k (B, K, C) -> (B, N, tokens) float32.

    context  how many of the K keys are the prompt's own; more have been appended by a patch
    tokens   how many tokens the prompt has: `context` or a part of it, where the host has
             repeated the prompt to bring it to the length of others in the same batch

    All K keys take part in the softmax; what repeats of a token get is counted together.
    """
    if k.shape[1] == context:
        # repeats share the weight evenly and alike, so one copy of the prompt has the same softmax
        k = k[:, :tokens]
    q, k = (t.float().unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1).mean(dim=1)
    if weights.shape[2] > tokens:
        weights = weights[..., :context].unflatten(2, (-1, tokens)).sum(dim=2)
    return weights


class Capture:
    """Which maps are wanted, and those of the latest evaluation.

    Made for one run: `take` them between one evaluation and the next.
    """

    def __init__(self, blocks: Iterable[tuple[Any, ...]], tokens: int, of: str = "positive") -> None:
        """blocks: `Block`s or their keys (side, number, depth); tokens: those of the conditioning; of: which one."""
        self.blocks: frozenset[tuple[str, int, int]] = frozenset((b[0], b[1], b[2]) for b in blocks)
        self.tokens, self.of = tokens, of
        if not self.blocks or tokens < 1:
            raise ValueError(f"cross-attention capture: {len(self.blocks)} blocks and {tokens} tokens; give some")
        self.cleanup()

    def begin(self, trouble: str = "") -> None:
        """A new evaluation: forget the last one. `trouble` says why there will be no maps of it."""
        self._sum: Tensor | None = None
        self._layers = 0
        self._trouble = trouble

    @property
    def skipped(self) -> bool:
        """Whether the latest evaluation left nothing, without a patch being to blame that is known."""
        return self._sum is None and not self._trouble

    def add(self, maps: Tensor, height: int, width: int) -> None:
        """One layer's maps (B, height * width, tokens)."""
        maps = maps.transpose(1, 2).unflatten(2, (height, width))
        if self._sum is None:
            self._sum = maps
        else:
            if maps.shape != self._sum.shape:  # patches that shrink the picture inside some blocks
                maps = F.interpolate(maps, self._sum.shape[2:], mode="bilinear", antialias=True)
            self._sum += maps
        self._layers += 1

    def fail(self, trouble: str) -> None:
        """Why a layer gave no map; told by `take` if none did."""
        self._trouble = trouble

    def take(self) -> Tensor:
        """Maps of the latest evaluation, (B, tokens, h, w) float32 where the model computes; forgets them.

        The mean over heads and captured layers; they add up to 1 over the tokens. On the grid of the
        run's first maps, where patches change it on the way.
        Raises RuntimeError, with the cause, where nothing was captured.
        """
        total, layers, trouble = self._sum, self._layers, self._trouble
        self.begin()
        if total is None:
            raise RuntimeError(f"cross-attention capture: there are no maps: {trouble or NOTHING}")
        maps = (total / layers).contiguous()
        if self._grid is None:
            self._grid = maps.shape[2:]
        if maps.shape[2:] != self._grid:
            maps = F.interpolate(maps, self._grid, mode="bilinear", antialias=True)
        return maps

    def cleanup(self) -> None:
        """Free what belongs to a run (called when sampling ends, also on an error)."""
        self._grid: torch.Size | None = None
        self.begin()


class _Layout(NamedTuple):
    batch: int
    height: int
    width: int
    context: int  # tokens as the host hands them in


class CapturePass:
    """One call of the UNet that computes the conditioning: rows `chunk` of `chunks` in its batch.

    What is noted between `mark` and the attention lives here, and so ends with the call.
    """

    def __init__(self, capture: Capture, chunk: int, chunks: int) -> None:
        self.capture = capture
        self.chunk, self.chunks = chunk, chunks
        self._next: _Layout | None = None

    def mark(self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """The `attn2_patch` point, the first of its patches: hidden states and context, handed on as they are."""
        self._next = None
        if k is not None and (*extra["block"], extra.get("block_index", 0)) in self.capture.blocks:
            height, width = extra["activations_shape"][-2:]
            self._next = _Layout(len(q), height, width, k.shape[1])
        return q, k, v

    def attend(self, attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Call an attention function of the host (q, k, v, heads ...), after the map was taken if it is wanted."""
        if self._next is not None:
            self._record(args[0], args[1], args[3] if len(args) > 3 else kwargs["heads"])
        return attention(*args, **kwargs)

    def replaced(
        self, replacement: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]
    ) -> Tensor:
        """The `attn2` replacement of another pack, which calls the attention itself, or several."""
        if self._next is not None:
            self._record(q, k, extra["n_heads"])
        return replacement(q, k, v, extra)

    def forget(self, out: Tensor, extra: dict[str, Any]) -> Tensor:
        """The `attn2_output_patch` point: this block's cross-attention is over."""
        if self._next is not None:
            self._next = None
            self.capture.fail("another patch computes the cross-attention without the host's attention function")
        return out

    def _record(self, q: Tensor, k: Tensor, heads: int) -> None:
        assert self._next is not None
        (batch, height, width, context), self._next = self._next, None
        tokens = self.capture.tokens
        if q.shape[1] != height * width or q.shape[0] != batch or batch % self.chunks:
            self.capture.fail(
                f"another patch has left {q.shape[0]}x{q.shape[1]} queries of {batch} on a grid of {width}x{height}; "
                f"take that patch off this model"
            )
        elif context % tokens or k.shape[1] < context:
            self.capture.fail(
                f"the conditioning has {context} tokens and the attention {k.shape[1]} keys, "
                f"but the prompt that was read has {tokens}"
            )
        else:
            images = q.shape[0] // self.chunks
            rows = slice(self.chunk * images, (self.chunk + 1) * images)
            self.capture.add(attention_map(q[rows], k[rows], heads, tokens, context), height, width)
