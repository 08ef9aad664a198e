"""Pan and zoom-out as they are measured: how the filled area is put in, and what counts as a seam."""

import pytest
import torch

from latent_layers.masks.grid import dilate
from latent_layers.toyscenes.bench_canvas import DILATION, put_in, seam


@pytest.fixture
def exposed():
    """The left 60 columns of a picture, and the upper 40 rows of another."""
    masks = torch.zeros(2, 256, 256)
    masks[0, :, :60] = 1
    masks[1, :40] = 1
    return masks


def test_what_is_drawn_fades_within_the_grown_border(exposed):
    torch.manual_seed(0)
    canvas, drawn = torch.rand(2, 2, 256, 256, 3)
    result = put_in(canvas, drawn, exposed)
    assert torch.equal(result[dilate(exposed, DILATION) == 0], canvas[dilate(exposed, DILATION) == 0])
    assert (result - drawn).abs()[exposed == 1].max() < 0.03
    share = put_in(torch.zeros(2, 256, 256, 3), torch.ones(2, 256, 256, 3), exposed)[0, 128, :, 0]
    assert (share.diff() <= 0).all() and share.diff().abs().max() < 0.35  # over several pixels, not at one line


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_a_step_counts_wherever_it_lies_in_the_border(exposed, distance):
    pictures = torch.full((2, 256, 256, 3), 0.4)
    pictures[0, :, : 60 + distance] += 0.25
    pictures[1, : 40 + distance] += torch.tensor([0.3, 0.0, 0.0])
    assert seam(pictures, exposed) == pytest.approx([0.25, 0.1], abs=1e-6)


def test_a_slope_is_no_step_and_what_lies_elsewhere_does_not_count(exposed):
    pictures = torch.full((2, 256, 256, 3), 0.5)
    pictures[0] = torch.linspace(0, 1, 256)[None, :, None]
    pictures[1, 120:] = 0.9
    assert seam(pictures, exposed) == pytest.approx([1 / 255, 0.0], abs=1e-6)
