"""Key-masked self-attention against the equation written out, in float64, with the whole matrix."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from latent_layers.attention.key_mask import KeyMask, KeyMaskPatch, Layout, kept_keys, make_plan

from .test_masks_grid import exact_average

HEADS, CHANNELS = 2, 16


def weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(CHANNELS, CHANNELS, generator=generator, dtype=torch.float64) / 2 for _ in range(3)]


def fused(q, k, v, heads, mask=None, **kwargs):
    """An attention function with the host's signature, by torch's fused attention."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def block(patch, hidden, grid, chunks=1, key=("input", 1), depth=0):
    """A self-attention as the host runs it: the patch, the projections, the attention."""
    extra = {
        "activations_shape": [hidden.shape[0], CHANNELS, *grid],
        "cond_or_uncond": list(range(chunks)),
        "block": key,
        "block_index": depth,
    }
    q, k, v = patch(hidden, hidden, hidden, extra)
    q, k, v = (t @ w.to(t) for t, w in zip((q, k, v), weights(), strict=True))
    return patch.forget(patch.attend(fused, q, k, v, HEADS), extra)


def written_out(hidden, masked, mode, mask_on="k"):
    """softmax(Q ((1-M) K)^T / sqrt(d)) V and its variants; hidden (B, N, C), masked (B, N), all float64."""
    q, k, v = (hidden.double() @ w for w in weights())
    keep = (1 - masked.double())[..., None]
    if mode == "multiply":
        q, k, v = (t * keep if name == mask_on else t for name, t in zip("qkv", (q, k, v), strict=True))
    q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if mode == "exclude":
        logits = logits.masked_fill((masked >= 0.5)[:, None, None, :], float("-inf"))
    attention = logits.softmax(-1)
    if mode == "soft":
        attention = logits.exp() * keep[:, None, :, 0].unsqueeze(2)
        attention = attention / attention.sum(-1, keepdim=True)
    return (attention @ v).transpose(1, 2).flatten(2)


def blobs(batch, height, width):
    """Different masks, one per image, with soft rims."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    radii = [0.35 + 0.2 * i for i in range(batch)]
    return torch.stack([((radius - (y**2 + (x - 0.2) ** 2).sqrt()) * 4 + 0.5).clamp(0, 1) for radius in radii])


@pytest.mark.parametrize("mode", ["multiply", "exclude", "soft"])
@pytest.mark.parametrize(
    ("grid", "size", "batch", "chunks"),
    [
        ((33, 49), (520, 776), 1, 1),
        ((33, 49), (520, 776), 2, 1),
        ((9, 13), (130, 194), 3, 2),
        ((8, 6), (64, 48), 1, 2),
        ((8, 6), (64, 48), 3, 1),
    ],
)
def test_modes_are_the_equation(mode, grid, size, batch, chunks):
    masks = blobs(batch, *size)
    masked = exact_average(masks, *grid).flatten(1).repeat(chunks, 1)
    hidden = torch.randn(batch * chunks, grid[0] * grid[1], CHANNELS, generator=torch.Generator().manual_seed(4))
    got = block(KeyMaskPatch([KeyMask(masks, mode)]), hidden, grid, chunks)
    want = written_out(hidden, masked, mode)
    assert (got - want).abs().max() < 5e-5
    assert (got - written_out(hidden, torch.zeros_like(masked), mode)).abs().max() > 1e-2


@pytest.mark.parametrize("mode", ["multiply", "exclude", "soft"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision(mode, dtype, tolerance):
    masks = blobs(2, 130, 194)
    hidden = torch.randn(2, 117, CHANNELS, generator=torch.Generator().manual_seed(5)).to(dtype)
    got = block(KeyMaskPatch([KeyMask(masks, mode)]), hidden, (9, 13))
    want = written_out(hidden, exact_average(masks, 9, 13).flatten(1), mode)
    assert got.dtype == dtype and torch.isfinite(got).all()
    assert (got.double() - want).abs().max() < tolerance * want.abs().max()


@pytest.mark.parametrize("mask_on", ["q", "v"])
def test_ablation_masks_queries_or_values(mask_on):
    masks = blobs(1, 64, 48)
    hidden = torch.randn(1, 48, CHANNELS, generator=torch.Generator().manual_seed(6))
    got = block(KeyMaskPatch([KeyMask(masks, "multiply", None, mask_on)]), hidden, (8, 6))
    want = written_out(hidden, exact_average(masks, 8, 6).flatten(1), "multiply", mask_on)
    assert (got - want).abs().max() < 1e-5


def test_exclude_drops_keys_and_takes_the_longest_of_a_batch():
    masks = blobs(2, 64, 48)
    kept = (exact_average(masks, 8, 6).flatten(1) < 0.5).sum(1)
    assert kept[0] > kept[1]
    hidden = torch.zeros(2, 48, CHANNELS)
    extra = {"activations_shape": [2, CHANNELS, 8, 6], "cond_or_uncond": [0], "block": ("input", 1)}
    q, k, v = KeyMaskPatch([KeyMask(masks, "exclude")])(hidden, hidden, hidden, extra)
    assert q.shape[1] == 48 and k.shape[1] == v.shape[1] == kept[0]
    alone = KeyMaskPatch([KeyMask(masks[1:], "exclude")])
    _, k, _ = alone(hidden, hidden, hidden, extra)
    assert k.shape[1] == kept[1] and not alone.has_pending


def test_a_coarse_grid_that_would_lose_all_keys_keeps_its_least_masked():
    masked = torch.tensor([[0.9, 0.6, 1.0, 0.6], [0.1, 0.6, 1.0, 0.6], [1.0, 1.0, 1.0, 1.0]])
    assert kept_keys(masked).tolist() == [
        [False, True, False, True],
        [True, False, False, False],
        [True, True, True, True],
    ]


@pytest.mark.parametrize(
    "modes", [("multiply", "exclude"), ("exclude", "soft"), ("soft", "soft"), ("exclude", "exclude")]
)
def test_several_masks_act_as_if_one_after_the_other(modes):
    first, second = blobs(2, 64, 48), blobs(1, 64, 48).flip(2)
    hidden = torch.randn(2, 48, CHANNELS, generator=torch.Generator().manual_seed(7))
    got = block(KeyMaskPatch([KeyMask(first, modes[0]), KeyMask(second, modes[1])]), hidden, (8, 6))
    q, k, v = (hidden.double() @ w for w in weights())
    bias = torch.zeros(2, 48, dtype=torch.float64)
    for mask, mode in ((first, modes[0]), (second, modes[1])):
        masked = exact_average(mask, 8, 6).flatten(1).expand(2, -1)
        if mode == "multiply":
            k = k * (1 - masked)[..., None]
        elif mode == "exclude":
            bias = bias.masked_fill(masked >= 0.5, float("-inf"))
        else:
            bias = bias + torch.log1p(-masked)
    want = fused(q, k, v, HEADS, mask=bias[:, None, None, :])
    assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["multiply", "exclude", "soft"])
def test_nothing_masked_changes_nothing_at_all(mode):
    hidden = torch.randn(1, 48, CHANNELS, generator=torch.Generator().manual_seed(8))
    patch = KeyMaskPatch([KeyMask(torch.zeros(1, 64, 48), mode)])
    extra = {"activations_shape": [1, CHANNELS, 8, 6], "cond_or_uncond": [0], "block": ("input", 1)}
    q, k, v = patch(hidden, hidden, hidden, extra)
    assert q is hidden and k is hidden and v is hidden and not patch.has_pending


def test_only_the_chosen_blocks():
    hidden = torch.randn(1, 48, CHANNELS, generator=torch.Generator().manual_seed(9))
    patch = KeyMaskPatch([KeyMask(blobs(1, 64, 48), "multiply", frozenset({("input", 7, 3)}))])
    plain = block(KeyMaskPatch([]), hidden, (8, 6))
    assert torch.equal(block(patch, hidden, (8, 6)), plain)
    assert torch.equal(block(patch, hidden, (8, 6), key=("input", 7), depth=2), plain)
    assert not torch.equal(block(patch, hidden, (8, 6), key=("input", 7), depth=3), plain)


def test_keys_that_another_pack_appended_stay():
    masks = blobs(1, 64, 48)
    layout = Layout(8, 6, 50, 1, 1, False, None)
    plan = make_plan([KeyMask(masks, "exclude")], layout)
    assert plan.index is not None and plan.index[-2:].tolist() == [48, 49]
    plan = make_plan([KeyMask(masks, "multiply")], layout)
    assert plan.keys is not None and plan.keys[0, -2:, 0].tolist() == [1.0, 1.0]


def test_queries_in_tiles_keep_all_keys():
    layout = Layout(8, 6, 48, 1, 1, True, None)
    plan = make_plan([KeyMask(blobs(1, 64, 48), "exclude")], layout)
    assert plan.index is None and plan.bias is not None
    patch = KeyMaskPatch([KeyMask(blobs(1, 64, 48), "exclude")])
    hidden = torch.randn(1, 48, CHANNELS)
    extra = {"activations_shape": [1, CHANNELS, 8, 6], "cond_or_uncond": [0], "block": ("input", 1)}
    tiles = hidden.reshape(4, 12, CHANNELS)
    patch(tiles, hidden, hidden, extra)
    seen: dict[str, Any] = {}

    def attention(*args, **kwargs):
        seen.update(kwargs)
        return args[0]

    patch.attend(attention, tiles, hidden, hidden, HEADS)
    assert torch.equal(seen["mask"].flatten(), plan.bias.flatten()) and seen["mask"].shape == (4, 1, 1, 12)


def test_conditionings_that_see_a_crop():
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1.0
    left, right = (0.0, 1.0, 0.0, 0.5), (0.0, 1.0, 0.5, 1.0)
    plan = make_plan([KeyMask(mask)], Layout(8, 4, 32, 2, 3, False, (right, left)))
    assert plan.keys is not None and plan.keys.shape == (6, 32, 1)
    assert (plan.keys[:3] == 0).all() and (plan.keys[3:] == 1).all()


def test_a_bias_is_added_to_a_mask_that_is_there_and_forgotten_with_its_block():
    patch = KeyMaskPatch([KeyMask(blobs(1, 64, 48), "soft")])
    hidden = torch.randn(1, 48, CHANNELS)
    extra = {"activations_shape": [1, CHANNELS, 8, 6], "cond_or_uncond": [0], "block": ("input", 1)}
    for given in ((torch.full((48, 48), 2.0),), (torch.ones(48, 48, dtype=torch.bool),)):
        patch(hidden, hidden, hidden, extra)
        seen = patch.attend(lambda *args, **kwargs: args[4], hidden, hidden, hidden, HEADS, *given)
        assert seen.shape[-1] == 48 and not patch.has_pending
    patch(hidden, hidden, hidden, extra)
    assert patch.has_pending
    patch.forget(hidden, extra)
    given = cast(Any, lambda *args, **kwargs: kwargs)
    assert patch.attend(given, hidden, hidden, hidden, HEADS) == {}


def test_errors():
    with pytest.raises(ValueError, match="mode is 'blur'"):
        KeyMask(torch.zeros(1, 8, 8), "blur")
    with pytest.raises(ValueError, match="mask_on is 'v'"):
        KeyMask(torch.zeros(1, 8, 8), "soft", None, "v")
    hidden = torch.zeros(3, 48, CHANNELS)
    extra = {"activations_shape": [3, CHANNELS, 8, 6], "cond_or_uncond": [0], "block": ("input", 1)}
    with pytest.raises(ValueError, match="mask has a batch of 2, but 3 image"):
        KeyMaskPatch([KeyMask(blobs(2, 64, 48))])(hidden, hidden, hidden, extra)
    with pytest.raises(ValueError, match="another patch has left 3x40 keys"):
        KeyMaskPatch([KeyMask(blobs(1, 64, 48))])(hidden, hidden[:, :40], hidden, extra)


def test_plans_are_made_once_and_freed():
    patch = KeyMaskPatch([KeyMask(blobs(1, 64, 48), "soft")])
    hidden = torch.randn(1, 48, CHANNELS)
    for _ in range(3):
        block(patch, hidden, (8, 6))
    assert len(patch._plans) == 1
    assert patch.to(torch.device("cpu")) is patch and patch.to(torch.float16) is patch and len(patch._plans) == 1
    patch.to(torch.device("meta"))
    assert not patch._plans
    block(patch, hidden, (8, 6))
    patch.cleanup()
    assert not patch._plans
