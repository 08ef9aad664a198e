"""Proximal guidance: thresholds of each picture's own, what they drop, and the pull to the source."""

import numpy as np
import pytest
import torch

from latent_layers.inversion.proximal import (
    check_settings,
    edited_region,
    magnitude_quantile,
    proximal,
    reconstruct,
)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.75, 0.9, 1.0])
def test_the_quantile_is_each_pictures_own(quantile):
    delta = random(3, 4, 13, 9) * torch.tensor([0.01, 1.0, 100.0])[:, None, None, None]
    got = magnitude_quantile(delta, quantile)
    assert got.shape == (3, 1, 1, 1) and got.dtype == torch.float32
    for picture, value in zip(delta, got.flatten().tolist(), strict=True):
        want = np.quantile(np.abs(picture.double().numpy()), quantile, method="nearest")
        assert value == pytest.approx(float(want), rel=1e-6)


def test_a_latent_larger_than_torch_quantile_takes():
    delta = torch.arange(17_000_000, dtype=torch.float32).view(1, 1, 17_000, 1_000)
    assert magnitude_quantile(delta, 0.5).item() == pytest.approx(8_500_000, abs=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["l0", "l1", "none"])
def test_prox_against_plain_numbers(mode, dtype):
    delta = random(2, 4, 7, 5, dtype=dtype)
    threshold = magnitude_quantile(delta, 0.75)
    got = proximal(delta, threshold, mode)
    assert got.dtype == dtype
    for b, picture in enumerate(delta.double()):
        limit = float(threshold[b])
        for value, have in zip(picture.flatten().tolist(), got[b].flatten().tolist(), strict=True):
            shrunk = np.sign(value) * max(abs(value) - limit, 0.0)
            want = {"l0": value if abs(value) > limit else 0.0, "l1": shrunk, "none": value}[mode]
            assert have == pytest.approx(want, rel=0.02 if dtype == torch.bfloat16 else 2e-3, abs=1e-6)
    if mode != "none":
        assert (got != 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_no_guidance_at_all_is_dropped_whole():
    delta = torch.zeros(1, 4, 5, 6)
    threshold = magnitude_quantile(delta, 0.75)
    assert not proximal(delta, threshold, "l0").any() and not proximal(delta, threshold, "l1").any()
    assert not edited_region(delta, threshold, 2).any()


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_the_region_is_what_exceeds_grown_by_squares(radius):
    delta = torch.zeros(2, 2, 9, 12)
    delta[0, 0, 4, 5], delta[1, 1, 0, 11] = -3.0, 2.0
    got = edited_region(delta, torch.full((2, 1, 1, 1), 1.0), radius)
    want = torch.zeros_like(delta)
    want[0, 0, 4 - radius : 5 + radius, 5 - radius : 6 + radius] = 1
    want[1, 1, : 1 + radius, 11 - radius :] = 1
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reconstruction_against_the_published_line(dtype):
    x, source = random(2, 4, 6, 7, dtype=dtype), random(1, 4, 6, 7, seed=1, dtype=dtype)
    edited = (random(2, 4, 6, 7, seed=2) > 0).to(dtype)
    got = reconstruct(x, source, edited, 0.1)
    want = x.double() - 0.1 * (x.double() - source.double()) * (1 - edited.double())
    assert got.dtype == dtype
    assert torch.allclose(got.double(), want, atol={torch.float32: 1e-6, torch.float16: 2e-3}.get(dtype, 2e-2))
    assert torch.equal(got[edited > 0], x[edited > 0])
    assert torch.equal(reconstruct(x, source, edited, 1.0)[edited == 0], source.expand_as(x)[edited == 0])
    assert torch.equal(reconstruct(x, source, edited, 0.0), x)


def test_errors_name_the_input_and_the_remedy():
    check_settings(0.75, 2, 0.1, 0.6, "l0", "Node")
    for given, text in [
        ((1.5, 2, 0.1, 0.6, "l0"), "Node: quantile is 1.5; it is a share, from 0 to 1"),
        ((float("nan"), 2, 0.1, 0.6, "l0"), "Node: quantile is nan"),
        ((0.5, -1, 0.1, 0.6, "l0"), "Node: dilation is -1; it is a number of latent cells"),
        ((0.5, 2, -0.1, 0.6, "l0"), "Node: recon_strength is -0.1"),
        ((0.5, 2, 0.1, 2.0, "l0"), "Node: recon_start is 2"),
        ((0.5, 2, 0.1, 0.6, "l2"), "Node: mode is 'l2'; choose one of l0, l1, none"),
    ]:
        with pytest.raises(ValueError, match=text):
            check_settings(*given, "Node")
    with pytest.raises(ValueError, match="mode is 'l2'"):
        proximal(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), "l2")
