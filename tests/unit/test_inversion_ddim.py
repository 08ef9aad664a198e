"""DDIM inversion against the equation itself, in float64 and in the paper's own variables."""

import math

import pytest
import torch

from latent_layers.inversion import ddim

# SD's noise levels in outline: from clean to nearly pure noise.
SIGMAS = torch.tensor([0.0, 0.03, 0.2, 0.7, 1.9, 5.5, 14.6])


def epsilon_network(latent: torch.Tensor, level: float) -> torch.Tensor:
    """A smooth, non-linear, position-dependent stand-in for a UNet; sees the VP latent."""
    mixed = 0.6 * latent.roll(1, dims=-1) - 0.3 * latent.flip(1) + 0.1 * math.log1p(level)
    return torch.tanh(mixed) + 0.2 * latent


def v_network(latent: torch.Tensor, level: float) -> torch.Tensor:
    return 0.3 * torch.sin(latent.roll(1, dims=-2) + math.log1p(level))


def epsilon_from_v(latent: torch.Tensor, level: float) -> torch.Tensor:
    """ε of a v-prediction: ε = √ᾱ·v + √(1−ᾱ)·x_t."""
    alpha_bar = 1 / (1 + level**2)
    return math.sqrt(alpha_bar) * v_network(latent, level) + math.sqrt(1 - alpha_bar) * latent


def equation(z: torch.Tensor, network, refinements: int, usual: bool) -> list[torch.Tensor]:
    """DDIM inversion as published: x_t = √ᾱ_t·z + √(1−ᾱ_t)·ε, float64, one x_t per level.

    Not `usual`: x_t is first estimated with the ε that led to the level below.
    """
    alpha_bars = [1 / (1 + float(sigma) ** 2) for sigma in SIGMAS]
    x_t = z.double()
    way = []
    below = None
    for low, high in zip(alpha_bars, alpha_bars[1:], strict=False):
        level = math.sqrt(1 / high - 1)

        def step(noise, x_t=x_t, low=low, high=high):
            predicted = (x_t - math.sqrt(1 - low) * noise) / math.sqrt(low)
            return math.sqrt(high) * predicted + math.sqrt(1 - high) * noise

        noise = network(x_t if below is None else step(below), level)
        for _ in range(refinements):
            noise = network(step(noise), level)
        x_t = step(noise)
        below = None if usual else noise
        way.append(x_t)
    return way


def host_model(network, prediction: str):
    """The host's view of a network: `denoised` from x at σ, as its EPS and V_PREDICTION classes compute it."""

    def denoise(x, sigma):
        sigma = float(sigma)
        scaled = x / math.sqrt(sigma**2 + 1)
        output = network(scaled, sigma)
        if prediction == "eps":
            return x - output * sigma
        return x / (sigma**2 + 1) - output * sigma / math.sqrt(sigma**2 + 1)

    return lambda x, sigma: (x - denoise(x, sigma)) / sigma


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 4, 9, 13), (3, 8, 5, 17)])
@pytest.mark.parametrize("refinements", [0, 1, 3])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("usual", [True, False])
def test_equals_the_equation(shape, refinements, prediction, usual):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    network = epsilon_network if prediction == "eps" else v_network
    expected = equation(z, epsilon_network if prediction == "eps" else epsilon_from_v, refinements, usual)
    found = list(ddim.invert(z, SIGMAS, host_model(network, prediction), refinements, usual=usual))
    assert len(found) == len(expected) == 6
    for sigma, x, x_t in zip(SIGMAS[1:], found, expected, strict=True):
        assert x.dtype == torch.float32
        # The host's x is the paper's x_t without its √ᾱ.
        expected_x = x_t * math.sqrt(1 + float(sigma) ** 2)
        assert ((x - expected_x).norm() / expected_x.norm()).item() < 1e-4


def test_first_step_shows_the_network_the_clean_latent():
    z = torch.randn(1, 4, 6, 6)
    seen = []

    def predict_noise(x, sigma):
        seen.append(x / math.sqrt(sigma**2 + 1))
        return torch.zeros_like(x)

    x = ddim.ddim_inversion_step(z, 0.0, 0.5, predict_noise)
    torch.testing.assert_close(seen[0], z)
    assert torch.equal(x, z)


def test_linear_model_has_the_analytic_result():
    """ε = c·(network input): a step multiplies x by 1 + c·Δσ/√(1+σ²), σ the lower level."""
    c = 0.4
    z = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    found = list(ddim.invert(z, SIGMAS.double(), lambda x, sigma: c * x / (sigma**2 + 1) ** 0.5, usual=True))
    factor = 1.0
    for low, high, x in zip(SIGMAS.tolist(), SIGMAS.tolist()[1:], found, strict=False):
        factor *= 1 + c * (high - low) / math.sqrt(1 + low**2)
        torch.testing.assert_close(x, factor * z, rtol=1e-6, atol=1e-9)


def test_refinements_converge_to_the_exact_inverse():
    """The fixed point is the x(σ') that one Euler step down takes back to x(σ)."""
    sigmas = torch.linspace(0, 3, 13, dtype=torch.float64)
    z = torch.randn(1, 4, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    predict_noise = host_model(epsilon_network, "eps")

    def error(refinements, usual=True):
        x = list(ddim.invert(z, sigmas, predict_noise, refinements, usual=usual))[-1]
        for high, low in zip(sigmas.flip(0), sigmas.flip(0)[1:], strict=False):
            x = x + (low - high) * predict_noise(x, high)
        return (x - z).abs().max().item()

    errors = [error(refinements) for refinements in range(6)]
    assert all(after < 0.5 * before for before, after in zip(errors, errors[1:], strict=False)), errors
    assert errors[5] < 1e-3 * errors[0]
    # the ε of the step below makes each smaller, for nothing
    started = [error(refinements, usual=False) for refinements in range(6)]
    assert all(a < 0.7 * b for a, b in zip(started, errors, strict=True)), (started, errors)


@pytest.mark.parametrize("spread", [4096.0, 16384.0])
@pytest.mark.parametrize("steps", [25, 50])
def test_the_round_trip_keeps_the_brightness_of_models_with_zero_terminal_snr(steps, spread):
    """The mean of N cells, in units of its own noise, has a spread of about sqrt(N): D = x·N/(N + σ²)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    root[-1] = 4.8973451890853435e-08**0.5
    levels = ((1 - root**2) / root**2).sqrt()
    assert levels[-1] > 4000
    sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), levels[torch.linspace(0, 999, steps).long()]])
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def predict_noise(x, sigma):
        return (x - x * spread / (spread + sigma**2)) / sigma

    def trip(refinements):
        x = list(ddim.invert(z, sigmas, predict_noise, refinements))[-1]
        for high, low in zip(sigmas.flip(0), sigmas.flip(0)[1:], strict=False):
            x = x + (low - high) * predict_noise(x, high)
        return x.item()

    assert abs(trip(0) - 1) < 0.12 and abs(trip(2) - 1) < 0.05


@pytest.mark.parametrize("refinements", [0, 2, 5])
def test_counts_evaluations(refinements):
    levels = []

    def predict_noise(x, sigma):
        levels.append(float(sigma))
        return x * 0.1

    z = torch.randn(1, 4, 4, 4)
    list(ddim.invert(z, SIGMAS, predict_noise, refinements))
    assert levels == [level for level in SIGMAS[1:].tolist() for _ in range(1 + refinements)]


def test_is_lazy_and_leaves_gradients_alone():
    """Abandoning the walk half-way evaluates nothing more, and grad mode is untouched between steps."""
    calls = []

    def predict_noise(x, sigma):
        calls.append(torch.is_grad_enabled())
        return x

    z = torch.randn(1, 4, 4, 4, requires_grad=True)
    walk = ddim.invert(z, SIGMAS, predict_noise)
    x = next(walk)
    assert torch.is_grad_enabled() and not x.requires_grad and calls == [False]


def test_input_is_not_modified():
    z = torch.randn(1, 4, 4, 4)
    before = z.clone()
    list(ddim.invert(z, SIGMAS, lambda x, sigma: x * 0.1, 1))
    assert torch.equal(z, before)
