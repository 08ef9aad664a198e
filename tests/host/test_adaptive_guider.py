"""The Adaptive Attention Guider in the real host: what is mixed, and when it is nothing at all."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP

from latent_layers.attention.adaptive_host import adaptive_guider
from latent_layers.attention.timings_host import word_timings
from latent_layers.inversion.host import sample_recording
from latent_layers.toyscenes.pipeline import Toy

from . import layouts
from .adaptive_runs import (
    ALWAYS,
    NEVER,
    SIZE,
    SOME,
    Attentions,
    along,
    beside,
    conditionings,
    difference,
    guider,
    negative,
    plain,
    relative,
    schedule,
    timings,
    trajectory,
)

ONES = torch.ones(1, SIZE[0] * 8, SIZE[1] * 8)
EDIT = {"lambda_s": 1.0, "mask": ONES, "mask_mode": "replace"}


@pytest.fixture(scope="module")
def sd15():
    return layouts.narrow("sd15")


@pytest.fixture(scope="module")
def sdxl():
    return layouts.narrow("sdxl")


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


def counted(model):
    """A clone, and the pictures of every call of its UNet, by the branch that they are of."""
    model, calls = model.clone(), []

    def count(executor, x, t, *args, **kwargs):
        calls.append((len(x), args[3]["cond_or_uncond"]))  # the host hands the options over by position
        return executor(x, t, *args, **kwargs)

    model.add_wrapper(WrappersMP.APPLY_MODEL, count)
    return model, calls


def written_out(source, edit, pairs, w, heads):
    """Equations 4 and 8 in float64, q, k, v (B, N, C); pairs of held (edit, source) tokens, w (N,)."""
    (q0, k0, v0), (q1, k1, v1) = ([t.double() for t in branch[:3]] for branch in (source, edit))
    out = torch.zeros_like(q1)
    size = q1.shape[2] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        before = torch.softmax(q0[..., part] @ k0[..., part].mT / size**0.5, dim=2)
        after = torch.softmax(q1[..., part] @ k1[..., part].mT / size**0.5, dim=2)
        for own, partner in pairs:
            after[..., own] = before[..., partner]
        out[..., part] = w[:, None] * (after @ v1[..., part]) + (1 - w[:, None]) * (before @ v0[..., part])
    return out


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("guide", ["negative", ""])
def test_every_cross_attention_of_the_edit_is_mixed(name, guide, request):
    """At every block and step, with tokens held by their tau, on odd grids, of two pictures."""
    model = request.getfixturevalue(name)
    source = trajectory(model, batch=2)
    found = timings(SOME, name)
    made = guider(model, found, name, guide=guide, trajectory=source, lambda_s=0.9, lambda_sv=0.7, spatial="fixed")
    with Attentions(model) as seen:
        along(made, source)
    assert len(seen.calls) == 8  # the source's and the edit's, of 4 steps
    # tau 0.1 and 0.6; the tokens of no word have the smaller, and the new word is never held
    sampling = model.get_model_object("model_sampling")
    limits = [sampling.percent_to_sigma(percent) for percent in (0.1, 0.1, 0.0, 0.6, 0.1, 0.1, 0.1)]
    for step, sigma in enumerate(source.sigmas[:4].tolist()):
        pairs = [(token, token) for token, limit in enumerate(limits) if sigma > limit]
        for block, heads in seen.heads.items():
            before, after = seen.calls[2 * step][block], seen.calls[2 * step + 1][block]
            order = [part.chunk(2) for part in after]
            cells = after[0].shape[1]
            grid = {9 * 13: (9, 13), 5 * 7: (5, 7), 3 * 4: (3, 4), 2 * 2: (2, 2)}[cells]
            saliency = (0.7 * found.saliency)[None, None]
            w = 0.9 * F.interpolate(saliency, grid, mode="bilinear", antialias=True).flatten().double()
            edit = 1  # the host puts the later conditioning first
            want = written_out(before, [part[edit] for part in order], pairs, w, heads)
            assert difference(order[3][edit], want) < 1e-4
            against = written_out(before, [part[0] for part in order], [], torch.ones(cells).double(), heads)
            assert difference(order[3][0], against) < 1e-4  # the negative is its own
    held = [sum(sigma > limit for limit in limits) for sigma in source.sigmas[:4].tolist()]
    assert held[0] > held[1] > held[3] == 0


def test_the_source_is_evaluated_on_its_own_trajectory(sd15):
    model, seen = sd15.clone(), []
    source = trajectory(sd15)

    def look(executor, x, t, *args, **kwargs):
        seen.append((float(t[0]), x.clone()))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper(WrappersMP.APPLY_MODEL, look)
    for sampler, evaluations in (("euler", 4), ("heun", 7), ("dpmpp_2m", 4)):
        seen.clear()
        along(guider(model, trajectory=source), source, sampler)
        assert len(seen) == 2 * evaluations
        for sigma, x in seen[::2]:
            assert difference(x, source.at(sigma)) == 0.0
        assert difference(seen[3][1], seen[2][1]) > 0.1


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_without_weight_and_held_words_it_is_plain_cfg_bit_for_bit(name, cfg, request):
    """And costs no more: the source is not evaluated."""
    model, calls = counted(request.getfixturevalue(name))
    source = trajectory(model, batch=2)
    _, edit = conditionings(name)
    got = along(guider(model, timings(NEVER, name), name, cfg, trajectory=source, **EDIT), source)[1]
    mine, calls[:] = list(calls), []
    want = along(plain(model, edit, negative(name), cfg), source)[1]
    assert difference(got, want) == 0.0 and mine == calls


@pytest.mark.parametrize(("batch", "size"), [(1, SIZE), (2, (16, 16))])
def test_strength_0_is_the_source(sd15, batch, size):
    """With no negative, at any scale: it is guided from the source's text to itself.

    The trajectory is one that the source's conditioning makes, so that the edit starts and stays
    on it. What is left is rounding, of other batches and of the guidance's multiple of it.
    """
    first, edit = conditionings()
    held = timings(ALWAYS, grid=(6, 8) if size == SIZE else (8, 8))
    source, _ = along(plain(sd15, first, None, 1.0), trajectory(sd15, batch, size))
    for cfg in (1.0, 7.5):
        made = guider(sd15, held, guide="", cfg=cfg, trajectory=source, lambda_s=0.0)
        result, samples = along(made, source)
        assert difference(result.clean, source.clean) < 1e-4 * cfg
        other = along(guider(sd15, held, guide="", cfg=cfg, trajectory=source), source)[1]
        assert difference(samples, other) > 0.05
    assert difference(along(plain(sd15, edit, None, 1.0), source)[0].clean, source.clean) > 0.1


def test_a_generated_pair(sd15):
    """The source's half is what its prompt gives alone; at strength 0 the edit's is the same."""
    first, _ = conditionings()
    want = beside(plain(sd15, first, negative()), batch=2)
    both = beside(guider(sd15, pair=True), batch=2)
    assert both.shape == (4, 4, *SIZE)
    assert difference(both[:2], want) < 1e-4 and difference(both[2:], want) > 0.1
    assert difference(beside(guider(sd15), batch=2), both[2:]) == 0.0
    assert difference(beside(guider(sd15, lambda_s=0.0), batch=2), want) < 1e-3


def test_a_pair_is_the_edit_along_the_sources_trajectory(sd15):
    first, _ = conditionings()
    source, _ = along(plain(sd15, first, negative()), trajectory(sd15))
    want = along(guider(sd15, timings(SOME), trajectory=source), source)[1]
    noise = source.noisiest / source.sigmas[0]
    made = guider(sd15, timings(SOME))
    got = made.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), schedule(sd15), seed=1)
    # the host scales noise by more than the first sigma where that is the highest one
    assert relative(got, want) < 0.02


def test_a_pair_with_a_noise_mask_and_previews_of_the_edit_alone(sd15):
    mask, shapes = layouts.box(*SIZE, 0.0, 0.5, 0.0, 1.0), []

    def callback(step, denoised, x, steps):
        shapes.append((denoised.shape, x.shape))

    latent = layouts.latents(1, *SIZE)
    got = beside(guider(sd15), callback=callback, denoise_mask=mask)
    assert set(shapes) == {((1, 4, *SIZE), (1, 4, *SIZE))}
    assert (
        difference(got[..., 5:, :], latent[..., 5:, :]) < 1e-5 and difference(got[..., :4, :], latent[..., :4, :]) > 0.1
    )
    shapes.clear()
    beside(guider(sd15, pair=True), callback=callback)
    assert set(shapes) == {((2, 4, *SIZE), (2, 4, *SIZE))}


@pytest.mark.parametrize(("lengths", "taus"), [((7, 14), ALWAYS), ((14, 7), ALWAYS), ((6, 9), SOME), ((7, 5), ALWAYS)])
def test_prompts_of_different_lengths(sd15, lengths, taus):
    """The host repeats the edit's to the length of the negative's; the result is that of a call of its own."""
    source = trajectory(sd15)
    made = guider(sd15, timings(taus, lengths=lengths), lengths=lengths, trajectory=source)
    together = along(made, source)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd15.model, "memory_required", lambda *args, **kwargs: 1e30)
        alone = along(made, source)[1]
    assert relative(together, alone) < 1e-4


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("real", [True, False])
def test_split_batches_give_the_same(name, real, request, monkeypatch):
    model, calls = counted(request.getfixturevalue(name))
    source = trajectory(model, batch=2)
    made = guider(model, name=name, hold=0.5, trajectory=source if real else None)
    run = (lambda: along(made, source)[1]) if real else (lambda: beside(made, batch=2))
    together = run()
    assert max(len(order) for _, order in calls) == 2
    calls.clear()
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    assert relative(run(), together) < 1e-4
    assert max(len(order) for _, order in calls) == 1


@pytest.mark.parametrize(("cfg", "real", "want"), [(3.0, True, 3), (1.0, True, 2), (3.0, False, 4), (1.0, False, 2)])
def test_evaluations(sd15, cfg, real, want):
    """Of each step; to packs that ask whose the rows are they look as always, 0 for a prompt and 1 for a negative."""
    model, calls = counted(sd15)
    source = trajectory(model)
    made = guider(model, cfg=cfg, trajectory=source if real else None)
    along(made, source) if real else beside(made)
    assert sum(pictures for pictures, _ in calls) == 4 * want
    assert {tuple(sorted(order)) for _, order in calls} <= {(0,), (0, 1)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = layouts.narrow("sd15", dtype)
    source = trajectory(model)
    got = along(guider(model, hold=0.3, trajectory=source), source)[1]
    assert torch.isfinite(got).all()
    # the same weights in float32
    exact = layouts.narrow("sd15")
    want = along(guider(exact, hold=0.3, trajectory=source), source)[1]
    assert relative(got, want) < 0.1


def test_hold_keeps_structure(sd15):
    """More of the schedule, nearer to the source; the fine grids and the values are the edit's."""
    source = trajectory(sd15)
    edits = [along(guider(sd15, timings(NEVER), hold=h, trajectory=source, **EDIT), source)[1] for h in (0, 0.5, 1)]
    assert min(difference(edits[0], edits[1]), difference(edits[1], edits[2])) > 1e-3


def test_toy_model_at_strength_0_returns_the_round_trip():
    """A trained model and a real picture's inversion, which is not quite a path of the sampler."""
    toy = Toy()
    clean = toy.encode(torch.rand(1, 128, 192, 3, generator=torch.Generator().manual_seed(0)))
    prompts = ("a red star on a plain background", "a blue star on a plain background")
    texts = [toy.condition(text) for text in prompts]
    source = sample_recording(
        plain(toy.model, texts[0], None, 1.0), comfy.samplers.sampler_object("euler"), toy.sigmas(6),
        toy.invert(clean, 6),
    )[0]  # fmt: skip
    found = word_timings(toy.model, toy.clip, *prompts, source).timings
    for cfg in (1.0, 7.5):
        made = adaptive_guider(toy.model, texts[0], texts[1], None, cfg, found, trajectory=source, lambda_s=0.0)
        assert difference(along(made, source)[0].clean, source.clean) < 1e-4 * cfg
