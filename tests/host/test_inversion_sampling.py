"""Sample through the node: every sampler of the host, recorded, against the host's own sampling."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import comfy_extras.nodes_custom_sampler as host_nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper

from latent_layers.inversion.trajectory import Trajectory
from latent_layers.nodes import trajectory as nodes

from .models import tiny_conditioning, tiny_model

# Samplers that add noise on the way: their result depends on the seed.
STOCHASTIC = {
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "exp_heun_2_x0_sde",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
}
SAMPLERS = comfy.samplers.SAMPLER_NAMES


@pytest.fixture(scope="module", params=["eps", "v"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def eps_model():
    return tiny_model("eps")


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def schedule(model, steps: int = 6) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def start(model, sigmas, batch: int = 1, height: int = 8, width: int = 10) -> tuple[Trajectory, dict]:
    """A trajectory of which only the noisiest latent matters, and the LATENT that the host takes for it."""
    noise = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(9))
    latent = noise * float(sigmas[0]) / 0.18215
    x = model.model.process_latent_in(latent)
    trajectory = Trajectory(
        sigmas, [x] + [torch.full_like(x, 99.0)] * (len(sigmas) - 1), None, model.model.latent_format
    )
    return trajectory, {"samples": latent}


def basic_guider(model, batch: int = 1):
    return host_nodes.BasicGuider.execute(model, tiny_conditioning(batch))[0]


def cfg_guider(model):
    negative = tiny_conditioning(seed=2)
    return host_nodes.CFGGuider.execute(model, tiny_conditioning(), negative, 3.0)[0]


def sample(guider, sampler, sigmas, trajectory, seed=0):
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    output = nodes.Sample.execute(guider, sampler, sigmas, trajectory, seed)
    return output[0], output[1]["samples"]


def host_sample(guider, sampler, sigmas, latent):
    """The host's own way: no noise added, so it starts at the latent itself."""
    noise = host_nodes.DisableNoise.execute()[0]
    sampler = comfy.samplers.sampler_object(sampler)
    # a copy: the host's uni_pc writes into the schedule
    return host_nodes.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas.clone(), latent)[0]["samples"]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_the_hosts_result(eps_model, name):
    sigmas = schedule(eps_model)
    trajectory, latent = start(eps_model, sigmas)
    before = sigmas.clone()
    sampled, result = sample(basic_guider(eps_model), name, sigmas, trajectory)
    expected = host_sample(basic_guider(eps_model), name, sigmas, latent)
    assert (result - expected).abs().max() == 0.0
    assert torch.equal(sampled.sigmas, sigmas) and torch.equal(sigmas, before)
    assert sampled.noisiest is trajectory.noisiest
    assert torch.equal(eps_model.model.process_latent_out(sampled.clean), result)
    assert all(x.isfinite().all() for x in sampled.latents)


@pytest.mark.parametrize("batch", [1, 2])
def test_v_prediction_and_cfg_give_the_hosts_result(model, batch):
    sigmas = schedule(model)
    trajectory, latent = start(model, sigmas, batch, 9, 5)
    _, result = sample(cfg_guider(model), "dpmpp_2m", sigmas, trajectory)
    assert torch.equal(result, host_sample(cfg_guider(model), "dpmpp_2m", sigmas, latent))


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2m", "ipndm", "ipndm_v", "lms", "euler_ancestral"])
def test_records_what_the_sampler_reaches(model, name):
    """The state at σ_i is what the host returns for a schedule that ends there."""
    sigmas = schedule(model)
    trajectory, latent = start(model, sigmas)
    sampled, _ = sample(basic_guider(model), name, sigmas, trajectory)
    for end in range(2, len(sigmas)):
        expected = host_sample(basic_guider(model), name, sigmas[:end], latent)
        torch.testing.assert_close(
            model.model.process_latent_out(sampled.latents[end - 1]), expected, rtol=1e-5, atol=1e-4
        )


@pytest.fixture(scope="module")
def curve(eps_model):
    """The model's own curve from the start, solved finely."""
    sigmas = schedule(eps_model, 12)
    parts = [torch.linspace(a, b, 9)[:-1] for a, b in zip(sigmas[:-2], sigmas[1:-1], strict=True)]
    fine = torch.cat([*parts, sigmas[-2:]])
    with torch.inference_mode():
        return sample(basic_guider(eps_model), "heun", fine, start(eps_model, fine)[0])[0]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in STOCHASTIC and "cfg_pp" not in name])
def test_records_the_same_way_with_every_solver(eps_model, curve, name):
    """Every deterministic solver follows the model's one curve: its records lie near a fine solution's."""
    sigmas = schedule(eps_model, 12)
    trajectory, _ = start(eps_model, sigmas)
    sampled, _ = sample(basic_guider(eps_model), name, sigmas, trajectory)
    assert len({x.data_ptr() for x in sampled.latents}) == len(sigmas)
    # Wide enough for multistep solvers in 12 steps and dpm_fast in 4, the rest interpolated; a record of the start
    # (relative error above 1) or in another scaling (0.9 at the top) is far outside.
    tolerance = 0.4
    for sigma, x in zip(sigmas[:-1], sampled.latents, strict=False):
        assert relative(x, curve.at(float(sigma))) < tolerance, f"at {float(sigma)}"


@pytest.mark.parametrize("name", sorted(STOCHASTIC & set(SAMPLERS)))
def test_noise_on_the_way_follows_the_seed(eps_model, name):
    sigmas = schedule(eps_model)
    trajectory, _ = start(eps_model, sigmas)
    results = [sample(basic_guider(eps_model), name, sigmas, trajectory, seed)[1] for seed in (7, 7, 8)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_churn_follows_the_seed_and_is_recorded_at_the_schedule(eps_model):
    """Churn lifts x above the schedule's σ with the global generator's noise."""
    churned = comfy.samplers.ksampler("euler", {"s_churn": 3.0})
    sigmas = schedule(eps_model)
    trajectory, _ = start(eps_model, sigmas)
    first, again, other = (sample(basic_guider(eps_model), churned, sigmas, trajectory, seed) for seed in (7, 7, 8))
    assert torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])
    assert torch.equal(first[0].sigmas, sigmas) and torch.equal(first[0].noisiest, trajectory.noisiest)


@pytest.mark.parametrize(("make", "batches"), [(basic_guider, 1), (cfg_guider, 2)])
def test_evaluations_are_the_hosts(model, make, batches):
    sigmas = schedule(model)
    trajectory, _ = start(model, sigmas)
    seen = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        sample(make(model), "euler", sigmas, trajectory)
    finally:
        hook.remove()
    assert seen == [batches] * 6


def test_parts_make_the_whole(model):
    sigmas = schedule(model)
    trajectory, _ = start(model, sigmas)
    whole, result = sample(basic_guider(model), "euler", sigmas, trajectory)
    split = host_nodes.SplitSigmas.execute(sigmas, 4)
    high, low = split[0], split[1]
    upper, middle = sample(basic_guider(model), "euler", high, trajectory)
    assert torch.equal(upper.sigmas, high)  # below, the old way belongs to another picture
    assert torch.equal(middle, model.model.process_latent_out(upper.latents[-1]))
    with pytest.raises(ValueError, match="no clean latent"):
        _ = upper.clean
    joined, end = sample(basic_guider(model), "euler", low, upper)
    assert torch.equal(end, result) and torch.equal(joined.sigmas, sigmas)
    assert all(torch.equal(a, b) for a, b in zip(joined.latents, whole.latents, strict=True))


def test_starts_in_the_middle_and_keeps_what_was_above(model):
    sigmas = schedule(model)
    trajectory, _ = start(model, sigmas)
    trajectory, _ = sample(basic_guider(model), "euler", sigmas, trajectory)
    low = sigmas[2:]
    edited, _ = sample(cfg_guider(model), "euler", low, trajectory)
    assert torch.equal(edited.sigmas, sigmas)
    assert all(mine is theirs for mine, theirs in zip(edited.latents[:2], trajectory.latents[:2], strict=True))
    assert torch.equal(edited.latents[2], trajectory.latents[2])
    assert not torch.equal(edited.clean, trajectory.clean)


def test_inputs_stay_as_they_are(model):
    sigmas = schedule(model)
    trajectory, _ = start(model, sigmas)
    before = [x.clone() for x in trajectory.latents]
    guider = basic_guider(model)
    attributes, options = dict(vars(guider)), comfy.model_patcher.create_model_options_clone(model.model_options)

    def overwrite(executor, x, timestep, *args, **kwargs):
        denoised = executor(x, timestep, *args, **kwargs)
        x.zero_()  # a sampler or another pack that works in place
        return denoised

    patched = model.clone()
    patched.add_wrapper(WrappersMP.PREDICT_NOISE, overwrite)
    for one in (guider, basic_guider(patched)):
        sample(one, "euler", sigmas, trajectory)
    assert all(torch.equal(x, old) for x, old in zip(trajectory.latents, before, strict=True))
    assert vars(guider) == attributes and model.model_options == options


@pytest.mark.parametrize("on_options", [False, True])
def test_records_inside_of_other_wrappers(model, on_options):
    """What another node does to the sampler's x and result (as Keep Source) is in the record."""
    sigmas = schedule(model)
    trajectory, _ = start(model, sigmas)

    def predict_noise(executor, x, timestep, *args, **kwargs):
        x[..., 0] = timestep[0]
        return executor(x, timestep, *args, **kwargs)

    def sampler_sample(executor, *args, **kwargs):
        samples = executor(*args, **kwargs).clone()
        samples[..., 0] = 5.0
        return samples

    patched = model.clone()
    for kind, wrapper in ((WrappersMP.PREDICT_NOISE, predict_noise), (WrappersMP.SAMPLER_SAMPLE, sampler_sample)):
        if on_options:  # as hooks and some packs do it
            add_wrapper(kind, wrapper, patched.model_options, is_model_options=True)
        else:
            patched.add_wrapper(kind, wrapper)
    sampled, result = sample(basic_guider(patched), "euler", sigmas, trajectory)
    for sigma, x in zip(sigmas[:-1], sampled.latents, strict=False):
        assert (x[..., 0] == sigma).all()
    assert (sampled.clean[..., 0] == 5.0).all()
    assert torch.equal(result, model.model.process_latent_out(sampled.clean))


def test_progress_counts_steps(model):
    sigmas = schedule(model, 4)
    shown = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: shown.append((value, total)))
    try:
        sample(basic_guider(model), "euler", sigmas, start(model, sigmas)[0])
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert shown[-1] == (4, 4) and all(total == 4 for _, total in shown)


def test_interrupt_leaves_nothing_behind(model):
    sigmas = schedule(model)
    trajectory, _ = start(model, sigmas)
    guider = basic_guider(model)
    undisturbed, _ = sample(guider, "euler_ancestral", sigmas, trajectory, 3)
    attributes, options = dict(vars(guider)), comfy.model_patcher.create_model_options_clone(model.model_options)
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()

    hook = model.model.diffusion_model.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(guider, "euler_ancestral", sigmas, trajectory, 3)
    finally:
        hook.remove()
    assert len(calls) == 3 and not comfy.model_management.processing_interrupted()
    assert vars(guider) == attributes and model.model_options == options
    again, _ = sample(guider, "euler_ancestral", sigmas, trajectory, 3)
    assert all(torch.equal(a, b) for a, b in zip(again.latents, undisturbed.latents, strict=True))


def test_refuses_what_does_not_fit_before_any_work(model):
    sigmas = schedule(model)
    trajectory = nodes.Invert.execute(model, tiny_conditioning(), {"samples": torch.ones(1, 4, 8, 8)}, sigmas[-3:])[0]
    calls = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: calls.append(1))
    other = tiny_model({"EPS": "v", "V_PREDICTION": "eps"}[trajectory.family.prediction])
    guider = basic_guider(model)
    try:
        with pytest.raises(ValueError, match=r"^Sample: sigmas: σ .*not a point of the trajectory.*same scheduler"):
            sample(guider, "euler", sigmas, trajectory)
        with pytest.raises(ValueError, match=r"^Sample: sigmas go up.*FlipSigmas"):
            sample(guider, "euler", sigmas[-3:].flip(0), trajectory)
        with pytest.raises(ValueError, match=r"^Sample: sigmas has 0 value"):
            sample(guider, "euler", sigmas[:0], trajectory)
        with pytest.raises(ValueError, match=r"^Sample: trajectory: the model is of another family"):
            sample(basic_guider(other), "euler", sigmas[-3:], trajectory)
        with pytest.raises(ValueError, match=r"^Sample: trajectory: the model is of another family"):
            sample(basic_guider(tiny_model(latent_channels=8)), "euler", sigmas[-3:], trajectory)
    finally:
        hook.remove()
    assert not calls
