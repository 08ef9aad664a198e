"""Keep Source inside the real host: equation 2 with every sampler, exact where nothing is edited."""

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale

from latent_layers.attention.host import apply_keep_source, apply_key_mask
from latent_layers.inversion.host import model_family, sample_recording
from latent_layers.inversion.trajectory import Trajectory
from latent_layers.masks.grid import cover
from latent_layers.nodes.attention import KeepSource

from . import layouts

SIZE = (16, 24)


@pytest.fixture(scope="module")
def model():
    return layouts.narrow("sd15")


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


def schedule(model, steps=6):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def source(model, batch=1, steps=6, size=SIZE):
    """Some trajectory: a picture with fresh noise at every sigma, so that only an exact look-up can match."""
    clean = layouts.latents(batch, *size, seed=20)
    sigmas = schedule(model, steps)
    return Trajectory(
        sigmas, [clean + s * layouts.latents(batch, *size, seed=i) for i, s in enumerate(sigmas.tolist())]
    )


def sample(model, sampler="euler", batch=1, size=SIZE, cfg=1.0, sigmas=None, callback=None, denoise_mask=None):
    return comfy.samplers.sample(
        model,
        layouts.latents(batch, *size, seed=5),
        layouts.conditioning("sd15"),
        layouts.conditioning("sd15", seed=9),
        cfg,
        model.load_device,
        comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler,
        schedule(model) if sigmas is None else sigmas,
        model.model_options,
        latent_image=layouts.latents(batch, *size),
        denoise_mask=denoise_mask,
        callback=callback,
        disable_pbar=True,
        seed=1,
    )


def box():
    return layouts.box(128, 192, 0.25, 0.75, 0.25, 0.75)


def kept(mask=None, size=SIZE):
    """Latent cells that are kept whole, bool (1 or B, 1, h, w)."""
    return cover(box() if mask is None else mask, *size)[:, None] == 0


def watched(model):
    """Records (sigma, x) as the model gets it."""
    seen = []

    def look(executor, x, t, *args, **kwargs):
        seen.append((float(t[0]), x.clone()))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper(WrappersMP.APPLY_MODEL, look)
    return seen


def clean_of(model, trajectory):
    return model.model.process_latent_out(trajectory.clean.clone())


def largest(tensor, where):
    return tensor.abs()[where.expand_as(tensor)].max().item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_keeps_the_source_exactly(model, sampler):
    trajectory = source(model)
    patched = apply_keep_source(model, trajectory, box())
    seen = watched(patched)
    result = sample(patched, sampler, cfg=2.0)
    assert largest(result - clean_of(model, trajectory), kept()) == 0.0
    assert largest(result - clean_of(model, trajectory), ~kept()) > 0.1
    assert torch.isfinite(result).all()
    for sigma, x in seen:
        want = trajectory.at(min(sigma, float(trajectory.sigmas[0])))
        assert largest(x - want, kept()) == 0.0


def free(mask, done, steps):
    """M of equation 2 after so many steps, cell by cell in plain numbers."""
    out = torch.zeros_like(mask, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).tolist():
        strength = float(mask[tuple(index)])
        released = (1 - strength) * steps  # the step from which the cell is free
        share = 0.0 if done <= released - 1 else min(1.0, done - released + 1)
        out[tuple(index)] = share if strength > 0 else 0.0
    return out


def test_euler_with_a_soft_mask_follows_the_source_for_as_long_as_it_is_black(model):
    trajectory = source(model)
    soft = torch.rand(1, 128, 192, generator=torch.Generator().manual_seed(3))
    soft[:, :64], soft[:, 64:96, 96:] = 0, 1
    soft[:, 96:, :96] = torch.linspace(0, 1, 32)[:, None]
    patched = apply_keep_source(model, trajectory, soft)
    seen, predictions = watched(patched), []
    result = sample(patched, callback=lambda i, denoised, x, total: predictions.append(denoised.clone()))
    mask = cover(soft, *SIZE)[:, None]
    sigmas, steps = trajectory.sigmas.tolist(), len(predictions)
    x = seen[0][1]
    for i, denoised in enumerate(predictions):
        assert torch.allclose(seen[i][1], x, atol=1e-4)
        now = free(mask, i, steps).float()
        assert largest(denoised - trajectory.clean, now == 0) == 0.0
        step = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        now = free(mask, i + 1, steps).float()
        x = step * now + trajectory.at(sigmas[i + 1]) * (1 - now)
    assert torch.allclose(result, model.model.process_latent_out(x), atol=1e-4)
    assert largest(result - clean_of(model, trajectory), mask == 0) == 0.0


def test_previews_show_the_source(model):
    trajectory, shown = source(model), []
    sample(apply_keep_source(model, trajectory, box()), callback=lambda i, denoised, x, n: shown.append((denoised, x)))
    for i, (denoised, x) in enumerate(shown):
        assert largest(denoised - trajectory.clean, kept()) == 0.0
        assert largest(x - trajectory.latents[i], kept()) == 0.0


def test_the_first_evaluation_starts_from_the_sources_noisiest_latent(model):
    trajectory = source(model)
    patched = apply_keep_source(model, trajectory, box())
    seen = watched(patched)
    sample(patched)
    plain = watched(free := model.clone())
    sample(free)
    assert largest(seen[0][1] - trajectory.noisiest, kept()) == 0.0
    assert largest(seen[0][1] - plain[0][1], ~kept()) < 1e-5


@pytest.mark.parametrize("batches", [(2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 2, 2)])
def test_batches(model, batches):
    images, trajectories, masks = batches
    trajectory = source(model, trajectories)
    mask = torch.cat([box(), layouts.box(128, 192, 0.0, 0.5, 0.0, 0.5)])[:masks]
    result = sample(apply_keep_source(model, trajectory, mask), batch=images)
    off = (result - clean_of(model, trajectory)).abs()
    assert largest(off, kept(mask)) == 0.0
    if masks == 2:
        assert largest(off[:1], kept(mask)[1:] & ~kept(mask)[:1]) > 0.1


def test_a_range_that_ends_early_lets_go(model):
    trajectory = source(model)
    patched = apply_keep_source(model, trajectory, box(), end=0.5)
    lowest = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    seen = watched(patched)
    result = sample(patched)
    for sigma, x in seen:
        assert (largest(x - trajectory.at(sigma), kept()) == 0.0) == (sigma >= lowest)
    assert largest(result - clean_of(model, trajectory), kept()) > 0.0


def test_part_of_a_schedule_returns_the_trajectory_there(model):
    trajectory = source(model)
    part = trajectory.sigmas[:4]
    result = sample(apply_keep_source(model, trajectory, box()), sigmas=part)
    want = model.model.process_latent_out(trajectory.at(float(part[-1])).clone())
    assert largest(result - want, kept()) == 0.0


def test_recorded_sampling_records_the_kept_source(model):
    trajectory = source(model)
    guider = comfy.samplers.CFGGuider(apply_keep_source(model, trajectory, box()))
    guider.set_conds(layouts.conditioning("sd15"), layouts.conditioning("sd15", seed=9))
    for sampler in ("euler", "dpmpp_2m", "heun", "uni_pc", "sa_solver"):
        recorded, _ = sample_recording(guider, comfy.samplers.sampler_object(sampler), trajectory.sigmas, trajectory)
        for got, want in zip(recorded.latents, trajectory.latents, strict=True):
            assert largest(got - want, kept()) == 0.0


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "uni_pc", "uni_pc_bh2"])
@pytest.mark.parametrize("grey, end", [(0.5, 1.0), (0.0, 0.5)])
def test_what_is_released_on_the_way_goes_on_from_the_source(model, sampler, grey, end):
    """A model that predicts the source wherever it is: released cells have to end there, from any noise."""
    clean, sigmas = layouts.latents(1, *SIZE, seed=20), schedule(model, 12)
    trajectory = Trajectory(sigmas, [clean + s * layouts.latents(1, *SIZE, seed=21) for s in sigmas.tolist()])
    sure = model.clone()
    sure.set_model_sampler_post_cfg_function(lambda args: clean.to(args["denoised"]))
    mask = torch.where(box() > 0, box(), torch.full_like(box(), grey))
    result = sample(apply_keep_source(sure, trajectory, mask, end=end), sampler, sigmas=sigmas)
    assert (model.model.process_latent_in(result) - clean).abs().max() < 0.02


def test_with_a_noise_mask_of_the_host(model):
    trajectory = source(model)
    noise_mask = box()[:, None]
    result = sample(apply_keep_source(model, trajectory, box()), denoise_mask=noise_mask)
    assert largest(result - clean_of(model, trajectory), kept()) == 0.0


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_together_with_a_key_mask_in_either_order(model, guidance):
    trajectory = source(model)
    first = apply_key_mask(apply_keep_source(model, trajectory, box()), box(), guidance=guidance)
    second = apply_keep_source(apply_key_mask(model, box(), guidance=guidance), trajectory, box())
    result = sample(first, cfg=2.0)
    assert (result - sample(second, cfg=2.0)).abs().max() == 0.0
    assert largest(result - clean_of(model, trajectory), kept()) == 0.0
    assert largest(result - sample(apply_keep_source(model, trajectory, box()), cfg=2.0), ~kept()) > 1e-2


def test_two_on_one_model(model):
    left, right = layouts.box(128, 192, 0, 1, 0, 0.5), layouts.box(128, 192, 0, 1, 0.5, 1)
    one, two = source(model), source(model)
    result = sample(apply_keep_source(apply_keep_source(model, one, left), two, right))
    assert largest(result - clean_of(model, one), kept(left)) == 0.0
    assert largest(result - clean_of(model, two), kept(right)) == 0.0


def test_the_model_stays_as_it_was_and_runs_repeat(model):
    plain, trajectory = sample(model), source(model)
    copies = [latent.clone() for latent in trajectory.latents]
    patched = apply_keep_source(model, trajectory, box())
    first = sample(patched)
    assert (first - sample(patched)).abs().max() == 0.0
    assert (sample(model) - plain).abs().max() == 0.0
    assert all(torch.equal(a, b) for a, b in zip(trajectory.latents, copies, strict=True))


def test_an_interrupted_run_leaves_nothing(model):
    patched = apply_keep_source(model, source(model), box())
    before, broken, calls = sample(patched), patched.clone(), []

    def interrupt(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError
        return executor(*args, **kwargs)

    broken.add_wrapper(WrappersMP.DIFFUSION_MODEL, interrupt)
    with pytest.raises(InterruptedError):
        sample(broken)
    keep = patched.wrappers[WrappersMP.SAMPLER_SAMPLE]["latent_layers_keep_source"][0].__self__
    assert keep.range._bounds is None
    assert (sample(patched) - before).abs().max() == 0.0


def test_an_empty_range_is_the_unpatched_model(model):
    patched = apply_keep_source(model, source(model), box(), start=0.99999, end=1.0)
    part = schedule(model)[:4]
    assert (sample(patched, sigmas=part) - sample(model, sigmas=part)).abs().max() == 0.0


def test_errors_of_the_node(model):
    trajectory = source(model)
    for mask, options, text in [
        (torch.zeros(1, 128, 192), {}, r"Keep Source: mask is empty \(all 0\); paint the area to edit"),
        (torch.ones(1, 128, 192), {}, "mask is full"),
        (layouts.box(128, 128, 0.2, 0.8, 0.2, 0.8), {}, "mask is 128x128, another shape than the latent's 24x16"),
        (box(), {"start": 0.5, "end": 0.5}, "start is 0.5 and end is 0.5"),
    ]:
        with pytest.raises(ValueError, match=text):
            apply_keep_source(model, trajectory, mask, **options)
    with pytest.raises(ValueError, match="mask has a batch of 2 for 3 image"):
        apply_keep_source(model, source(model, 3), torch.cat([box()] * 2))


def test_errors_before_the_model_is_loaded(model, monkeypatch):
    monkeypatch.setattr(comfy.samplers.comfy.sampler_helpers, "prepare_sampling", None)
    with pytest.raises(ValueError, match="Keep Source: trajectory: .* is not a point of the trajectory"):
        sample(apply_keep_source(model, source(model, steps=9), box()))
    with pytest.raises(ValueError, match="Keep Source: trajectory: latents are 24×16 latent pixels"):
        sample(apply_keep_source(model, source(model, size=(24, 16)), box().mT))
    with pytest.raises(ValueError, match="2 in the trajectory"):
        sample(apply_keep_source(model, source(model, 2), box()), batch=3)
    with pytest.raises(ValueError, match="mask has a batch of 2 for 3 image"):
        sample(apply_keep_source(model, source(model), torch.cat([box()] * 2)), batch=3)
    high = source(model).part(low=1.0)
    with pytest.raises(ValueError, match="the trajectory ends at sigma"):
        sample(apply_keep_source(model, high, box()))


def test_a_trajectory_of_another_model_is_refused(model):
    other = layouts.narrow("sdxl")
    trajectory = source(model)
    made = Trajectory(trajectory.sigmas, trajectory.latents, model_family(other, "test"))
    with pytest.raises(ValueError, match="^Keep Source: trajectory: the model is of another family"):
        apply_keep_source(model, made, box())


def test_a_sampler_that_changes_the_size_on_the_way_is_named(model):
    (upscaling,) = SamplerLCMUpscale.execute(2.0, -1, "bislerp").args
    with pytest.raises(ValueError, match="Keep Source: the sampler has changed the picture's size .* from 24×16"):
        sample(apply_keep_source(model, source(model), box()), upscaling)


def test_a_schedule_that_another_node_has_kept_stays_what_it_is(model):
    """uni_pc writes 0.001 for the last 0, and the host's BasicScheduler is not run again."""
    sigmas = schedule(model)
    first, again = (sample(apply_keep_source(model, source(model), box()), "uni_pc", sigmas=sigmas) for _ in range(2))
    assert torch.equal(sigmas, schedule(model)) and torch.equal(first, again)


def test_the_node(model):
    trajectory = source(model)
    (patched,) = KeepSource.execute(model, trajectory, box(), 0.0, 1.0).args
    assert (sample(patched) - sample(apply_keep_source(model, trajectory, box()))).abs().max() == 0.0
    assert all(i.tooltip for i in KeepSource.define_schema().inputs)
