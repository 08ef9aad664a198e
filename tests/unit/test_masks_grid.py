"""Masks on grids: exact area averages at any size, and errors that say what to do."""

import pytest
import torch

from latent_layers.masks import grid


def exact_average(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Area average by making every pixel `cells` pieces, so that cells are whole pieces."""
    rows = mask.double().repeat_interleave(height, 1).unflatten(1, (height, -1)).mean(2)
    return rows.repeat_interleave(width, 2).unflatten(2, (width, -1)).mean(3)


@pytest.mark.parametrize("size", [(64, 64), (520, 776), (97, 130), (8, 8), (7, 300)])
@pytest.mark.parametrize("cells", [(8, 8), (33, 49), (65, 97), (9, 7), (1, 1)])
def test_cells_take_the_exact_mean_of_what_they_cover(size, cells):
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(1))
    got = grid.to_grid(mask, *cells)
    assert got.shape == (2, *cells) and got.dtype == torch.float32
    assert (got - exact_average(mask, *cells)).abs().max() < 1e-6


def test_zero_and_one_stay_exact_in_half_precision():
    mask = torch.zeros(1, 520, 776, dtype=torch.float16)
    mask[:, 200:, 300:] = 1.0
    got = grid.to_grid(mask, 65, 97)
    assert (got[:, :25] == 0).all() and (got[:, :, :37] == 0).all()
    assert (got[:, 25:, 38:] == 1).all()
    assert 0 < got[0, 30, 37] < 1


def test_the_mean_of_a_mask_survives_every_grid():
    mask = torch.rand(1, 520, 776, generator=torch.Generator().manual_seed(3))
    for cells in [(65, 97), (33, 49), (17, 25), (9, 13)]:
        assert torch.isclose(grid.to_grid(mask, *cells).mean(), mask.mean(), atol=1e-6)


def test_a_window_sees_its_own_part():
    mask = torch.zeros(1, 64, 96)
    mask[:, 32:, 48:] = 1.0
    assert (grid.to_grid(mask, 4, 6, (0.5, 1.0, 0.5, 1.0)) == 1).all()
    assert (grid.to_grid(mask, 4, 6, (0.0, 0.5, 0.0, 1.0)) == 0).all()


def test_dilate_is_a_square_of_the_width():
    mask = torch.zeros(1, 64, 128)
    mask[0, 30, 60] = 1.0
    grown = grid.dilate(mask, 2 / 128)
    assert grown.sum() == 25 and (grown[0, 28:33, 58:63] == 1).all()
    assert torch.equal(grid.dilate(mask, 2), grown)
    assert torch.equal(grid.dilate(mask, 0), mask)
    with pytest.raises(ValueError, match="radius is -1"):
        grid.dilate(mask, -1)


def test_dilate_keeps_soft_values_and_halves():
    mask = torch.zeros(1, 9, 9, dtype=torch.float16)
    mask[0, 4, 4] = 0.5
    grown = grid.dilate(mask, 1)
    assert grown.dtype == torch.float16 and grown.sum() == 4.5


@pytest.mark.parametrize("shape", [(9, 8), (2, 9, 8), (2, 1, 9, 8)])
def test_the_hosts_mask_shapes_are_taken(shape):
    assert grid.as_mask(torch.ones(shape), "Node").shape == (1 if len(shape) == 2 else 2, 9, 8)


def test_bad_masks_say_what_would_be_right():
    with pytest.raises(ValueError, match=r"Node: mask has shape \(1, 3, 9, 8\); a MASK is"):
        grid.as_mask(torch.ones(1, 3, 9, 8), "Node")
    with pytest.raises(ValueError, match="not numbers"):
        grid.as_mask(torch.full((1, 4, 4), float("nan")), "Node")
    with pytest.raises(ValueError, match=r"Node: mask is empty \(all 0\); paint the area to remove"):
        grid.check_painted(torch.zeros(1, 4, 4), "Node")
    with pytest.raises(ValueError, match="mask 2 of 2 is full"):
        grid.check_painted(torch.stack([torch.eye(4), torch.ones(4, 4)]), "Node")
    with pytest.raises(ValueError, match="mask has a batch of 2 for 3 image"):
        grid.check_batch(torch.ones(2, 4, 4), 3, "Node")


@pytest.mark.parametrize("size", [(520, 776), (525, 783), (1040, 1552), (65, 97)])
def test_masks_of_the_same_picture_pass(size):
    grid.check_aspect(torch.zeros(1, *size), (1, 4, 65, 97), "Node")


@pytest.mark.parametrize("size", [(776, 520), (512, 512), (520, 800)])
def test_masks_of_another_shape_are_refused(size):
    with pytest.raises(ValueError, match="another shape than the latent's 97x65"):
        grid.check_aspect(torch.zeros(1, *size), (1, 4, 65, 97), "Node")


def test_union_brings_sizes_and_batches_together():
    small, large = torch.zeros(1, 4, 4), torch.zeros(2, 8, 8)
    small[0, 0, 0], large[1, 7, 7] = 1.0, 0.5
    joined = grid.union(large, None, small)
    assert joined.shape == (2, 8, 8)
    assert (joined[:, :2, :2] == 1).all() and joined[0, 7, 7] == 0 and joined[1, 7, 7] == 0.5


def test_cover_takes_every_cell_that_the_mask_touches():
    mask = torch.zeros(2, 520, 776)
    mask[0, 100, 200] = 1.0
    mask[1, 300:310, 400:420] = 0.4
    got = grid.cover(mask, 65, 97)
    assert got.shape == (2, 65, 97)
    assert got[0].nonzero().tolist() == [[12, 25]] and got[0].max() == 1
    # a cell holds the largest value, not the average of it and the zeros beside it
    assert set(got[1].unique().tolist()) == {0.0, mask[1].max().item()}
    assert got[1].sum() / 0.4 == 2 * 3


def test_cover_of_a_mask_that_divides_unevenly_misses_nothing():
    mask = torch.zeros(1, 51, 77)
    mask[0, 25, 38] = 1.0
    assert grid.cover(mask, 6, 9).sum() >= 1
