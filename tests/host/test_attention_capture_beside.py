"""Cross-attention capture beside other patches, hooks and guiders of the real host."""

from typing import Any

import comfy.hooks
import comfy.ldm.modules.attention as host_attention
import pytest
import torch

from latent_layers.attention.host import apply_key_mask

from . import layouts
from .capture_runs import SIZE, TOKENS, Watch, captured, difference, guider, maps_of, sample


@pytest.fixture(scope="module")
def sd15():
    return layouts.narrow("sd15")


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def replacement(q, k, v, extra):
    """As packs do it: the host's attention, without its options, on something of their own."""
    return host_attention.optimized_attention(q, k, v * 0.5, heads=extra["n_heads"])


def doubled(q, k, v, extra):
    """The same with options, twice: a prompt and a picture, say."""
    run = [
        host_attention.optimized_attention(q, part, v * 0.5, heads=extra["n_heads"], transformer_options=extra)
        for part in (k, -k)
    ]
    return run[0] + run[1]


def with_patch(model):
    model.set_model_attn2_patch(lambda q, k, v, extra: (q * 0.8, k.flip(1), v.flip(1)))


def with_longer_context(model):
    more = torch.randn(1, 3, layouts.CONTEXT, generator=torch.Generator().manual_seed(4))
    model.set_model_attn2_patch(
        lambda q, k, v, extra: (q, *(torch.cat([t, more.expand(len(t), -1, -1)], dim=1) for t in (k, v)))
    )


def with_replacements(model):
    for side, number in (("input", 4), ("output", 8)):
        model.set_model_attn2_replace(replacement, side, number)
    model.set_model_attn2_replace(doubled, "input", 5, 0)
    model.set_model_attn2_replace(doubled, "input", 7, 0)  # not a captured block


def with_override(model):
    def override(function, q, k, v, heads, **kwargs):
        return function(q * 0.9, k, v, heads, **kwargs) * 0.9

    model.model_options["transformer_options"]["optimized_attention_override"] = override


def with_pag(model):
    from comfy_extras import nodes_pag

    return nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0)[0]


def with_sag(model):
    from comfy_extras import nodes_sag

    return nodes_sag.SelfAttentionGuidance.execute(model, 0.7, 2.0)[0]


def with_key_mask(guidance):
    box = layouts.box(SIZE[0] * 8, SIZE[1] * 8, 0.25, 0.75, 0.25, 0.75)
    return lambda model: apply_key_mask(model, box, mode="soft", guidance=guidance, end=1.0)


NEIGHBOURS = {
    "attn2_patch": (with_patch, None),
    "attn2_patch that appends": (with_longer_context, TOKENS),
    "attn2_replace": (with_replacements, None),
    "override": (with_override, None),
    "PAG": (with_pag, None),
    "SAG": (with_sag, None),
    "key mask": (with_key_mask(1.0), None),
    "key mask, guidance": (with_key_mask(7.5), None),
}


@pytest.mark.parametrize("other", NEIGHBOURS)
def test_beside_other_patches(sd15, other):
    """The map is of what the attention is given, by the sampler's own evaluation, and nothing of theirs changes."""
    apply, context = NEIGHBOURS[other]
    model = sd15.clone()
    model = apply(model) or model
    alone = sample(guider(model, cfg=4.0), batch=2)
    assert difference(alone, sample(guider(sd15, cfg=4.0), batch=2)) > 1e-3
    patched, capture = captured(model)
    with Watch(sd15) as watch:
        taken = maps_of(guider(patched, cfg=4.0), capture, batch=2)
    step = len(watch.calls) // 2
    for i, got in enumerate(taken):
        assert difference(got, watch.maps(i * step, context=context)) < 1e-5
    assert difference(sample(guider(patched, cfg=4.0), batch=2), alone) == 0.0
    if "key mask" in other:
        reverse = apply(captured(sd15)[0])
        assert difference(sample(guider(reverse, cfg=4.0), batch=2), alone) == 0.0


def test_a_replacement_that_comes_with_a_hook_of_the_conditioning(sd15):
    hooks = comfy.hooks.HookGroup()
    options: Any = {"patches_replace": {"attn2": {("input", 4): replacement}}}
    hooks.add(comfy.hooks.TransformerOptionsHook(options))
    positive = layouts.conditioning("sd15", hooks=hooks)
    patched, capture = captured(sd15)
    plain = sample(guider(sd15, cfg=4.0, positive=positive))
    assert difference(plain, sample(guider(sd15, cfg=4.0))) > 1e-3
    with Watch(sd15) as watch:
        (got,) = maps_of(guider(patched, cfg=4.0, positive=positive), capture, sigmas=(5.0, 0.0))
    call = next(i for i, (order, _) in enumerate(watch.calls) if 0 in order)
    assert difference(got, watch.maps(call)) < 1e-5
    assert difference(sample(guider(patched, cfg=4.0, positive=positive)), plain) == 0.0


def test_the_positive_conditioning_of_another_guider(sd15):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    patched, capture = captured(sd15)
    made: Any = Guider_DualCFG(patched)
    made.set_conds(*(layouts.conditioning("sd15", seed) for seed in (1, 5, 9)))
    made.set_cfg(3.0, 4.0)
    with Watch(sd15) as watch:
        (got,) = maps_of(made, capture, batch=2, sigmas=(5.0, 0.0))
    assert sorted(watch.calls[0][0]) == [0, 1, 2]
    assert difference(got, watch.maps(0, positive=2)) < 1e-5


def test_of_several_positive_conditionings_the_first_that_acts_on_the_whole_picture(sd15):
    part = layouts.conditioning("sd15", 3, area=(9, 13, 0, 0), strength=1.0)
    early = layouts.conditioning("sd15", 4, start_percent=0.0, end_percent=0.5)
    whole = layouts.conditioning("sd15")

    def first(positive):
        patched, capture = captured(sd15)
        return maps_of(guider(patched, cfg=4.0, positive=positive), capture, sigmas=(5.0, 1.0, 0.0))

    alone, other = first(whole), first(layouts.conditioning("sd15", 4))
    several = first(part + early + whole)
    assert difference(several[0], other[0]) < 1e-4 < 1e-2 < difference(alone[0], other[0])
    # the second evaluation is of another x, but of the prompt that is left at that noise level
    patched, capture = captured(sd15)
    (late,) = maps_of(guider(patched, positive=part + early + whole), capture, sigmas=(1.0, 0.0))
    patched, capture = captured(sd15)
    (want,) = maps_of(guider(patched, positive=whole), capture, sigmas=(1.0, 0.0))
    assert difference(late, want) < 1e-4
    with pytest.raises(RuntimeError, match="no positive conditioning covers the whole picture"):
        first(part)
