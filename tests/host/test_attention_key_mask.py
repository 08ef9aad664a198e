"""Key-Masked Self-Attention inside the real host, on narrow models of the real layouts."""

from typing import Any, cast

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from latent_layers.attention.host import KeyMaskGuidance, apply_key_mask
from latent_layers.attention.key_mask import KeyMask
from latent_layers.attention.schedule import PercentRange
from latent_layers.nodes.attention import KeyMaskedSelfAttention

from . import layouts
from .key_mask_runs import MODES, difference, mask, masked_keys, sample


@pytest.fixture(scope="module")
def sd15():
    return layouts.narrow("sd15")


@pytest.fixture(scope="module")
def sdxl():
    return layouts.narrow("sdxl")


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (65, 97)])
def test_every_self_attention_is_reached(name, size, request):
    model = request.getfixturevalue(name)
    patched = apply_key_mask(model, layouts.box(size[0] * 8, size[1] * 8, 0.2, 0.8, 0.2, 0.8), guidance=1.0, end=1.0)
    hit, tokens = masked_keys(patched, name=name, size=size, sigmas=(14.6, 0.0))
    assert len(hit) == len(tokens) == layouts.SELF_ATTENTIONS[name]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_odd_sizes_in_every_mode(name, mode, request):
    model = request.getfixturevalue(name)
    patched = apply_key_mask(model, mask(17 * 8, 25 * 8), mode=mode, guidance=1.0)
    result = sample(patched, name, size=(17, 25))
    assert torch.isfinite(result).all() and difference(result, sample(model, name, size=(17, 25))) > 1e-2


def test_chosen_blocks_only(sdxl):
    hit, _ = masked_keys(apply_key_mask(sdxl, mask(), guidance=1.0, blocks="d7.0-4,mid"), name="sdxl")
    assert len(hit) == 15 and {key[:2] for key in hit} == {("input", 7), ("middle", 0)}


def test_exclude_gives_fewer_keys(sd15):
    _, tokens = masked_keys(apply_key_mask(sd15, mask(), mode="exclude", guidance=1.0))
    assert tokens[("input", 1, 0)][0] == (1, 16 * 24 * 3 // 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_guidance_is_the_formula(sd15, mode, cfg):
    """One step to sigma 0 returns the prediction: result = cfg + g * (masked - plain) on the positive prompt."""
    step: dict[str, Any] = {"sigmas": (5.0, 0.0)}
    plain, masked = sample(sd15, **step), sample(apply_key_mask(sd15, mask(), mode=mode, guidance=1.0), **step)
    got = sample(apply_key_mask(sd15, mask(), mode=mode, guidance=3.5), cfg=cfg, **step)
    want = sample(sd15, cfg=cfg, **step) + 3.5 * (masked - plain)
    assert difference(masked, plain) > 1e-2
    assert difference(got, want) < 1e-4 * want.abs().max()


@pytest.mark.parametrize("order", ["before", "after"])
def test_what_others_make_of_the_prediction_before_cfg_is_not_guided_against(sd15, order):
    """A pack that halves the positive prediction; added is what the mask changes of the plain one."""

    def halved(model):
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0] * 0.5, *args["conds_out"][1:]])
        return model

    step: dict[str, Any] = {"sigmas": (5.0, 0.0)}
    change = sample(apply_key_mask(sd15, mask(), guidance=1.0), **step) - sample(sd15, **step)
    both = halved(sd15) if order == "before" else sd15
    both = apply_key_mask(both, mask(), guidance=3.5)
    got = sample(halved(both) if order == "after" else both, cfg=4.0, **step)
    want = sample(halved(sd15), cfg=4.0, **step) + 3.5 * change
    assert difference(got, want) < 1e-4 * want.abs().max()


def test_guidance_costs_one_evaluation_of_the_positive_prompt_and_only_in_range(sd15):
    def evaluations(model, cfg):
        seen = []
        model.add_wrapper(
            WrappersMP.DIFFUSION_MODEL,
            lambda executor, x, *args, **kwargs: seen.append(x.shape[0]) or executor(x, *args, **kwargs),
        )
        sample(model, cfg=cfg)
        return sum(seen)

    span: dict[str, Any] = {"start": 0.0, "end": 0.5}  # sigma at 50 % is about 1.6: the first two of three evaluations
    assert evaluations(apply_key_mask(sd15, mask(), guidance=1.0, **span), 1.0) == 3
    assert evaluations(apply_key_mask(sd15, mask(), guidance=7.5, **span), 1.0) == 3 + 2
    assert evaluations(apply_key_mask(sd15, mask(), guidance=7.5, **span), 4.0) == 6 + 2


def test_guidance_along_the_range(sd15):
    sampling = sd15.get_model_object("model_sampling")
    sigma = sampling.percent_to_sigma(0.4)
    step: dict[str, Any] = {"sigmas": (sigma, 0.0)}
    got = sample(apply_key_mask(sd15, mask(), guidance=8.0, guidance_end=2.0, start=0.0, end=0.8), **step)
    want = sample(apply_key_mask(sd15, mask(), guidance=5.0), **step)
    assert difference(got, want) < 2e-2 * difference(want, sample(sd15, **step))


@pytest.mark.parametrize("mode", MODES)
def test_identity(sd15, mode):
    plain = sample(sd15, cfg=3.0)
    assert difference(sample(apply_key_mask(sd15, mask(), mode=mode, guidance=0.0), cfg=3.0), plain) == 0.0
    for g in (1.0, 7.5):
        late = apply_key_mask(sd15, mask(), mode=mode, guidance=g, start=0.9999, end=1.0)
        assert difference(sample(late, cfg=3.0, sigmas=(14.6, 1.0)), sample(sd15, cfg=3.0, sigmas=(14.6, 1.0))) == 0.0
        nothing = KeyMask(torch.zeros(1, 128, 192), mode)
        patched = sd15.clone()
        KeyMaskGuidance(nothing, nothing, 0.5, PercentRange(0.0, 1.0), g, g).attach(patched)
        # at g = 1 the pass itself is patched; at 7.5 the difference of two equal passes is added,
        # of which one ran in a batch of two: equal only where the batch is not (text CFG 1)
        cfg = 3.0 if g == 1.0 else 1.0
        assert difference(sample(patched, cfg=cfg), plain if g == 1.0 else sample(sd15)) == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_batches_with_a_mask_each_equal_single_pictures(sd15, mode, guidance):
    masks = torch.cat([mask(), layouts.box(128, 192, 0.0, 0.4, 0.5, 1.0)])
    step = {"batch": 2, "sigmas": (5.0, 0.0), "cfg": 3.0}
    got = sample(apply_key_mask(sd15, masks, mode=mode, guidance=guidance), **step)
    for i in range(2):
        alone = sample(apply_key_mask(sd15, masks[i : i + 1], mode=mode, guidance=guidance), picture=i, **step)
        assert difference(got[i : i + 1], alone) < 1e-3 * alone.abs().max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_split_batches_give_the_same(name, mode, request, monkeypatch):
    model = request.getfixturevalue(name)
    masks = torch.cat([mask(), layouts.box(128, 192, 0.0, 0.4, 0.5, 1.0)])
    patched = apply_key_mask(model, masks, mode=mode, guidance=1.0)
    step = {"name": name, "batch": 2, "cfg": 4.0, "sigmas": (5.0, 0.0)}
    together = sample(patched, **step)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    _, tokens = masked_keys(patched, **step)
    assert {len(given) for given in tokens.values()} == {2}
    assert difference(sample(patched, **step), together) < 1e-3 * together.abs().max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_bf16(name, mode):
    model = layouts.narrow(name, torch.bfloat16)
    masks = torch.cat([mask(64, 96), layouts.box(64, 96, 0.0, 0.4, 0.5, 1.0)])
    one_step = {"name": name, "batch": 2, "size": (8, 12), "cfg": 3.0, "sigmas": (5.0, 0.0)}  # slow where emulated
    result = sample(apply_key_mask(model, masks, mode=mode, guidance=2.0), **one_step)
    assert torch.isfinite(result).all() and difference(result, sample(model, **one_step)) > 1e-2


def test_an_interrupted_run_leaves_nothing(sd15):
    patched = apply_key_mask(sd15, mask(), mode="soft", guidance=7.5)
    before = sample(patched)
    guide = patched.model_options["sampler_post_cfg_function"][0].__self__
    assert not guide.late.patch._plans

    broken = patched.clone()
    calls = []

    def interrupt(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise InterruptedError
        return executor(*args, **kwargs)

    broken.add_wrapper(WrappersMP.DIFFUSION_MODEL, interrupt)
    with pytest.raises(InterruptedError):
        sample(broken)
    assert not guide.late.patch._plans and not guide.late.patch.has_pending
    assert difference(sample(patched), before) == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_queued_twice(sd15, mode, guidance):
    patched = apply_key_mask(sd15, mask(), mode=mode, guidance=guidance)
    assert difference(sample(patched, cfg=3.0), sample(patched, cfg=3.0)) == 0.0


def test_the_model_and_its_other_clones_stay_unpatched(sd15):
    plain, other = sample(sd15, cfg=3.0), sd15.clone()
    patched = apply_key_mask(sd15, mask(), guidance=1.0)
    sample(patched, cfg=3.0)
    for model in (sd15, other, sd15.clone()):
        assert difference(sample(model, cfg=3.0), plain) == 0.0
        assert (
            not model.wrappers and not model.callbacks and "patches" not in model.model_options["transformer_options"]
        )
    assert "attn1_patch" not in patched.model_options["transformer_options"].get("patches", {})


def test_two_masks_on_one_model(sd15):
    left, right = layouts.box(128, 192, 0.2, 0.8, 0.1, 0.4), layouts.box(128, 192, 0.2, 0.8, 0.6, 0.9)
    one = apply_key_mask(sd15, left, mode="exclude", guidance=1.0)
    both = sample(apply_key_mask(one, right, mode="exclude", guidance=1.0))
    assert (
        difference(both, sample(apply_key_mask(sd15, torch.maximum(left, right), mode="exclude", guidance=1.0))) == 0.0
    )
    mixed = apply_key_mask(apply_key_mask(sd15, left, guidance=1.0), right, mode="soft", guidance=7.5)
    results = [sample(m) for m in (sd15, one, apply_key_mask(sd15, right, mode="soft", guidance=7.5), mixed)]
    assert all(difference(results[3], other) > 1e-2 for other in results[:3])


def test_artifact_and_ignore_masks_are_part_of_the_key_mask(sd15):
    left, right = layouts.box(128, 192, 0.2, 0.8, 0.1, 0.4), layouts.box(128, 192, 0.2, 0.8, 0.6, 0.9)
    union = torch.maximum(left, right)

    def run(*masks, sigma, **options):
        return sample(apply_key_mask(sd15, *masks, guidance=1.0, **options), sigmas=(sigma, 0.0))

    early, late = 10.0, 1.0  # 50 % lies between
    assert difference(run(left, sigma=early, artifact_mask=right), run(union, sigma=early)) == 0.0
    assert difference(run(left, sigma=late, artifact_mask=right), run(left, sigma=late)) == 0.0
    for sigma in (early, late):
        assert difference(run(left, sigma=sigma, ignore_mask=right), run(union, sigma=sigma)) == 0.0


def test_a_conditioning_with_an_area_sees_its_crop(sd15):
    right = layouts.box(128, 192, 0.25, 0.75, 0.5, 1.0)
    left_half = layouts.conditioning("sd15", area=(16, 12, 0, 0), strength=1.0)
    plain = sample(sd15, positive=left_half)
    assert difference(sample(apply_key_mask(sd15, right, guidance=1.0), positive=left_half), plain) == 0.0
    left = right.flip(2)
    assert difference(sample(apply_key_mask(sd15, left, guidance=1.0), positive=left_half), plain) > 1e-2


class NoUNet:
    """What the check sees of a model of another family."""

    class Flux(torch.nn.Module):
        diffusion_model = torch.nn.Linear(4, 4)

    model = Flux()


def test_errors_of_the_node(sd15):
    good = {"guidance": 1.0}
    for bad, options, text in [
        (torch.zeros(1, 64, 64), {}, r"Key-Masked Self-Attention: mask is empty \(all 0\); paint the area to remove"),
        (torch.ones(1, 64, 64), {}, "mask is full"),
        (mask(), {"start": 0.8, "end": 0.2}, "start is 0.8 and end is 0.2"),
        (mask(), {"blocks": "d3"}, "this model has self-attention in d1 d2 d4 d5 d7 d8 m0 u3"),
        (mask(), {"mode": "blur"}, "mode is 'blur'"),
        (mask(), {"ignore_mask": 1 - mask()}, "cover the whole picture together"),
        (mask(), {"artifact_mask": torch.zeros(1, 64, 64)}, "artifact_mask is 64x64, another shape"),
        (torch.cat([mask()] * 3), {"ignore_mask": torch.cat([mask()] * 2)}, "ignore_mask has a batch of 2 for 3"),
    ]:
        with pytest.raises(ValueError, match=text):
            apply_key_mask(sd15, bad, **good, **options)
    with pytest.raises(ValueError, match="the model is a Flux without UNet self-attention; use a checkpoint"):
        apply_key_mask(cast(Any, NoUNet()), mask())


def test_errors_before_the_model_is_loaded(sd15, monkeypatch):
    monkeypatch.setattr(comfy.samplers.comfy.sampler_helpers, "prepare_sampling", None)
    with pytest.raises(ValueError, match="mask is 64x64, another shape than the latent's 24x16"):
        sample(apply_key_mask(sd15, mask(64, 64)))
    with pytest.raises(ValueError, match="mask has a batch of 2 for 3 image"):
        sample(apply_key_mask(sd15, torch.cat([mask()] * 2)), batch=3)
    with pytest.raises(ValueError, match="artifact_mask has a batch of 2 for 3 image"):
        sample(apply_key_mask(sd15, mask(), artifact_mask=torch.cat([mask()] * 2)), batch=3)


def test_the_node(sd15):
    settings = {"mode": "exclude", "guidance": 3.0, "start_percent": 0.0, "end_percent": 0.8, "artifact_end": 0.5}
    (patched,) = KeyMaskedSelfAttention.execute(
        sd15, mask(), **settings, guidance_end=-1.0, blocks="all", artifact_mask=None, ignore_mask=None
    ).args
    assert difference(sample(patched), sample(apply_key_mask(sd15, mask(), mode="exclude", guidance=3.0))) == 0.0
    schema = KeyMaskedSelfAttention.define_schema()
    assert all(i.tooltip for i in schema.inputs)
