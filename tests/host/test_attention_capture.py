"""Cross-attention capture inside the real host, against the softmax of what `to_q` and `to_k` really gave."""

from typing import Any, cast

import comfy.ldm.modules.attention as host_attention
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch

from latent_layers.attention.capture import Capture
from latent_layers.attention.capture_host import apply_capture, blocks_near
from latent_layers.attention.host import self_attentions

from . import layouts
from .capture_runs import TOKENS, Watch, captured, difference, guider, maps_of, near, sample


@pytest.fixture(scope="module")
def sd15():
    return layouts.narrow("sd15")


@pytest.fixture(scope="module")
def sdxl():
    return layouts.narrow("sdxl")


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_maps_are_the_softmax_of_the_positive_conditioning(name, cfg, request):
    model = request.getfixturevalue(name)
    patched, capture = captured(model)
    with Watch(model) as watch:
        taken = maps_of(guider(patched, name, cfg), capture, batch=2)
    assert len(taken) == len(watch.calls) == 2 and len(watch.calls[0][0]) == (1 if cfg == 1.0 else 2)
    assert len(watch.calls[0][1]) == 2 * len(capture.blocks)
    for step, got in enumerate(taken):
        assert got.shape == (2, TOKENS, 9, 13) and got.dtype == torch.float32
        want = watch.maps(step)
        assert difference(got, want) < 1e-5
        assert difference(want[0], want[1]) > 1e-2  # so images and tokens cannot have been mixed up
        assert difference(want, want.flip(1)) > 1e-2


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_split_batches(name, request, monkeypatch):
    model = request.getfixturevalue(name)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    patched, capture = captured(model)
    with Watch(model) as watch:
        (got,) = maps_of(guider(patched, name, 4.0), capture, batch=2, sigmas=(5.0, 0.0))
    orders = [order for order, _ in watch.calls]
    assert sorted(orders) == [[0], [1]]
    assert difference(got, watch.maps(orders.index([0]))) < 1e-5


@pytest.mark.parametrize(("positive", "negative"), [(7, 14), (14, 7), (7, 28), (6, 9), (7, 5)])
def test_conditionings_of_different_lengths(sd15, positive, negative):
    """The host repeats them to a common length, or runs them one by one where that is too long."""
    patched, capture = captured(sd15, positive)
    conds = [layouts.conditioning("sd15", seed, tokens) for seed, tokens in ((1, positive), (9, negative))]
    with Watch(sd15) as watch:
        (got,) = maps_of(guider(patched, cfg=4.0, positive=conds[0], negative=conds[1]), capture, sigmas=(5.0, 0.0))
    call = next(i for i, (order, _) in enumerate(watch.calls) if 0 in order)
    assert difference(got, watch.maps(call, positive)) < 1e-5
    patched, capture = captured(sd15, positive)
    (alone,) = maps_of(guider(patched, positive=conds[0]), capture, sigmas=(5.0, 0.0))
    assert difference(got, alone) < 1e-4


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_predictions_are_the_same_bit_for_bit(sd15, sampler, cfg):
    patched, capture = captured(sd15)
    settings: dict[str, Any] = {"batch": 2, "sampler": sampler, "sigmas": (14.0, 5.0, 1.0, 0.0)}
    plain = sample(guider(sd15, cfg=cfg), **settings)
    taken = []
    got = sample(guider(patched, cfg=cfg), callback=lambda *_: taken.append(capture.take()), **settings)
    assert difference(got, plain) == 0.0 and len(taken) >= 3
    assert difference(sample(guider(patched, cfg=cfg), **settings), plain) == 0.0  # maps that nobody takes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = layouts.narrow("sd15", dtype)
    patched, capture = captured(model)
    with Watch(model) as watch:
        (got,) = maps_of(guider(patched, cfg=4.0), capture, batch=2, sigmas=(5.0, 0.0))
    assert watch.calls[0][1][min(capture.blocks), "to_q"].dtype == dtype
    assert got.dtype == torch.float32 and difference(got, watch.maps(0)) < 1e-5
    step: dict[str, Any] = {"sigmas": (5.0, 0.0)}
    assert difference(sample(guider(patched), **step), sample(guider(model), **step)) == 0.0


@pytest.mark.parametrize("backend", ["attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch"])
def test_every_attention_backend(sd15, backend, monkeypatch):
    function = getattr(host_attention, backend)
    monkeypatch.setattr(host_attention, "optimized_attention", function)
    patched, capture = captured(sd15)
    with Watch(sd15) as watch:
        (got,) = maps_of(guider(patched, cfg=4.0), capture, sigmas=(5.0, 0.0))
    assert difference(got, watch.maps(0)) < 1e-5
    step: dict[str, Any] = {"sigmas": (5.0, 0.0)}
    assert difference(sample(guider(patched), **step), sample(guider(sd15), **step)) == 0.0


def test_two_captures_on_one_model(sd15):
    """Each has its own blocks, and they do not see each other."""
    coarse = Capture([("middle", 0, 0)], TOKENS)
    patched, capture = captured(sd15)
    (want,) = maps_of(guider(patched), capture, sigmas=(5.0, 0.0))
    taken = []
    both = guider(apply_capture(patched, coarse, "test"))
    sample(both, sigmas=(5.0, 0.0), callback=lambda *_: taken.extend([capture.take(), coarse.take()]))
    assert difference(taken[0], want) == 0.0
    assert taken[1].shape == (1, TOKENS, 3, 4)


def test_without_a_sampler_every_batch_is_an_evaluation(sd15):
    """As a caller does it who evaluates the model at noise levels of his own choice."""
    patched, capture = captured(sd15)
    (want,) = maps_of(guider(patched, cfg=4.0), capture, sigmas=(5.0, 0.0))
    taken = []

    class Direct(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, *args, **kwargs):
            options = comfy.model_patcher.create_model_options_clone(patched.model_options)
            comfy.sampler_helpers.prepare_model_patcher(patched, self.conds, options)
            for _ in range(2):
                comfy.samplers.calc_cond_batch(self.inner_model, [self.conds["positive"]], x, timestep, options)
                taken.append(capture.take())
            return x

    direct: Any = Direct(sd15)
    direct.set_conds(layouts.conditioning("sd15"), [])
    sample(direct, sigmas=(5.0, 0.0))
    assert len(taken) == 2 and all(difference(got, want) < 1e-4 for got in taken)


def test_an_interrupted_run_leaves_nothing(sd15):
    patched, capture = captured(sd15)
    before = sample(guider(patched))
    broken, calls = patched.clone(), []

    def interrupt(out, extra):
        calls.append(1)
        if len(calls) == 24:
            assert capture._sum is not None  # in the middle of the second evaluation
            raise InterruptedError
        return out

    broken.set_model_attn2_output_patch(interrupt)
    with pytest.raises(InterruptedError):
        sample(guider(broken))
    assert capture._sum is None and len(calls) == 24
    with pytest.raises(RuntimeError, match="there are no maps"):
        capture.take()
    assert difference(sample(guider(patched)), before) == 0.0
    assert capture._sum is None


def test_the_model_and_its_other_clones_stay_unpatched(sd15):
    other = sd15.clone()
    patched, capture = captured(sd15)
    sample(guider(patched))
    for model in (sd15, other, sd15.clone()):
        assert not model.wrappers and not model.callbacks and not model.model_options["transformer_options"]
        sample(guider(model), callback=lambda *_: pytest.raises(RuntimeError, capture.take))
    assert not patched.model_options["transformer_options"]


def test_only_the_chosen_blocks_pay(sd15, monkeypatch):
    """One map per chosen block and evaluation, none of the negative conditioning, none of self-attention."""
    patched, capture = captured(sd15)
    shapes = []
    add = capture.add
    monkeypatch.setattr(capture, "add", lambda maps, *grid: shapes.append(tuple(maps.shape)) or add(maps, *grid))
    sample(guider(patched, cfg=4.0), batch=2)
    assert shapes == [(2, 9 * 13, TOKENS)] * (2 * len(capture.blocks))


@pytest.mark.parametrize(
    ("name", "latent", "cells", "level", "count"),
    [
        ("sd15", (1, 4, 64, 64), 16, 2, 5),  # 16x16, down and up
        ("sd15", (2, 4, 96, 64), 16, 2, 5),
        ("sd15", (96, 128), 16, 2, 5),  # 24, not the 12 that only the middle block has
        ("sd15", (160, 128), 16, 2, 5),
        ("sd15", (64, 64), 32, 1, 5),
        ("sd15", (64, 64), 1, 2, 5),
        ("sd15", (17, 40), 6, 2, 5),  # grids of 17, 9, 5
        ("sd15", (49, 60), 35, 0, 5),  # 49 and 25 are equally near: the finer one
        ("sdxl", (1, 4, 128, 128), 16, 2, 60),  # 32x32, its coarsest
        ("sdxl", (96, 152), 16, 2, 60),
        ("sdxl", (48, 48), 16, 2, 60),
        ("sdxl", (32, 32), 16, 1, 10),
    ],
)
def test_blocks_near(name, latent, cells, level, count, request):
    model = request.getfixturevalue(name)
    chosen = blocks_near(model, latent, "test", cells)
    assert {block.level for block in chosen} == {level} and len(chosen) == count
    assert chosen == {block for block in self_attentions(model, "test") if block.level == level}


class NoUNet:
    """What the check sees of a model of another family."""

    class Flux(torch.nn.Module):
        diffusion_model = torch.nn.Linear(4, 4)

    model = Flux()


def test_errors(sd15, monkeypatch):
    for act in (
        lambda: blocks_near(cast(Any, NoUNet()), (64, 64), "Word Mask"),
        lambda: apply_capture(cast(Any, NoUNet()), Capture([("input", 1, 0)], 7), "Word Mask"),
    ):
        with pytest.raises(ValueError, match="Word Mask: the model is a Flux without UNet self-attention"):
            act()
    with pytest.raises(
        ValueError, match=r"Word Mask: there is no block \('input', 3, 0\); this model has attention in d1"
    ):
        apply_capture(sd15, Capture([("input", 3, 0), ("input", 4, 0)], 7), "Word Mask")
    monkeypatch.setattr(comfy.samplers.comfy.sampler_helpers, "prepare_sampling", None)
    patched = apply_capture(sd15, Capture(near(sd15), 14), "Word Mask")
    with pytest.raises(ValueError, match="Word Mask: the positive conditioning has 7 tokens, but its text has 14"):
        sample(guider(patched))
