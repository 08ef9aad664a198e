"""Invert and Trajectory To Latent through the nodes, on tiny models of the host's own classes."""

import comfy.hooks
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import comfy_extras.nodes_custom_sampler as host_nodes
import pytest
import torch

from latent_layers.nodes import trajectory as nodes

from .models import tiny_conditioning, tiny_model


@pytest.fixture(scope="module", params=["eps", "v"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


def schedule(model, steps: int = 8, name: str = "normal") -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, steps)


def picture(batch: int = 1, height: int = 10, width: int = 14, seed: int = 5) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(batch, 4, height, width, generator=generator) / 0.18215}


def invert(model, latent, sigmas, refinements=0, conditioning=None):
    conditioning = tiny_conditioning() if conditioning is None else conditioning
    return nodes.Invert.execute(model, conditioning, latent, sigmas, refinements)[0]


def retrace(model, trajectory, sigmas, sampler="euler", conditioning=None):
    guider = host_nodes.BasicGuider.execute(model, conditioning or tiny_conditioning())[0]
    output = nodes.Sample.execute(guider, comfy.samplers.sampler_object(sampler), sigmas, trajectory)
    return output[0], output[1]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture
def evaluations(model):
    """Batch sizes of the UNet's forward passes."""
    seen: list[int] = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    yield seen
    hook.remove()


@pytest.mark.parametrize("name", ["normal", "karras", "ddim_uniform", "beta"])
def test_round_trip_improves_with_refinements(model, name):
    sigmas, latent = schedule(model, 12, name), picture()
    errors = []
    for refinements in range(4):
        _, result = retrace(model, invert(model, latent, sigmas, refinements), sigmas)
        errors.append(relative(result["samples"], latent["samples"]))
    assert errors[0] < 0.4
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1] and errors[3] < 0.02, errors


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 72, 40), (1, 9, 13)])
def test_any_size_and_batch_comes_back(model, shape):
    sigmas, latent = schedule(model, 8), picture(*shape)
    trajectory = invert(model, latent, sigmas, 3)
    assert trajectory.shape == (shape[0], 4, *shape[1:])
    _, result = retrace(model, trajectory, sigmas)
    assert relative(result["samples"], latent["samples"]) < 0.05


@pytest.mark.parametrize("guaranteed", [0, 1])
def test_a_lora_that_changes_on_the_way_has_the_same_strength_up_and_down(model, guaranteed):
    """Hook keyframes: found by the noise level, though the host only ever moves on to the next one."""
    hook, keyframes, generator = comfy.hooks.WeightHook(), comfy.hooks.HookKeyframeGroup(), torch.Generator()
    weight = model.model.diffusion_model.out[2].weight
    change = torch.randn(weight.shape, generator=generator.manual_seed(3)) * weight.std()
    hook.weights, hook.need_weight_init = {"diffusion_model.out.2.weight": ("diff", (change,))}, False
    for strength, start in ((1.0, 0.1), (0.5, 0.3), (-1.0, 0.6)):  # the first counts before it begins, too
        keyframes.add(comfy.hooks.HookKeyframe(strength, start, guarantee_steps=guaranteed))
    hook.hook_keyframe = keyframes
    hooks = comfy.hooks.HookGroup()
    hooks.add(hook)
    hooks.add(comfy.hooks.TransformerOptionsHook({}))  # one without a schedule
    conditioning = [[tiny_conditioning()[0][0], {"hooks": hooks}]]

    strengths: list[float] = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda *_: strengths.append(hook.strength))
    sigmas, latent = schedule(model, 12), picture()
    trajectory = invert(model, latent, sigmas, 3, conditioning)
    upwards = strengths[::4]  # the first of the four evaluations of a step
    strengths.clear()
    _, result = retrace(model, trajectory, sigmas, conditioning=conditioning)
    handle.remove()
    assert set(strengths) == {1.0, 0.5, -1.0} and upwards == strengths[::-1]
    assert relative(result["samples"], latent["samples"]) < 0.05
    assert hook.hook_keyframe is keyframes
    assert relative(invert(model, latent, sigmas, 3).noisiest, trajectory.noisiest) > 1e-2


def test_images_of_a_batch_do_not_mix(model):
    sigmas, both = schedule(model), picture(2)
    trajectory = invert(model, both, sigmas)
    alone = invert(model, {"samples": both["samples"][1:]}, sigmas)
    assert relative(trajectory.noisiest[1:], alone.noisiest) < 1e-4
    assert relative(trajectory.noisiest[:1], alone.noisiest) > 0.1


@pytest.mark.parametrize("refinements", [0, 2, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_evaluations_are_exact(model, evaluations, refinements, batch):
    invert(model, picture(batch), schedule(model, 6), refinements)
    assert evaluations == [batch] * (6 * (1 + refinements))


def test_trajectory_is_in_the_models_own_space(model):
    sigmas, latent = schedule(model), picture()
    trajectory = invert(model, latent, sigmas)
    assert torch.equal(trajectory.sigmas, sigmas)
    assert torch.equal(trajectory.clean, model.model.process_latent_in(latent["samples"]))
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in trajectory.latents)


def test_equals_the_step_on_the_hosts_model(model):
    """One step, computed by hand from the host's `apply_model`."""
    sigmas, latent = torch.tensor([3.0, 0.7]), picture()
    trajectory = invert(model, latent, sigmas)
    low, high = sigmas[1], sigmas[0]
    x = model.model.process_latent_in(latent["samples"])
    seen = x * ((1 + high**2) / (1 + low**2)) ** 0.5
    denoised = model.model.apply_model(seen, high.expand(1), c_crossattn=tiny_conditioning()[0][0])
    torch.testing.assert_close(trajectory.noisiest, x + (high - low) * (seen - denoised) / high)


def test_either_direction_of_the_schedule(model):
    sigmas, latent = schedule(model), picture()
    down = invert(model, latent, sigmas)
    up = invert(model, latent, host_nodes.FlipSigmas.execute(sigmas)[0])
    assert torch.equal(up.sigmas, sigmas)
    assert torch.equal(up.noisiest, down.noisiest)


def test_only_the_lower_part_of_a_schedule(model):
    """A layer needs its inversion only up to where it is fused."""
    sigmas, latent = schedule(model), picture()
    low = host_nodes.SplitSigmas.execute(sigmas, 5)[1]
    whole, part = invert(model, latent, sigmas), invert(model, latent, low)
    assert part.steps == 3
    assert all(torch.equal(mine, whole.at(float(sigma))) for mine, sigma in zip(part.latents, low, strict=True))


def test_schedule_that_does_not_reach_zero(model):
    sigmas, latent = schedule(model)[:-1], picture()
    trajectory = invert(model, latent, sigmas)
    assert torch.equal(trajectory.latents[-1], model.model.process_latent_in(latent["samples"]))
    with pytest.raises(ValueError, match="no clean latent"):
        _ = trajectory.clean


def test_inputs_are_not_modified_and_masks_are_ignored(model):
    sigmas, latent = schedule(model), picture()
    before = (sigmas.clone(), latent["samples"].clone())
    plain = invert(model, latent, sigmas)
    masked = invert(model, latent | {"noise_mask": torch.zeros(1, 80, 112)}, sigmas)
    assert torch.equal(plain.noisiest, masked.noisiest)
    assert torch.equal(sigmas, before[0]) and torch.equal(latent["samples"], before[1])


def test_progress_counts_steps(model):
    shown = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: shown.append((value, total)))
    try:
        invert(model, picture(), schedule(model, 4), 1)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert shown[-1] == (4, 4) and all(total == 4 for _, total in shown)


def test_interrupt_leaves_nothing_behind(model):
    sigmas, latent = schedule(model, 6), picture()
    undisturbed = invert(model, latent, sigmas)
    options = model.model_options["transformer_options"].copy()
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()

    hook = model.model.diffusion_model.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            invert(model, latent, sigmas)
    finally:
        hook.remove()
    assert len(calls) == 3 and not comfy.model_management.processing_interrupted()
    assert model.model_options["transformer_options"] == options and not model.wrappers
    again = invert(model, latent, sigmas)
    assert all(torch.equal(a, b) for a, b in zip(again.latents, undisturbed.latents, strict=True))


def test_trajectory_to_latent(model):
    sigmas, latent = schedule(model, 6), picture(2)
    trajectory = invert(model, latent, sigmas)
    for step in (0, 3, 6):
        out = nodes.TrajectoryToLatent.execute(trajectory, step)[0]
        assert out["samples"].device == comfy.model_management.intermediate_device()
        assert torch.equal(out["samples"], model.model.process_latent_out(trajectory.latents[6 - step]))
    torch.testing.assert_close(nodes.TrajectoryToLatent.execute(trajectory)[0]["samples"], latent["samples"])
    with pytest.raises(ValueError, match=r"^Trajectory To Latent: step is 7, .*0 .*to 6"):
        nodes.TrajectoryToLatent.execute(trajectory, 7)


BAD_SIGMAS = {
    "has 0 value": [],
    "has 1 value": [1.0],
    "not strictly monotonic": [3.0, 1.0, 2.0, 0.0],
    "above the model's highest noise level": [80.0, 1.0, 0.0],
}


@pytest.mark.parametrize("message", BAD_SIGMAS)
def test_refuses_bad_schedules_before_any_work(model, evaluations, message):
    with pytest.raises(ValueError, match=f"^Invert: sigmas .*{message}|^Invert: sigmas.*{message}"):
        invert(model, picture(), torch.tensor(BAD_SIGMAS[message]))
    assert not evaluations


def test_refuses_other_bad_input_before_any_work(model, evaluations):
    sigmas = schedule(model)
    for refinements in (-1, 6):
        with pytest.raises(ValueError, match=r"^Invert: refinements is .*0 to 5"):
            invert(model, picture(), sigmas, refinements)
    with pytest.raises(ValueError, match=r"^Invert: latent has shape \(1, 16, 8, 8\).*4, height"):
        invert(model, {"samples": torch.zeros(1, 16, 8, 8)}, sigmas)
    with pytest.raises(ValueError, match=r"^Invert: latent has shape"):
        invert(model, {"samples": torch.zeros(1, 4, 3, 8, 8)}, sigmas)
    with pytest.raises(ValueError, match=r"^Invert: conditioning is empty"):
        invert(model, picture(), sigmas, conditioning=[])
    assert not evaluations


def test_refuses_models_that_follow_another_equation(model):
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = model.clone()
    flow.add_object_patch("model_sampling", Flow())
    with pytest.raises(ValueError, match=r"^Invert: the model predicts CONST; only .*SDXL"):
        invert(flow, picture(), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("node", nodes.NODES)
def test_schemas(node):
    node.VALIDATE_CLASS()
    schema = node.GET_SCHEMA()
    assert schema.node_id.startswith("LatentLayers") and schema.category == "latent layers/trajectory"
    assert schema.search_aliases and schema.description
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
