"""Ranges in percent, guidance over them, and equation 2."""

import pytest
import torch

from latent_layers.attention.keep_source import KeepSourceRun, blend
from latent_layers.attention.schedule import PercentRange, check_range, guidance_at, guided
from latent_layers.inversion.trajectory import Trajectory


class Sampling:
    """A model_sampling whose sigma falls with the square of the percent left."""

    def percent_to_sigma(self, percent):
        return 999999999.9 if percent <= 0 else 14 * (1 - percent) ** 2

    def inverse_noise_scaling(self, sigma, latent):
        return latent


def test_guidance_runs_in_a_straight_line():
    assert [guidance_at(p, 8.0, 2.0) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [8.0, 8.0, 5.0, 2.0, 2.0]


@pytest.mark.parametrize("g", [0.0, 1.0, 7.5])
def test_guidance_is_the_formula_for_noise_and_for_denoised(g):
    x, plain, masked = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    sigma = 3.0
    noise = plain + g * (masked - plain)
    denoised = guided(x - sigma * plain, x - sigma * masked, x - sigma * plain, g)
    assert torch.allclose(denoised, x - sigma * noise)


def test_ranges_hold_their_ends():
    span, sampling = PercentRange(0.25, 0.5), Sampling()
    highest, lowest = span.bounds(sampling)
    assert span.contains(sampling, highest) and span.contains(sampling, lowest)
    assert not span.contains(sampling, highest * 1.001) and not span.contains(sampling, lowest * 0.999)
    assert PercentRange(0.0, 1.0).contains(sampling, 0.0) and PercentRange(0.0, 1.0).contains(sampling, 1e6)


def test_progress_inverts_the_percent():
    span, sampling = PercentRange(0.2, 0.8), Sampling()
    for part in (0.0, 0.1, 0.5, 1.0):
        sigma = sampling.percent_to_sigma(0.2 + 0.6 * part)
        assert span.progress(sampling, sigma) == pytest.approx(part, abs=1e-5)


def test_a_new_model_gets_its_own_bounds():
    class Other(Sampling):
        def percent_to_sigma(self, percent):
            return 1 - percent

    span = PercentRange(0.25, 0.5)
    span.bounds(Sampling())
    assert span.bounds(Other()) == (0.75, 0.5)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.0, 1.1)])
def test_bad_ranges(start, end):
    with pytest.raises(ValueError, match="Node: start is"):
        check_range(start, end, "Node")


def test_blend_is_equation_2_and_exact_at_both_ends():
    generator = torch.Generator().manual_seed(0)
    x, source = torch.randn(2, 2, 4, 8, 8, generator=generator) * 20
    mask = torch.rand(2, 1, 8, 8, generator=generator)
    mask[:, :, :3], mask[:, :, 3:5] = 0.0, 1.0
    got = blend(x, source[:1], mask)
    assert torch.equal(got[:, :, :3], source[:1, :, :3].expand(2, -1, -1, -1))
    assert torch.equal(got[:, :, 3:5], x[:, :, 3:5])
    assert (got - (x * mask + source[:1] * (1 - mask))).abs().max() < 1e-5


def trajectory(levels=(10.0, 5.0, 2.0, 0.0)):
    return Trajectory(levels, [torch.full((1, 4, 8, 8), level + 1) for level in levels])


def test_a_run_follows_the_trajectory_and_writes_in_place():
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1.0
    run = KeepSourceRun(trajectory(), mask, [10.0, 5.0, 2.0, 0.0], [10.0, 5.0, 2.0, 0.0], torch.zeros(1))
    x = torch.zeros(2, 4, 8, 8)
    assert run.keep_state(x, 5.0) is x
    assert (x[..., :4] == 6).all() and (x[..., 4:] == 0).all()
    run.source.prefetch_after(5.0)
    assert run.source.fetched is not None and run.source.fetched[0] == 2.0
    assert (run.source.at(2.0) == 3).all() and (run.source.at(3.5) == 4.5).all() and (run.source.at(11.0) == 11).all()
    assert (run.keep_prediction(x, 5.0)[..., :4] == 1).all()
    assert (run.finish(x, 0.0, Sampling())[..., :4] == 1).all()


def test_soft_pixels_are_the_sources_until_they_are_free():
    levels = [10.0, 5.0, 2.0, 1.0, 0.0]
    run = KeepSourceRun(trajectory(levels), torch.full((1, 8, 8), 0.5), levels, levels, torch.zeros(1))
    denoised = torch.randn(1, 4, 8, 8)
    for sigma, share in ((10.0, 0), (5.0, 0), (3.5, 0.5), (2.0, 1), (1.0, 1), (0.0, 1)):
        assert torch.allclose(run.mask(sigma), torch.tensor(float(share))), sigma
        expected = torch.full_like(denoised, 1.0) if share == 0 else denoised
        assert torch.equal(run.keep_prediction(denoised, sigma), expected)
