"""Instant Attention Mask and Word Mask on the toy model, under the real host's samplers."""

import logging
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_easycache

from latent_layers.attention.capture import Capture
from latent_layers.attention.capture_host import apply_capture, blocks_near, read_prompt
from latent_layers.inversion.host import invert
from latent_layers.inversion.trajectory import Trajectory
from latent_layers.masks.edges import GuidedFilter
from latent_layers.masks.instant import Refinement, Settings, min_max, otsu, resize
from latent_layers.masks.instant_host import instant_mask, word_mask
from latent_layers.masks.instant_words import read_roles
from latent_layers.nodes.instant import InstantAttentionMask, WordMask
from latent_layers.nodes.toy import ToyModel
from latent_layers.toyscenes.host import image_tensor
from latent_layers.toyscenes.scenes import random_scene

from . import layouts
from .instant_runs import GRID, HEIGHT, STEPS, WIDTH, condition, edit, schedule, watched


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def toy():
    """MODEL, CLIP, VAE as the node gives them."""
    with torch.inference_mode():
        return ToyModel.execute().args


@pytest.fixture(scope="module")
def scene():
    return random_scene(11, WIDTH, HEIGHT, (1, 1))


@pytest.fixture(scope="module")
def latent(toy, scene):
    with torch.inference_mode():
        return toy[2].encode(image_tensor(scene.image()))


@pytest.fixture(scope="module")
def trajectory(toy, latent):
    with torch.inference_mode():
        return invert(toy[0], condition(toy), latent, schedule(toy[0], 10))


def noise_of(latent) -> torch.Tensor:
    """What seed 5 makes for two pictures."""
    noise: Any = comfy.sample.prepare_noise(latent.repeat(2, 1, 1, 1), 5)
    return noise


def outside(mask):
    """Latent cells that are kept, (1, 1, h, w)."""
    return (F.max_pool2d(mask[None], 8) == 0)[0][None]


def largest(tensor, where):
    return tensor.abs()[where.expand_as(tensor)].max().item()


def test_outputs_and_cost(toy, latent, caplog):
    with caplog.at_level(logging.INFO):
        found = edit(toy, latent)
    # 3 steps of 2 seeds with CFG, as the plain edit
    assert found.evaluations == 3 * 2 * 2
    assert "Latent Layers Instant Attention Mask: 12 model evaluations" in caplog.text
    assert found.hard.shape == found.soft.shape == (1, HEIGHT, WIDTH)
    assert found.edited.shape == latent.shape and found.masks.shape == found.maps.shape == (3, *GRID)
    assert set(found.hard.unique().tolist()) <= {0.0, 1.0} and 0 <= found.soft.min() <= found.soft.max() <= 1
    assert torch.equal(F.max_pool2d(found.hard, 8)[0], found.masks[-1])
    assert torch.equal(found.hard[:, 4::8, 4::8][0], found.masks[-1])
    title, *lines = found.roles_text().split("\n")
    assert title == "text:"
    assert [line.split()[0] for line in lines] == ["a", "red", "star", "on", "a#2", "plain", "background"]
    assert all(line.split()[1] in ("+1", "0", "-1") for line in lines) and found.roles_text().count("leads") == 1
    assert found.strip().shape[0] == 1 and found.strip().shape[3] == 3


def test_without_guidance_only_the_prompt_is_evaluated(toy, latent):
    assert edit(toy, latent, cfg=1.0, seeds=1).evaluations == 3


@pytest.mark.parametrize("running_mean", [True, False])
def test_masks_come_from_the_edits_own_attention(toy, latent, running_mean):
    """A second capture in the same run sees what the masks were made of."""
    text, settings = "a red star", Settings(running_mean=running_mean)
    prompt = read_prompt(toy[1], text, "test")
    other, seen = Capture(blocks_near(toy[0], latent.shape, "test"), prompt.length), []

    def look(executor, *args, **kwargs):
        result = executor(*args, **kwargs)
        seen.append(other.take())
        return result

    model = toy[0].clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    found = edit(toy, latent, text, apply_capture(model, other, "test"), settings=settings, words="=red")
    refinement = Refinement(prompt, GRID, settings, read_roles("=red", prompt, "test"), guide=latent[0])
    masks = [refinement(attention.double().mean(0)) for attention in seen]
    assert len(seen) == 3 and seen[0].shape[0] == 2
    for step, (_, refined) in enumerate(masks):
        assert (refined - found.maps[step]).abs().max() < 1e-4
    assert refinement.roles == found.roles["text"] and set(found.roles) == {"text"}


def test_the_mask_of_a_colour_word_is_better_than_chance(toy, scene, latent):
    found = edit(toy, latent, scene.caption(), words=f"={scene.objects[0].colour}", settings=Settings(phi=-1.0))
    thing = torch.from_numpy(scene.visible_mask(0))[None] > 0.5
    assert found.soft[thing].mean() > 1.5 * found.soft[~thing].mean()
    mask = found.hard > 0.5
    assert (mask & thing).sum() / (mask | thing).sum() > 2 * thing.float().mean()


def test_outside_every_mask_the_sampler_is_at_the_noised_source(toy, latent):
    model, seen = watched(toy[0])
    found = edit(toy, latent, model=model, words="=star")
    sampling: Any = toy[0].get_model_object("model_sampling")
    noise = noise_of(latent)
    sigmas = schedule(toy[0])[-4:].tolist()
    assert [sigma for sigma, _ in seen] == pytest.approx(sigmas[:3], rel=1e-6)
    for step, (sigma, x) in enumerate(seen):
        source = sampling.noise_scaling(torch.tensor([sigma]), noise, toy[0].model.process_latent_in(latent))
        kept = found.masks[step - 1][None, None] == 0 if step else torch.ones(1, 1, *GRID, dtype=torch.bool)
        assert largest(x - source, kept) < 1e-5
        if step:
            assert largest(x - source, ~kept) > 1e-2
    assert largest(found.edited - latent, outside(found.hard)) == 0.0
    assert largest(found.edited - latent, ~outside(found.hard)) > 1e-2


def test_the_denoising_is_euler_with_the_blend(toy, latent):
    """Section 4.3 written out, on the predictions that the model made."""
    predictions, model = [], toy[0].clone()

    def look(executor, x, t, *args, **kwargs):
        predictions.append(executor(x, t, *args, **kwargs))
        return predictions[-1].clone()

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    found = edit(toy, latent, model=model, words="=star")
    clean = toy[0].model.process_latent_in(latent).double()
    noise = noise_of(latent).double()
    sigmas = schedule(toy[0])[-4:].double()
    x = clean + sigmas[0] * noise
    for step, denoised in enumerate(predictions):
        x = x + (x - denoised) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
        source = clean + sigmas[step + 1] * noise
        x = source + found.masks[step].double() * (x - source)
    assert (toy[0].model.process_latent_out(x[:1]) - found.edited).abs().max() < 1e-3


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral", "uni_pc", "dpmpp_sde"])
def test_other_samplers_keep_the_source_too(toy, latent, sampler):
    found = edit(toy, latent, sampler=sampler, seeds=1, cfg=1.0, words="=star")
    assert torch.isfinite(found.edited).all() and found.evaluations >= 3
    assert largest(found.edited - latent, outside(found.hard)) < 1e-5
    assert largest(found.edited - latent, ~outside(found.hard)) > 1e-2


def test_beside_a_cache_that_skips_evaluations(toy, latent):
    """The host's EasyCache: the last mask counts where it spares one."""
    cached = nodes_easycache.EasyCacheNode.execute(toy[0], 0.2, 0.15, 0.95, False)[0]
    found = edit(toy, latent, model=cached, seeds=1, steps=50)
    plain = edit(toy, latent, seeds=1, steps=50)
    assert 0 < len(found.masks) < len(plain.masks)
    both = ((found.hard > 0) & (plain.hard > 0)).sum() / ((found.hard > 0) | (plain.hard > 0)).sum()
    assert both > 0.5


def test_a_sampler_that_evaluates_nothing_is_named(toy, latent):
    with pytest.raises(ValueError, match="Instant Attention Mask: the sampler has not asked the model once; raise"):
        edit(toy, latent, sampler="dpm_adaptive", steps=2)


def test_queued_again_it_is_the_same(toy, latent):
    first, second = edit(toy, latent, seeds=1), edit(toy, latent, seeds=1)
    assert torch.equal(first.hard, second.hard) and torch.equal(first.edited, second.edited)
    assert first.roles == second.roles
    assert not torch.equal(first.edited, edit(toy, latent, seeds=1, seed=6).edited)


def test_an_interrupted_run_leaves_the_model_unpatched(toy, latent):
    before, wrappers = edit(toy, latent, seeds=1), {k: dict(v) for k, v in toy[0].wrappers.items()}
    broken, calls = toy[0].clone(), []

    def interrupt(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError
        return executor(*args, **kwargs)

    broken.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "interrupt", interrupt)
    with pytest.raises(InterruptedError):
        edit(toy, latent, model=broken, seeds=1)
    assert list(broken.wrappers[WrappersMP.APPLY_MODEL]) == ["interrupt"]
    assert not any(broken.wrappers.get(WrappersMP.PREDICT_NOISE, {}).values())
    assert {k: dict(v) for k, v in toy[0].wrappers.items()} == wrappers
    assert torch.equal(edit(toy, latent, seeds=1).edited, before.edited)


def test_the_layout_of_sd15_at_an_odd_size(toy):
    model = layouts.narrow("sd15", context_dim=128)
    source = layouts.latents(1, 15, 22, seed=3)
    found = instant_mask(model, toy[1], "a red star", source, condition(toy), seeds=2, steps=4, words="=star")
    assert found.hard.shape == (1, 120, 176) and found.masks.shape == (2, 15, 22)
    assert largest(found.edited - source, outside(found.hard)) < 1e-6


@pytest.fixture(scope="module")
def found_words(toy, scene, trajectory):
    with torch.inference_mode():
        return word_mask(toy[0], toy[1], trajectory, scene.caption(), scene.objects[0].colour, steps=3)


def test_word_mask_is_better_than_chance(scene, found_words):
    thing = torch.from_numpy(scene.visible_mask(0))[None] > 0.5
    inside, beyond = found_words.soft[thing].mean(), found_words.soft[~thing].mean()
    assert inside > 1.5 * beyond
    mask = found_words.hard > 0.5
    assert (mask & thing).sum() / (mask | thing).sum() > 2 * thing.float().mean()


def test_word_mask_reads_the_trajectory_itself(toy, scene, trajectory):
    model, seen = watched(toy[0])
    text, colour = scene.caption(), scene.objects[0].colour
    prompt = read_prompt(toy[1], text, "test")
    other, maps = Capture(blocks_near(model, trajectory.shape, "test"), prompt.length), []

    def look(executor, *args, **kwargs):
        result = executor(*args, **kwargs)
        maps.append(other.take())
        return result

    model = apply_capture(model, other, "test")
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    found = word_mask(model, toy[1], trajectory, text, colour, steps=2, start=0.2, end=0.9)
    sampling: Any = model.get_model_object("model_sampling")
    high, low = sampling.percent_to_sigma(0.2), sampling.percent_to_sigma(0.9)
    inside = [sigma for sigma in trajectory.sigmas.tolist() if low <= sigma <= high]
    assert [sigma for sigma, _ in seen] == [inside[0], inside[-1]] and found.evaluations == 2
    for sigma, x in seen:
        assert torch.equal(x.cpu(), trajectory.at(sigma))
    tokens = [word.tokens for word in prompt.words if word.text == colour][0]
    plane = torch.stack(maps).double().mean(0)[:, list(tokens)].mean(1)
    followed = GuidedFilter(trajectory.latents[-1][0])(resize(min_max(plane)[0], *GRID))
    soft = min_max(resize(min_max(followed)[None], HEIGHT, WIDTH))
    assert (soft - found.soft).abs().max() < 1e-4
    assert found.thresholds == (pytest.approx(otsu(found.soft[0])),)
    assert torch.equal(found.hard, (found.soft > found.thresholds[0]).float())


def test_word_mask_of_a_batch_has_one_for_each_picture(toy, scene, trajectory):
    flipped = Trajectory(
        trajectory.sigmas,
        [torch.cat([x, x.flip(3)]) for x in trajectory.latents],
        trajectory.family,
        trajectory.latent_format,
    )
    colour = scene.objects[0].colour
    both = word_mask(toy[0], toy[1], flipped, scene.caption(), colour, steps=2, threshold=0.4)
    one = word_mask(toy[0], toy[1], trajectory, scene.caption(), colour, steps=2, threshold=0.4)
    assert both.hard.shape == (2, HEIGHT, WIDTH) and both.evaluations == 4 and both.strip().shape[0] == 2
    assert (both.soft[:1] - one.soft).abs().max() < 1e-3
    assert not torch.equal(both.hard[0], both.hard[1])


def test_errors_before_any_work(toy, latent, trajectory, monkeypatch):
    monkeypatch.setattr(comfy.samplers.CFGGuider, "sample", None)
    monkeypatch.setattr(toy[1], "encode_from_tokens_scheduled", None)
    who, negative = "Instant Attention Mask", layouts.conditioning("sd15")

    def run(text="a red star", source=latent, model=None, clip=toy[1], **options):
        instant_mask(toy[0] if model is None else model, clip, text, source, negative, **options)

    for options, text in [
        ({"words": "+circle"}, "words has 'circle', but the prompt has the words a, red, star"),
        ({"text": " , "}, "text is an empty prompt"),
        ({"strength": 0.0}, "strength is 0; it has to be between 0 and 1"),
        ({"strength": 1.0}, "strength is 1;"),
        ({"settings": Settings(0.9, 0.9)}, "lambda2 is 0.9 and lambda1 is 0.9"),
        ({"settings": Settings(phi=1.0)}, "phi is 1"),
        ({"source": latent.repeat(2, 1, 1, 1)}, "latent holds 2 pictures; give one at a time"),
        ({"source": latent[:, :4]}, "latent has shape .* encode the picture with the VAE"),
        ({"clip": None}, "clip is empty"),
        ({"seeds": 0}, "seeds is 0"),
        ({"source_text": "A red  star"}, r"text has the same words as source_text \(a, red, star\)"),
    ]:
        with pytest.raises(ValueError, match=f"^{who}: {text}"):
            run(**options)

    def read(text="a red star", words="star", path=trajectory, model=toy[0], **options):
        word_mask(model, toy[1], path, text, words, **options)

    part = trajectory.part(low=float(trajectory.sigmas[1]))
    for options, text in [
        ({"words": "circle"}, "words has 'circle', but the prompt has the words a, red, star"),
        ({"words": " "}, "words is empty; name some of the prompt's words: a, red, star"),
        ({"text": ""}, "text is an empty prompt"),
        ({"threshold": -0.3}, "threshold is -0.3"),
        ({"start": 0.7, "end": 0.7}, "start_percent is 0.7 and end_percent is 0.7"),
        ({"steps": 0}, "steps is 0"),
        ({"path": part}, r"the trajectory \(1 steps, .*\) has no level from start_percent 0.5 to end_percent 0.9"),
        ({"model": layouts.narrow("sd15")}, "trajectory: the model is of another family"),
    ]:
        with pytest.raises(ValueError, match=f"^Word Mask: {text}"):
            read(**options)


def test_a_model_without_unet_attention(toy, latent, trajectory):
    class Other:
        """Stands where a patcher's model has a UNet."""

    model = toy[0].clone()
    model.model = type("Flux", (), {"diffusion_model": Other(), "latent_format": toy[0].model.latent_format})()
    for run in (
        lambda: instant_mask(model, toy[1], "a star", latent, []),
        lambda: word_mask(model, toy[1], trajectory, "a star", "star"),
    ):
        with pytest.raises(ValueError, match="Mask: the model is a Flux without UNet"):
            run()


def defaults(node) -> dict:
    """The settings of a node that is dropped into a graph."""
    inputs: list[Any] = node.define_schema().inputs
    return {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}


def test_the_nodes(toy, latent, scene, trajectory, found_words):
    model, clip, _ = toy
    given = {**defaults(InstantAttentionMask), "seed": 5, "seeds": 2, "steps": STEPS, "words": "=star"}
    out = InstantAttentionMask.execute(
        model=model, clip=clip, text="a red star", latent={"samples": latent}, negative=condition(toy), **given
    )
    mask, soft, edited, roles, strip = out.args
    want = edit(toy, latent, "a red star", words="=star")
    assert torch.equal(mask, want.hard) and torch.equal(soft, want.soft) and torch.equal(edited["samples"], want.edited)
    assert roles == want.roles_text() and torch.equal(strip, want.strip())
    given = {**defaults(WordMask), "words": scene.objects[0].colour, "steps": 3}
    out = WordMask.execute(model=model, clip=clip, trajectory=trajectory, text=scene.caption(), **given)
    mask, soft, strip = out.args
    assert torch.equal(mask, found_words.hard) and torch.equal(soft, found_words.soft)
    assert torch.equal(strip, found_words.strip())


def test_defaults_of_the_nodes_are_those_of_the_functions():
    given, settings = defaults(InstantAttentionMask), Settings()
    for name in ("lambda1", "lambda2", "phi", "blur", "invert_start", "running_mean", "correlation", "edges"):
        assert given[name] == getattr(settings, name)
    own: Any = instant_mask.__kwdefaults__
    for name in ("seed", "seeds", "steps", "cfg", "scheduler", "strength", "words"):
        assert given[name] == own[name]
    given, own = defaults(WordMask), word_mask.__kwdefaults__
    assert [given[name] for name in ("steps", "start_percent", "end_percent", "threshold", "edges")] == [
        own[name] for name in ("steps", "start", "end", "threshold", "edges")
    ]
