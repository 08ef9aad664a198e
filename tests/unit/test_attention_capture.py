"""Cross-attention maps against the softmax written out, in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from latent_layers.attention.capture import Capture, CapturePass, attention_map

BLOCK = ("input", 7, 0)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def written_out(q, k, heads):
    """softmax(q k^T / sqrt(d)) of each head over all keys, then their mean: (B, N, K) float64."""
    total = torch.zeros(q.shape[0], q.shape[1], k.shape[1], dtype=torch.float64)
    size = q.shape[2] // heads
    for image in range(q.shape[0]):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = q[image, :, part].double() @ k[image, :, part].double().T / size**0.5
            weights = (logits - logits.max(dim=1, keepdim=True).values).exp()
            total[image] += weights / weights.sum(dim=1, keepdim=True) / heads
    return total


def fused(q, k, v, heads, mask=None, **kwargs):
    """An attention function with the host's signature."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def options(grid, block=BLOCK):
    return {"activations_shape": [9, 32, *grid], "block": block[:2], "block_index": block[2], "n_heads": 4}


def cross_attention(run, q, k, grid, block=BLOCK, given=None, hidden=None):
    """A cross-attention as the host runs it; `given`, `hidden`: context and states before patches changed them."""
    extra = options(grid, block)
    run.mark(q if hidden is None else hidden, k if given is None else given, None, extra)
    return run.forget(run.attend(fused, q, k, k, 4), extra)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("cells", "keys"), [(15, 7), (96, 77), (1, 1)])
def test_the_map_is_the_softmax(heads, cells, keys):
    q, k = random(3, cells, 32) * 2, random(3, keys, 32, seed=1) * 2
    got = attention_map(q, k, heads, keys, keys)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), written_out(q, k, heads), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_that_of_the_inputs(dtype):
    # logits of several hundred, which fp16 products would round by tenths or let overflow
    q, k = random(2, 24, 32, dtype=dtype) * 40, random(2, 9, 32, seed=1, dtype=dtype) * 40
    got = attention_map(q, k, 2, 9, 9)
    assert torch.isfinite(got).all()
    assert torch.allclose(got.double(), written_out(q, k, 2), atol=1e-4)


@pytest.mark.parametrize("repeats", [2, 3])
@pytest.mark.parametrize("appended", [0, 5])
def test_repeats_of_the_prompt_count_together(repeats, appended):
    q, k = random(2, 24, 32), random(2, 7, 32, seed=1)
    more = random(2, appended, 32, seed=2)
    got = attention_map(q, torch.cat([*[k] * repeats, more], dim=1), 4, 7, 7 * repeats)
    if appended:
        want = written_out(q, torch.cat([*[k] * repeats, more], dim=1), 4)[..., : 7 * repeats]
        want = want.unflatten(2, (repeats, 7)).sum(dim=2)
    else:
        want = written_out(q, k, 4)  # repeating a prompt changes nothing
    assert torch.allclose(got.double(), want, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (3, 5)])
@pytest.mark.parametrize(("chunk", "chunks", "images"), [(0, 1, 1), (0, 2, 2), (1, 2, 2), (2, 3, 1)])
def test_rows_of_the_positive_conditioning_as_a_picture(grid, chunk, chunks, images):
    cells = grid[0] * grid[1]
    q, k = random(chunks * images, cells, 32), random(chunks * images, 7, 32, seed=1)
    capture = Capture([BLOCK], 7)
    cross_attention(CapturePass(capture, chunk, chunks), q, k, grid)
    got = capture.take()
    assert got.shape == (images, 7, *grid) and got.is_contiguous()
    for image in range(images):
        row = chunk * images + image
        want = written_out(q[row : row + 1], k[row : row + 1], 4)[0]
        for token in (0, 3, 6):
            for y, x in ((0, 0), (1, 2), (grid[0] - 1, grid[1] - 1)):
                assert got[image, token, y, x].item() == pytest.approx(want[y * grid[1] + x, token].item(), abs=1e-6)


def test_layers_are_averaged_and_only_the_chosen_ones():
    layers = {BLOCK: 1, ("input", 8, 0): 3, ("output", 3, 1): 5, ("output", 3, 0): 7}
    capture = Capture([("input", 7, 0, 2), ("output", 3, 1, 2)], 7)
    run = CapturePass(capture, 0, 1)
    maps = {}
    for block, seed in layers.items():
        q, k = random(2, 24, 32, seed=seed), random(2, 7, 32, seed=seed + 1)
        cross_attention(run, q, k, (4, 6), block)
        maps[block] = written_out(q, k, 4)
    want = (maps[BLOCK] + maps[("output", 3, 1)]) / 2
    got = capture.take()
    assert torch.allclose(got.double().flatten(2), want.mT, atol=1e-6)
    assert torch.allclose(got.sum(dim=1), torch.ones(2, 4, 6), atol=1e-5)


def test_the_attention_runs_untouched_and_self_attention_is_not_seen():
    capture = Capture([BLOCK], 7)
    run = CapturePass(capture, 0, 1)
    q, k = random(2, 24, 32), random(2, 7, 32, seed=1)
    before = q.clone(), k.clone()
    assert torch.equal(cross_attention(run, q, k, (4, 6)), fused(q, k, k, 4))
    assert torch.equal(q, before[0]) and torch.equal(k, before[1])
    want = capture.take()
    run.attend(fused, q, q, q, 4)  # no mark before it
    with pytest.raises(RuntimeError):
        capture.take()
    extra = options((4, 6))
    assert run.mark(q, k, k, extra)[1] is k
    run.attend(fused, q, k, k, heads=4, mask=None)
    run.attend(fused, q, q, q, 4)
    assert torch.equal(capture.take(), want)


class Operations(TorchDispatchMode):
    """Records the operators that run, and the size of the largest result."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.__name__.split(".")[0])
        self.largest = max(self.largest, out.numel() if isinstance(out, torch.Tensor) else 0)
        return out


def test_nothing_waits_for_the_device_and_nothing_is_as_large_as_self_attention():
    capture = Capture([BLOCK], 7)
    run = CapturePass(capture, 1, 2)
    q, k = random(6, 1024, 32), random(6, 14, 32, seed=1)
    extra = options((32, 32))
    with Operations() as operations:
        run.mark(q, k, k, extra)
        run.attend(lambda q, k, v, heads: q, q, k, k, 4)
        run.forget(q, extra)
    assert "_softmax" in operations.names
    assert not operations.names & {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "_to_copy"}
    assert operations.largest == 3 * 1024 * 32  # the queries of the positive rows; the map has 4 heads x 7 tokens


def test_a_replacement_is_given_what_it_expects():
    capture, calls = Capture([BLOCK], 7), []

    def replacement(q, k, v, extra):
        calls.append((q, k, v, extra))
        return run.attend(fused, q, k, v, 4) + run.attend(fused, q, k, v, 4)  # two attentions, one map

    run = CapturePass(capture, 0, 1)
    q, k = random(1, 24, 32), random(1, 7, 32, seed=1)
    extra = options((4, 6))
    run.mark(q, k, k, extra)
    out = partial(run.replaced, replacement)(q, k, k, extra)
    assert torch.equal(out, 2 * fused(q, k, k, 4))
    assert calls[0][0] is q and calls[0][3] is extra and len(calls) == 1
    assert torch.allclose(capture.take().double().flatten(2), written_out(q, k, 4).mT, atol=1e-6)


def test_blocks_on_another_grid_are_brought_to_the_first():
    """Patches that compute some blocks on a smaller picture (deep shrink)."""
    capture = Capture([BLOCK, ("output", 3, 0)], 7)
    run = CapturePass(capture, 0, 1)
    q, k = random(1, 96, 32), random(1, 7, 32, seed=1)
    cross_attention(run, q, k, (8, 12))
    small = random(1, 24, 32, seed=3)
    cross_attention(run, small, k, (4, 6), ("output", 3, 0))
    got = capture.take()
    assert got.shape == (1, 7, 8, 12)
    assert torch.allclose(got.sum(dim=1), torch.ones(1, 8, 12), atol=1e-5)
    # far from the rim, twice the size is the mean of 9/16, 3/16, 3/16 and 1/16 of the nearest cells
    near = written_out(small, k, 4)[0].unflatten(0, (4, 6))
    cell = (9 * near[1, 2] + 3 * near[1, 1] + 3 * near[0, 2] + near[0, 1]) / 16
    want = (written_out(q, k, 4)[0].unflatten(0, (8, 12))[2, 4] + cell) / 2
    assert torch.allclose(got[0, :, 2, 4].double(), want, atol=1e-6)


def test_each_evaluation_starts_anew_and_maps_are_taken_once():
    capture = Capture([BLOCK], 7)
    k = random(1, 7, 32, seed=1)
    for seed in (2, 3):
        capture.begin()
        q = random(1, 24, 32, seed=seed)
        cross_attention(CapturePass(capture, 0, 1), q, k, (4, 6))
    assert torch.allclose(capture.take().double().flatten(2), written_out(q, k, 4).mT, atol=1e-6)
    assert capture.skipped
    with pytest.raises(RuntimeError, match="there are no maps: the conditioning has not gone through the model; take"):
        capture.take()
    cross_attention(CapturePass(capture, 0, 1), q, k, (4, 6))
    capture.cleanup()
    with pytest.raises(RuntimeError, match="there are no maps"):
        capture.take()


def test_maps_stay_on_the_grid_of_the_first_ones_until_the_run_ends():
    """As a patch that shrinks the picture in some blocks has them change while it acts (Deep Shrink)."""
    capture, k = Capture([BLOCK], 7), random(1, 7, 32, seed=1)
    taken = []
    for grid in ((4, 6), (8, 12)):
        capture.begin()
        cross_attention(CapturePass(capture, 0, 1), random(1, grid[0] * grid[1], 32), k, grid)
        taken.append(capture.take())
    assert taken[0].shape == taken[1].shape == (1, 7, 4, 6)
    assert torch.allclose(taken[1].sum(dim=1), torch.ones(1, 4, 6), atol=1e-5)
    capture.cleanup()
    cross_attention(CapturePass(capture, 0, 1), random(1, 96, 32), k, (8, 12))
    assert capture.take().shape == (1, 7, 8, 12)


def test_what_cannot_be_captured_says_why():
    capture = Capture([BLOCK], 7)
    run = CapturePass(capture, 0, 1)
    q, k = random(1, 24, 32), random(1, 7, 32, seed=1)
    for act, text in [
        (lambda: cross_attention(run, q[:, :20], k, (4, 6)), "left 1x20 queries of 1 on a grid of 6x4"),
        (lambda: cross_attention(run, q.repeat(2, 1, 1), k, (4, 6), hidden=q), "left 2x24 queries of 1 on a grid"),
        (lambda: cross_attention(run, q, k[:, :5], (4, 6)), "has 5 tokens and the attention 5 keys, but .* has 7"),
        (lambda: cross_attention(run, q, k[:, :5], (4, 6), given=k), "has 7 tokens and the attention 5 keys"),
        (lambda: (run.mark(q, k, k, options((4, 6))), run.forget(q, {})), "without the host's attention function"),
        (lambda: capture.begin("there is only an area"), "there is only an area"),
    ]:
        capture.begin()
        act()
        with pytest.raises(RuntimeError, match=text):
            capture.take()
    for blocks, tokens in (([], 7), ([BLOCK], 0)):
        with pytest.raises(ValueError, match="give some"):
            Capture(blocks, tokens)
