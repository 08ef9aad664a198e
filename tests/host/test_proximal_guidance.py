"""Proximal Guidance inside the real host: the published step, with every sampler and beside other guidances."""

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale

from latent_layers.attention.host import apply_key_mask
from latent_layers.inversion.host import model_family
from latent_layers.inversion.proximal_host import Settings, apply_proximal_guidance
from latent_layers.inversion.trajectory import Trajectory
from latent_layers.nodes.proximal import ProximalGuidance

from . import layouts

SIZE = (16, 24)
CFG = 5.0


both_layouts = pytest.mark.parametrize("layout", ["sd15", "sdxl"], indirect=True)


@pytest.fixture(scope="module")
def layout(request):
    return getattr(request, "param", "sd15")


@pytest.fixture(scope="module")
def model(layout):
    return layouts.narrow(layout)


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


def schedule(model, steps=6):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def source(model, batch=1, steps=6, size=SIZE, family=None):
    """Some trajectory: a picture with fresh noise at every sigma, so that only an exact look-up can match."""
    clean, sigmas = layouts.latents(batch, *size, seed=20), schedule(model, steps)
    latents = [clean + s * layouts.latents(batch, *size, seed=i) for i, s in enumerate(sigmas.tolist())]
    return Trajectory(sigmas, latents, family)


def sample(model, layout, sampler="euler", batch=1, cfg=CFG, callback=None, size=SIZE, negative=9):
    # euler hands its own x to the callback, at the start of a step
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return comfy.samplers.sample(
        model, layouts.latents(batch, *size, seed=5), layouts.conditioning(layout),
        layouts.conditioning(layout, seed=negative), cfg, model.load_device, sampler,
        schedule(model), model.model_options, latent_image=layouts.latents(batch, *size), callback=callback,
        disable_pbar=True, seed=1,
    )  # fmt: skip


def predictions(model):
    """Records what the host hands to post-CFG functions, first of them."""
    seen = []

    def look(args):
        seen.append({key: args[key].clone() for key in ("cond_denoised", "uncond_denoised", "input", "sigma")})
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(look)
    return seen


def published(seen, trajectory, settings, model, cfg=CFG):
    """ProxEdit's loop with euler steps in float64, on the recorded predictions: x at every level."""
    sigmas = [float(s) for s in trajectory.sigmas]
    lowest = float(model.get_model_object("model_sampling").percent_to_sigma(settings.start))
    x, states = seen[0]["input"].double(), []
    for i, step in enumerate(seen):
        cond, uncond = (step[key].double() for key in ("cond_denoised", "uncond_denoised"))
        delta = (uncond - cond) / sigmas[i]  # of eps, cond - uncond
        moved, areas = [], []
        for picture in delta:
            flat = picture.abs().flatten().sort().values
            limit = flat[round(settings.quantile * (len(flat) - 1))]
            above = picture.abs() > limit
            shrunk = picture.sign() * (picture.abs() - limit).clamp(min=0)
            moved.append({"l0": picture * above, "l1": shrunk, "none": picture}[settings.mode])
            r = settings.dilation
            padded = torch.nn.functional.pad(above[None].double(), (r, r, r, r))
            areas.append(torch.nn.functional.unfold(padded.movedim(1, 0), 2 * r + 1).amax(1).view_as(picture))
        eps = (x - uncond) / sigmas[i] + cfg * torch.stack(moved)
        x = x + (sigmas[i + 1] - sigmas[i]) * eps
        if sigmas[i] <= lowest:
            x = x - settings.strength * (x - trajectory.latents[i + 1].double()) * (1 - torch.stack(areas))
        states.append(x)
    return states


@both_layouts
@pytest.mark.parametrize("mode", ["l0", "l1", "none"])
def test_euler_takes_the_published_steps(model, layout, mode):
    trajectory, settings = source(model), Settings(mode, quantile=0.9, dilation=1, strength=0.3, start=0.4)
    patched = apply_proximal_guidance(model, trajectory, settings)
    seen = predictions(patched)
    result = sample(patched, layout, batch=2)
    states = published(seen, trajectory, settings, model)
    for step, want in zip(seen[1:], states, strict=False):
        assert torch.allclose(step["input"].double(), want, rtol=1e-4, atol=2e-3)
    want = model.model.process_latent_out(states[-1].float())
    assert torch.allclose(result, want, rtol=1e-4, atol=2e-2)
    assert (result - sample(model, layout, batch=2)).abs().max() > 0.5


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
@pytest.mark.filterwarnings("ignore")
def test_every_sampler_runs_and_a_full_pull_without_guidance_is_the_source(sampler):
    model = layouts.narrow("sd15")
    trajectory = source(model)
    # the same prompt on both sides: there is no guidance, so nothing is edited
    patched = apply_proximal_guidance(model, trajectory, Settings(strength=1.0, start=0.0))
    result = sample(patched, "sd15", sampler, negative=1)
    assert torch.equal(result, model.model.process_latent_out(trajectory.clean.clone()))
    weaker = sample(apply_proximal_guidance(model, trajectory), "sd15", sampler)
    assert torch.isfinite(weaker).all()


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
@pytest.mark.filterwarnings("ignore")
def test_with_every_sampler_a_pull_on_the_way_leads_to_the_source(model, sampler):
    """Without the last pull, of what is returned."""
    clean, noise, sigmas = layouts.latents(1, *SIZE, seed=20), layouts.latents(1, *SIZE, seed=5), schedule(model)
    trajectory = Trajectory(sigmas, [clean + s * noise for s in sigmas.tolist()])
    near = []
    for strength in (0.0, 0.3):
        patched = apply_proximal_guidance(model, trajectory, Settings("none", strength=strength, start=0.0))
        result = sample(patched, "sd15", sampler, negative=1)  # the same prompt on both sides: nothing is edited
        latent = model.model.process_latent_in(result)
        latent = (latent - strength * clean) / (1 - strength)
        near.append((latent - clean).square().mean().sqrt().item())
    assert near[1] < near[0], near


def test_nothing_to_do_is_the_unpatched_model_to_the_last_bit(model, layout):
    trajectory, plain = source(model), sample(model, layout)
    assert torch.equal(sample(apply_proximal_guidance(model, trajectory, Settings("none", strength=0)), layout), plain)
    # without CFG there is no guidance to threshold and no region
    at_one = sample(model, layout, cfg=1.0)
    assert torch.equal(sample(apply_proximal_guidance(model, trajectory), layout, cfg=1.0), at_one)
    thresholded = sample(apply_proximal_guidance(model, trajectory, Settings(strength=0)), layout)
    assert (thresholded - plain).abs().max() > 1e-2


def test_what_is_dropped_follows_the_negative(model, layout):
    all_dropped = Settings("l0", quantile=1.0, strength=0.0)
    result = sample(apply_proximal_guidance(model, source(model), all_dropped), layout)
    swapped = model.clone()
    swapped.set_model_sampler_post_cfg_function(lambda args: args["uncond_denoised"])
    negative = sample(swapped, layout)
    assert torch.allclose(result, negative, rtol=1e-3, atol=2e-2)


def test_batches_have_thresholds_and_sources_of_their_own(model, layout):
    settings = Settings(strength=0.3, start=0.0)
    patched = apply_proximal_guidance(model, source(model, batch=2), settings)
    both = sample(patched, layout, batch=2)
    for i in range(2):
        one = source(model, batch=2)
        single = Trajectory(one.sigmas, [x[i : i + 1] for x in one.latents])
        alone = apply_proximal_guidance(model, single, settings)
        noise, latent = (layouts.latents(2, *SIZE, seed=seed)[i : i + 1] for seed in (5, 2))
        result = comfy.samplers.sample(
            alone, noise, layouts.conditioning(layout), layouts.conditioning(layout, seed=9), CFG, model.load_device,
            comfy.samplers.sampler_object("euler"), schedule(model), alone.model_options, latent_image=latent,
            disable_pbar=True, seed=1,
        )  # fmt: skip
        assert torch.allclose(both[i : i + 1], result, rtol=1e-3, atol=5e-2)


def test_beside_other_guidance_it_takes_away_only_its_own(model, layout):
    """Another pack's CFG function and key-mask guidance: at one evaluation the changes add up."""
    trajectory = source(model)
    mask = layouts.box(128, 192, 0.25, 0.75, 0.25, 0.75)

    def first_step(patched):
        seen = []
        patched.set_model_sampler_post_cfg_function(lambda args: seen.append(args["denoised"]) or args["denoised"])
        sample(patched, layout)
        return seen[0]

    def other(args):
        return args["uncond"] + 1.5 * (args["cond"] - args["uncond"])

    strange = model.clone()
    strange.set_model_sampler_cfg_function(other)
    dropped = first_step(apply_proximal_guidance(model, trajectory)) - first_step(model.clone())
    for base in (strange, apply_key_mask(model, mask, guidance=3.0)):
        before = first_step(base.clone())
        after = first_step(apply_proximal_guidance(base, trajectory))
        assert torch.allclose(after - before, dropped, rtol=1e-3, atol=1e-2)
        assert dropped.abs().max() > 1e-2
    first = apply_key_mask(apply_proximal_guidance(model, trajectory), mask, guidance=3.0)
    second = apply_proximal_guidance(apply_key_mask(model, mask, guidance=3.0), trajectory)
    assert torch.allclose(sample(first, layout), sample(second, layout), rtol=1e-3, atol=5e-2)


@both_layouts
def test_other_precision_and_shape(layout):
    model = layouts.narrow(layout, torch.bfloat16)
    trajectory = source(model, size=(17, 25))
    result = sample(apply_proximal_guidance(model, trajectory, Settings(start=0.0)), layout, size=(17, 25))
    assert torch.isfinite(result).all() and result.shape == (1, 4, 17, 25)


def test_the_model_stays_as_it_was_and_runs_repeat(model, layout):
    plain, trajectory = sample(model, layout), source(model)
    copies = [latent.clone() for latent in trajectory.latents]
    patched = apply_proximal_guidance(model, trajectory)
    first = sample(patched, layout)
    assert torch.equal(first, sample(patched, layout))
    assert torch.equal(sample(model, layout), plain)
    assert all(torch.equal(a, b) for a, b in zip(trajectory.latents, copies, strict=True))


def test_an_interrupted_run_leaves_nothing(model, layout):
    patched = apply_proximal_guidance(model, source(model), Settings(start=0.0))
    before, broken, calls = sample(patched, layout), patched.clone(), []

    def interrupt(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise InterruptedError
        return executor(*args, **kwargs)

    broken.add_wrapper(WrappersMP.DIFFUSION_MODEL, interrupt)
    with pytest.raises(InterruptedError):
        sample(broken, layout)
    assert torch.equal(sample(patched, layout), before)


def test_the_node_hands_its_inputs_on(model, layout):
    trajectory = source(model)
    (patched,) = ProximalGuidance.execute(model, trajectory, "l1", 0.8, 1, 0.2, 0.5).args
    want = apply_proximal_guidance(model, trajectory, Settings("l1", 0.8, 1, 0.2, 0.5))
    assert torch.equal(sample(patched, layout), sample(want, layout))
    inputs: list[Any] = ProximalGuidance.define_schema().inputs
    defaults = {i.id: i.default for i in inputs if hasattr(i, "default")}
    assert list(defaults.values())[-5:] == [*vars(Settings()).values()]


def test_errors_come_before_the_model_is_loaded(model, layout, monkeypatch):
    with pytest.raises(ValueError, match="Proximal Guidance: quantile is 1.2"):
        apply_proximal_guidance(model, source(model), Settings(quantile=1.2))
    other = model_family(layouts.narrow("sdxl" if layout == "sd15" else "sd15"), "test")
    with pytest.raises(ValueError, match="Proximal Guidance: trajectory: the model is of another family"):
        apply_proximal_guidance(model, source(model, family=other))
    monkeypatch.setattr(comfy.samplers.comfy.sampler_helpers, "prepare_sampling", None)
    with pytest.raises(ValueError, match="Proximal Guidance: trajectory: .* is not a point of the trajectory"):
        sample(apply_proximal_guidance(model, source(model, steps=9)), layout)
    with pytest.raises(ValueError, match="Proximal Guidance: trajectory: latents are 24×16 latent pixels"):
        sample(apply_proximal_guidance(model, source(model, size=(16, 16))), layout)
    with pytest.raises(ValueError, match="Proximal Guidance: trajectory: 1 latent"):
        sample(apply_proximal_guidance(model, source(model, batch=3)), layout)
    whole = source(model)
    part = Trajectory(whole.sigmas[:-2], whole.latents[:-2])
    with pytest.raises(ValueError, match="Proximal Guidance: the trajectory ends at sigma"):
        sample(apply_proximal_guidance(model, part, Settings(start=0.0)), layout)


def test_a_sampler_that_changes_the_size_on_the_way_is_named(model, layout):
    (upscaling,) = SamplerLCMUpscale.execute(2.0, -1, "bislerp").args
    with pytest.raises(ValueError, match="Proximal Guidance: the sampler has changed the picture's size .* from 24×16"):
        sample(apply_proximal_guidance(model, source(model)), layout, upscaling)


def test_a_schedule_that_another_node_has_kept_stays_what_it_is(model, layout, monkeypatch):
    """uni_pc writes 0.001 for the last 0, and the host's BasicScheduler is not run again."""
    sigmas = schedule(model)
    monkeypatch.setitem(globals(), "schedule", lambda *_: sigmas)
    patched = apply_proximal_guidance(model, Trajectory(sigmas.clone(), source(model).latents))
    first, again = (sample(patched, layout, "uni_pc") for _ in range(2))
    assert float(sigmas[-1]) == 0 and torch.equal(first, again)
