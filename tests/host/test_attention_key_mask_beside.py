"""Key-Masked Self-Attention beside attention backends and the patches of others."""

import comfy.ldm.modules.attention as host_attention
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_easycache

from latent_layers.attention.host import apply_key_mask
from latent_layers.attention.key_mask import KeyMaskPatch

from . import layouts
from .key_mask_runs import MODES, difference, mask, masked_keys, sample


@pytest.fixture(scope="module")
def sd15():
    return layouts.narrow("sd15")


@pytest.mark.parametrize("backend", ["attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch"])
@pytest.mark.parametrize("mode", MODES)
def test_every_attention_backend_agrees(sd15, mode, backend, monkeypatch):
    masks = torch.cat([mask(), layouts.box(128, 192, 0.0, 0.4, 0.5, 1.0)])
    patched = apply_key_mask(sd15, masks, mode=mode, guidance=1.0)
    step = {"batch": 2, "sigmas": (5.0, 0.0), "cfg": 3.0}
    want = sample(patched, **step)
    function = getattr(host_attention, backend)
    monkeypatch.setattr(host_attention, "optimized_attention", function)
    monkeypatch.setattr(host_attention, "optimized_attention_masked", function)
    assert difference(sample(patched, **step), want) < 1e-3 * want.abs().max()


@pytest.mark.parametrize("backend", ["attention_flash", "attention_xformers", "attention_sage"])
def test_backends_that_cannot_take_a_row_of_biases_are_left_out(sd15, backend, monkeypatch):
    """They are not installed everywhere: a stand-in under their name, that refuses masks."""
    plain_calls = []

    def stand_in(q, k, v, heads, mask=None, **kwargs):
        assert mask is None
        plain_calls.append(k.shape[1])
        return host_attention.attention_pytorch(q, k, v, heads, **kwargs)

    stand_in.__name__ = backend
    stand_in = host_attention.wrap_attn(stand_in)
    patched = apply_key_mask(sd15, mask(), mode="soft", guidance=1.0)
    want = sample(patched)
    monkeypatch.setattr(host_attention, "optimized_attention", stand_in)
    assert difference(sample(patched), want) == 0.0
    assert set(plain_calls) == {7}  # the prompt's tokens: cross-attention stays with the backend


def test_patches_of_others_stay(sd15):
    calls = {"attn1": 0, "override": 0, "output": 0}

    def count(name, result):
        calls[name] += 1
        return result

    model = sd15.clone()
    model.set_model_attn1_patch(lambda q, k, v, extra: count("attn1", (q, k * 0.9, v)))
    model.set_model_attn1_output_patch(lambda n, extra: count("output", n))
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *args, **kwargs: count(
        "override", f(*args, **kwargs)
    )
    alone = sample(model)
    expected = {"attn1": 48, "override": 96, "output": 48}  # 3 evaluations; the override sees cross-attention too
    assert calls == expected
    calls.update(dict.fromkeys(calls, 0))
    both = sample(apply_key_mask(model, mask(), mode="soft", guidance=1.0))
    assert calls == expected
    assert difference(both, alone) > 1e-2
    assert difference(both, sample(apply_key_mask(sd15, mask(), mode="soft", guidance=1.0))) > 1e-2


def neighbours():
    from comfy_extras import nodes_freelunch, nodes_hypertile, nodes_pag, nodes_tomesd

    return {
        "PAG": lambda m: nodes_pag.PerturbedAttentionGuidance.execute(m, 3.0)[0],
        "HyperTile": lambda m: nodes_hypertile.HyperTile.execute(m, 64, 2, 0, False)[0],
        "ToMe": lambda m: nodes_tomesd.TomePatchModel.execute(m, 0.5)[0],
        "FreeU": lambda m: nodes_freelunch.FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2)[0],
    }


@pytest.mark.parametrize("other", ["PAG", "HyperTile", "ToMe", "FreeU"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_beside_the_hosts_own_patches(sd15, other, mode, guidance):
    apply = neighbours()[other]

    def run(model):
        torch.manual_seed(0)  # ToMe and HyperTile draw their tiles from the global generator
        return sample(model, size=(16, 32), cfg=3.0)

    mask_ = mask(128, 256)
    alone = run(apply(sd15))
    if other != "FreeU":  # acts on the channel counts of the full-size model only
        assert difference(alone, run(sd15)) > 1e-3
    first = run(apply(apply_key_mask(sd15, mask_, mode=mode, guidance=guidance)))
    second = run(apply_key_mask(apply(sd15), mask_, mode=mode, guidance=guidance))
    assert torch.isfinite(first).all()
    assert difference(first, second) < 1e-4 * first.abs().max()
    assert difference(first, alone) > 1e-2


def test_hypertile_masks_the_keys_it_deals_out(sd15):
    """In tiles the keys stay where they are: multiply reaches the same hidden states as without."""
    hidden = layouts.box(128, 256, 0.0, 0.5, 0.0, 0.5)  # whole cells, down to the 2x4 grid of the middle block
    tiled = neighbours()["HyperTile"](apply_key_mask(sd15, hidden, guidance=1.0))
    hit, _ = masked_keys(tiled, size=(16, 32))
    assert len(hit) == 16


def test_patch_is_one_object_per_pass(sd15):
    """What the host finds in a masked pass: one patch of ours, after those of others."""
    found = []
    model = sd15.clone()
    model.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    patched = apply_key_mask(apply_key_mask(model, mask(), guidance=1.0), mask().flip(1), guidance=1.0)
    patched.add_wrapper(
        WrappersMP.DIFFUSION_MODEL,
        lambda executor, x, t, c, y, control, options, **kw: (
            found.append(options["patches"]["attn1_patch"]) or executor(x, t, c, y, control, options, **kw)
        ),
    )
    sample(patched)
    assert all([isinstance(p, KeyMaskPatch) for p in patches] == [False, True] for patches in found)


def test_a_cache_of_whole_evaluations_cannot_be_guided_against(sd15):
    """It would give back the plain evaluation in place of the masked one."""
    cached = nodes_easycache.EasyCacheNode.execute(sd15, 0.2, 0.15, 0.95, False)[0]
    for model in (
        apply_key_mask(cached, mask(), guidance=7.5),
        nodes_easycache.EasyCacheNode.execute(apply_key_mask(sd15, mask(), guidance=7.5), 0.2, 0.15, 0.95, False)[0],
    ):
        with pytest.raises(ValueError, match="Key-Masked Self-Attention: EasyCache .* or set guidance to 1"):
            sample(model)
    assert torch.isfinite(sample(apply_key_mask(cached, mask(), guidance=1.0))).all()
    lazy = nodes_easycache.LazyCacheNode.execute(sd15, 0.2, 0.15, 0.95, False)[0]
    assert torch.isfinite(sample(apply_key_mask(lazy, mask(), guidance=7.5))).all()
