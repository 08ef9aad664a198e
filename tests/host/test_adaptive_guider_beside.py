"""The Adaptive Attention Guider beside other patches, hooks and ControlNets, over several runs, and its errors."""

from typing import Any

import comfy.hooks
import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from latent_layers.attention.adaptive_host import adaptive_guider
from latent_layers.attention.host import apply_keep_source, apply_key_mask
from latent_layers.inversion.proximal_host import Settings, apply_proximal_guidance
from latent_layers.nodes.adaptive import AdaptiveAttentionGuider

from . import layouts
from .adaptive_runs import (
    ALWAYS,
    NEVER,
    SIZE,
    SOME,
    along,
    beside,
    conditionings,
    difference,
    guider,
    negative,
    plain,
    relative,
    timings,
    trajectory,
)

BOX = layouts.box(SIZE[0] * 8, SIZE[1] * 8, 0.2, 0.8, 0.2, 0.8)
EDIT: dict[str, Any] = {"lambda_s": 1.0, "mask": torch.ones_like(BOX), "mask_mode": "replace"}


@pytest.fixture(scope="module")
def sd15():
    return layouts.narrow("sd15")


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


def replacement(q, k, v, extra):
    """As packs do it: attention of their own twice, with the host's options, of which one part is a picture."""
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


def with_rows_of_their_own(model):
    """As image prompts are: one picture for the prompt's rows, another for the negative's."""

    def patch(q, k, v, extra):
        marks = torch.cat([torch.full((len(v) // len(extra["cond_or_uncond"]), 1, 1), (0.3, -0.3)[i]) for i in
                           extra["cond_or_uncond"]])  # fmt: skip
        return q, k, v + marks

    model.set_model_attn2_patch(patch)


def with_replacements(model):
    model.set_model_attn2_replace(replacement, "input", 4)
    model.set_model_attn2_replace(replacement, "output", 8, 0)


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
    return lambda model: apply_key_mask(model, BOX, mode="soft", guidance=guidance, end=1.0)


NEIGHBOURS = {
    "attn2_patch": with_patch,
    "attn2_patch that appends": with_longer_context,
    "image prompt": with_rows_of_their_own,
    "attn2_replace": with_replacements,
    "override": with_override,
    "PAG": with_pag,
    "SAG": with_sag,
    "key mask": with_key_mask(1.0),
    "key mask, guidance": with_key_mask(7.5),
}


@pytest.mark.parametrize("other", NEIGHBOURS)
def test_beside_other_patches(sd15, other):
    """They act on both branches; where the weight is 0 or 1 the results are those of the host with them alone."""
    model = sd15.clone()
    model = NEIGHBOURS[other](model) or model
    first, edit = conditionings()
    source = along(plain(model, first, negative()), trajectory(sd15, batch=2))[0]
    want = along(plain(model, edit, negative()), source)[1]
    assert difference(want, along(plain(sd15, edit, negative()), source)[1]) > 1e-2
    full = along(guider(model, timings(NEVER), trajectory=source, **EDIT), source)[1]
    assert difference(full, want) == 0.0
    if other not in ("PAG", "key mask, guidance"):  # whose third evaluation of the source there is none of
        none = along(guider(model, timings(ALWAYS), trajectory=source, lambda_s=0.0), source)[0]
        assert relative(none.clean, source.clean) < 1e-4
    some = along(guider(model, timings(SOME), trajectory=source), source)[1]
    assert min(difference(some, full), relative(some, source.clean)) > 1e-3


def test_with_keep_source_the_rest_is_the_source(sd15):
    source = trajectory(sd15)
    model = apply_keep_source(sd15, source, BOX)
    result = along(guider(model, trajectory=source), source)[0]
    outside = BOX[:, ::8, ::8] == 0
    corner = (..., slice(0, 1), slice(0, 1))
    assert bool(outside[corner].all()) and difference(result.clean[corner], source.clean[corner]) == 0.0
    assert difference(result.clean, source.clean) > 0.1


def test_under_proximal_guidance_what_is_not_followed_is_the_source(sd15):
    source = trajectory(sd15)
    edit = along(guider(sd15, guide="", trajectory=source), source)[0].clean
    nothing = apply_proximal_guidance(sd15, source, Settings("none", strength=0))
    assert difference(along(guider(nothing, guide="", trajectory=source), source)[0].clean, edit) == 0.0
    dropped = apply_proximal_guidance(sd15, source, Settings(quantile=1.0, strength=1.0, start=0.0))
    assert difference(along(guider(dropped, guide="", trajectory=source), source)[0].clean, source.clean) == 0.0
    # pulled back a little, the edit comes nearer to the source, and stays another picture
    some = along(guider(apply_proximal_guidance(sd15, source), guide="", trajectory=source), source)[0].clean
    assert difference(some, source.clean) > 0.1
    assert float((some - source.clean).square().mean()) < float((edit - source.clean).square().mean())


def test_hooks_of_the_conditionings(sd15):
    """Each has its own; a replacement that comes with them is mixed too."""
    hooks = comfy.hooks.HookGroup()
    options: Any = {"patches_replace": {"attn2": {("input", 4): replacement}}}
    hooks.add(comfy.hooks.TransformerOptionsHook(options))
    first, edit = layouts.conditioning("sd15", 1, hooks=hooks), layouts.conditioning("sd15", 2)
    source = along(plain(sd15, first, negative()), trajectory(sd15))[0]
    model = sd15.clone()
    none = along(guider(model, timings(ALWAYS), conds=(first, edit), trajectory=source, lambda_s=0.0), source)[0]
    assert relative(none.clean, source.clean) < 1e-4
    other = along(guider(model, timings(ALWAYS), trajectory=source, lambda_s=0.0), source)[0]
    assert relative(other.clean, source.clean) > 1e-3


def test_prompts_that_change_on_the_way(sd15):
    """A prompt may be several, one after the other; both branches find the one of their time."""
    spans: Any = ({"start_percent": a, "end_percent": b} for a, b in ((0.0, 0.5), (0.5, 1.0)))
    early, late = spans
    two = [*layouts.conditioning("sd15", 1, **early), *layouts.conditioning("sd15", 5, **late)]
    source = along(plain(sd15, two, negative()), trajectory(sd15))[0]
    conds = (two, layouts.conditioning("sd15", 2))
    none = along(guider(sd15, timings(ALWAYS), conds=conds, trajectory=source, lambda_s=0.0), source)[0]
    assert relative(none.clean, source.clean) < 1e-4
    short = (layouts.conditioning("sd15", 1, **early), conds[1])
    with pytest.raises(ValueError, match="the source has left nothing .* has to act over the whole schedule"):
        along(guider(sd15, conds=short, trajectory=source), source)


def test_areas_in_the_negative(sd15):
    """They act; the pieces that the host adds to the prompts for them are left out, and the whole prompt is mixed."""
    area = layouts.conditioning("sd15", 7, area=(4, 5, 0, 0), strength=1.0)
    source, (first, edit), model, shapes = trajectory(sd15), conditionings(), sd15.clone(), []

    def look(executor, x, t, *args, **kwargs):
        shapes.append((tuple(x.shape[2:]), args[3]["cond_or_uncond"]))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper(WrappersMP.APPLY_MODEL, look)
    results = [
        along(adaptive_guider(model, first, edit, against, 3.0, timings(), trajectory=source), source)[1]
        for against in (negative() + area, negative())
    ]
    assert difference(*results) > 1e-2
    assert {tuple(order) for size, order in shapes if size == (4, 5)} == {(1,)}


@pytest.mark.parametrize("real", [True, False])
def test_nothing_is_left_and_a_second_run_is_the_same(sd15, real):
    options, patches = repr(sd15.model_options), repr(sd15.wrappers)
    source = trajectory(sd15, batch=2)
    made = guider(sd15, hold=0.5, trajectory=source if real else None)
    before = {name: id(value) for name, value in vars(made).items()}
    first = along(made, source)[1] if real else beside(made, 2)
    again = along(made, source)[1] if real else beside(made, 2)
    assert difference(first, again) == 0.0
    assert (repr(sd15.model_options), repr(sd15.wrappers)) == (options, patches)
    assert made._run is None and made._source is None
    assert {name: id(value) for name, value in vars(made).items() if name != "_pictures"} == {
        name: value for name, value in before.items() if name != "_pictures"
    }
    _, edit = conditionings()
    plainly = beside(plain(sd15, edit, negative()), 2)
    assert difference(plainly, beside(plain(layouts.narrow("sd15"), edit, negative()), 2)) == 0.0


@pytest.mark.parametrize("real", [True, False])
def test_an_interrupted_run_leaves_nothing(sd15, real):
    """Also when it happens in the middle of an evaluation, between the branches."""
    source, model, calls = trajectory(sd15), sd15.clone(), []
    stop = [3]

    def interrupt(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == stop[0]:
            raise comfy.model_management.InterruptProcessingException
        return executor(*args, **kwargs)

    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, interrupt)
    made = guider(model, trajectory=source if real else None)

    def run():
        return along(made, source)[1] if real else beside(made)

    for when in (3, 4):
        stop[0] = when
        calls.clear()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run()
        assert made._run is None and made._source is None
    stop[0] = 0
    clean = guider(sd15, trajectory=source if real else None)
    assert difference(run(), along(clean, source)[1] if real else beside(clean)) == 0.0


def test_the_node_gives_what_it_was_given(sd15):
    source, (first, edit) = trajectory(sd15), conditionings()
    output = AdaptiveAttentionGuider.execute(
        sd15, first, edit, timings(), 3.0, 0.9, 0.8, 0.25, "replace", "fixed", False, source, negative(), BOX
    )[0]
    assert (output.cfg, output.hold, output.pair, output.trajectory) == (3.0, 0.25, False, source)
    want = guider(
        sd15, trajectory=source, lambda_s=0.9, lambda_sv=0.8, hold=0.25, mask=BOX, mask_mode="replace", spatial="fixed"
    )
    assert difference(along(output, source)[1], along(want, source)[1]) == 0.0


def test_a_patch_that_makes_pictures_of_its_own_is_named(sd15):
    """As regional prompts are drawn: q once for each region, joined again at the output."""
    model = sd15.clone()
    model.set_model_attn2_patch(lambda q, k, v, extra: tuple(t.repeat(2, 1, 1) for t in (q, k, v)))
    model.set_model_attn2_output_patch(lambda out, extra: out.chunk(2)[0])
    source = trajectory(sd15)
    with pytest.raises(ValueError, match="another patch has made 2 pictures of 1 in the cross-attention"):
        along(guider(model, trajectory=source), source)


def test_hooks_on_clip_make_ranges_of_one_prompt(sd15):
    """The host marks them so: with clip_start_percent, and no start_percent."""
    one = layouts.conditioning("sd15", 1)[0]
    parts = [[one[0], {**one[1], "clip_start_percent": a, "clip_end_percent": b}] for a, b in ((0.0, 0.5), (0.5, 1.0))]
    source = trajectory(sd15)
    whole = along(guider(sd15, trajectory=source, conds=([one], layouts.conditioning("sd15", 2))), source)[1]
    ranged = along(guider(sd15, trajectory=source, conds=(parts, layouts.conditioning("sd15", 2))), source)[1]
    assert difference(whole, ranged) == 0.0


CONDITIONS = {
    "combined": (layouts.conditioning("sd15", 1) * 2, "source combines 2 prompts, but words are matched in one"),
    "area": (layouts.conditioning("sd15", 1, area=(4, 4, 0, 0)), r"source is limited to a part .* \(area\)"),
    "mask": (layouts.conditioning("sd15", 1, mask=BOX), r"source is limited to a part of the picture \(mask\)"),
    "empty": ([], "source is empty; connect CLIP Text Encode with the source prompt"),
    "tokens": (layouts.conditioning("sd15", 1, 9), "source has 9 tokens, but the source prompt of the timings has 7"),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditionings_that_do_not_fit(sd15, name):
    conditioning, message = CONDITIONS[name]
    edit = layouts.conditioning("sd15", 2)
    with pytest.raises(ValueError, match=f"^Adaptive Attention Guider: {message}"):
        guider(sd15, conds=(conditioning, edit))
    with pytest.raises(ValueError, match=f"^Adaptive Attention Guider: {message.replace('source', 'edit')}"):
        guider(sd15, conds=(edit, conditioning))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_s": 1.5}, "lambda_s is 1.5; use a number from 0 to 1"),
        ({"lambda_sv": -1.0}, "lambda_sv is -1; use a number from 0 to 4"),
        ({"hold": float("nan")}, "hold is nan; use a number from 0 to 1"),
        ({"mask_mode": "add"}, "mask_mode is 'add'; use multiply or replace"),
        ({"spatial": "off"}, "spatial is 'off'; use fixed or moving"),
        ({"mask": torch.zeros(1, 8, 8)}, "mask is empty"),
        ({"guide": ""}, "negative is empty, and without a trajectory guidance needs one; connect CLIP Text Encode"),
        ({"name": "sdxl", "conds": conditionings()}, r"timings are of another model, of its block \('output', 5, 1\)"),
    ],
)
def test_settings_that_do_not_fit(sd15, settings, message):
    with pytest.raises(ValueError, match=f"^Adaptive Attention Guider: {message}"):
        guider(sd15, **settings)


def test_what_is_found_when_sampling_begins(sd15):
    """Before the model is evaluated, each with the input's name."""
    source, model, calls = trajectory(sd15), sd15.clone(), []
    model.add_wrapper(WrappersMP.APPLY_MODEL, lambda executor, *args, **kwargs: calls.append(1))
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: pair is on, but the source comes from a traj"):
        guider(model, trajectory=source, pair=True)
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: mask has a batch of 3"):
        along(guider(model, trajectory=source, mask=BOX.expand(3, -1, -1)), source)
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: mask is .* another shape"):
        along(guider(model, trajectory=source, mask=torch.ones(1, 64, 64)), source)
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: trajectory: latents are"):
        along(guider(model, trajectory=trajectory(sd15, size=(8, 8))), source)
    with pytest.raises(ValueError, match=r"^Adaptive Attention Guider: trajectory: .* is not a point of the"):
        along(guider(model, trajectory=trajectory(sd15, steps=6)), source)
    short = source.part(low=float(source.sigmas[1]))
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: the trajectory ends at sigma"):
        along(guider(model, trajectory=short), source)
    with pytest.raises(ValueError, match="connect the trajectory to this node too"):
        along(guider(model), source)
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: the map of timings is 8x6, another shape"):
        beside(guider(model), size=(13, 9))
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: samplers with cfg_pp in their name"):
        beside(guider(model), sampler="dpmpp_2m_cfg_pp")
    with pytest.raises(ValueError, match="^Adaptive Attention Guider: the model has Proximal Guidance"):
        beside(guider(apply_proximal_guidance(model, source)))
    assert not calls


def test_one_map_for_several_pictures_is_said(sd15, caplog):
    beside(guider(sd15), batch=1)
    assert not caplog.records
    beside(guider(sd15, **EDIT), batch=2)
    beside(guider(sd15, spatial="moving"), batch=2)  # read anew of each picture
    assert not caplog.records
    beside(guider(sd15), batch=2)
    assert "says where all 2 are edited" in caplog.text
