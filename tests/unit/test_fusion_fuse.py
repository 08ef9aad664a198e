"""Fusion: equation 3 at every common noise level, exact where nothing is to be mixed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from latent_layers.fusion.fuse import fuse, moved_mask
from latent_layers.inversion.trajectory import ModelFamily, Trajectory

LEVELS = [14.6146, 5.0, 1.5, 0.4, 0.0]
FAMILY = ModelFamily("SD15", 4, "EPS", 14.6146)
GRIDS = [(33, 17), (9, 16), (8, 8)]


def trajectory(seed, grid=(33, 17), batch=1, levels=LEVELS, channels=4, family: ModelFamily | None = FAMILY):
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(batch, channels, *grid, generator=generator) for _ in levels]
    return Trajectory(levels, latents, family)


def soft_mask(seed, grid=(33, 17), batch=1) -> torch.Tensor:
    """Random values in a box away from the frame's corners, some of them 0 and 1."""
    mask = torch.zeros(batch, 8 * grid[0], 8 * grid[1])
    values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3
    rows, columns = (slice(side // 4 + 3, side * 3 // 4 + 1) for side in mask.shape[1:])
    mask[:, rows, columns] = values.clamp(0, 1)[:, rows, columns]
    return mask


def moved(x: np.ndarray, right: int, down: int) -> np.ndarray:
    """What enters is 0."""
    height, width = x.shape[-2:]
    right, down = max(-width, min(width, right)), max(-height, min(height, down))
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(height, height), (width, width)])
    return padded[..., height - down : 2 * height - down, width - right : 2 * width - right]


def equation_3(canvas, layer, mask, moves, placed=None) -> list[np.ndarray]:
    """In double precision, a level and a move at a time; M as `fuse` documents it."""
    blocks = mask.double().numpy().reshape(len(mask), 1, mask.shape[1] // 8, 8, mask.shape[2] // 8, 8)
    share = np.minimum(2 * blocks.mean((3, 5)), blocks.max((3, 5)))
    if placed is not None:
        share = blocks.max((3, 5))
    results = []
    for sigma in canvas.sigmas.tolist():
        x, own = canvas.at(sigma).double().numpy(), layer.at(sigma).double().numpy()
        for move in moves:
            if placed is None:
                there = moved(own, *move)
            else:
                there = placed.double().numpy() + moved(own - layer.clean.double().numpy(), *move)
            x = x * (1 - moved(share, *move)) + there * moved(share, *move)
        results.append(x)
    return results


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batches", [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 2, 2)])
@pytest.mark.parametrize("moves", [[(0, 0)], [(3, -2)], [(1, 1), (2, 0), (-1, 3)], [(4, -40), (-2, 2)]])
def test_equation_3(grid, batches, moves):
    pictures, layers, masks = batches
    canvas, layer = trajectory(1, grid, pictures), trajectory(2, grid, layers)
    mask = soft_mask(3, grid, masks)
    given = [t.clone() for t in (mask, *canvas.latents, *layer.latents)]
    fused, area = fuse(canvas, layer, mask, moves)
    assert fused.shape == canvas.shape and torch.equal(fused.sigmas, canvas.sigmas)
    assert fused.family == FAMILY
    for got, expected in zip(fused.latents, equation_3(canvas, layer, mask, moves), strict=True):
        assert np.abs(got.numpy() - expected).max() < 2e-6
    places = np.max([moved(mask.numpy(), 8 * right, 8 * down) for right, down in moves], axis=0)
    assert np.array_equal(area.numpy(), places)
    assert all(torch.equal(*pair) for pair in zip(given, (mask, *canvas.latents, *layer.latents), strict=True))


@pytest.mark.parametrize("batches", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("moves", [[(0, 0)], [(2, -3), (-1, 1)]])
def test_with_the_picture_laid_on_only_the_layers_noise_is_moved(batches, moves):
    canvas, layer = trajectory(1, batch=batches[0]), trajectory(2, batch=batches[1])
    placed, mask = torch.randn(1, 4, 33, 17, generator=torch.Generator().manual_seed(5)), soft_mask(3)
    given = (placed, mask, *canvas.latents, *layer.latents)
    before = [t.clone() for t in given]
    fused, _ = fuse(canvas, layer, mask, moves, placed)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
    for got, expected in zip(fused.latents, equation_3(canvas, layer, mask, moves, placed), strict=True):
        assert np.abs(got.numpy() - expected).max() < 3e-6


def test_the_last_move_lies_in_front():
    canvas, layer, mask = trajectory(1), trajectory(2), soft_mask(3)
    one, _ = fuse(canvas, layer, mask, [(0, 0), (2, 1)])
    other, _ = fuse(canvas, layer, mask, [(2, 1), (0, 0)])
    assert (one.clean - other.clean).abs().max() > 0.5
    alone, _ = fuse(canvas, layer, mask, [(2, 1)])
    again, _ = fuse(fuse(canvas, layer, mask, [(0, 0)])[0], layer, mask, [(2, 1)])
    assert torch.equal(one.clean, again.clean) and not torch.equal(one.clean, alone.clean)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_full_mask_is_the_layer_bit_for_bit(grid):
    canvas, layer = trajectory(1, grid, 2), trajectory(2, grid, 2)
    ones = torch.ones(1, 8 * grid[0], 8 * grid[1])
    fused, area = fuse(canvas, layer, ones, [(0, 0)])
    assert all((a - b).abs().max() == 0.0 for a, b in zip(fused.latents, layer.latents, strict=True))
    assert (area == 1).all()
    # moved: what enters behind it stays the canvas
    fused, area = fuse(canvas, layer, ones, [(3, 2)])
    for x, behind, own in zip(fused.latents, canvas.latents, layer.latents, strict=True):
        assert torch.equal(x[..., 2:, 3:], own[..., :-2, :-3])
        assert torch.equal(x[..., :2, :], behind[..., :2, :]) and torch.equal(x[..., :3], behind[..., :3])
    assert area[..., 16:, 24:].min() == 1 and area[..., :16, :].max() == 0 and area[..., :24].max() == 0


def test_outside_the_mask_the_canvas_is_untouched_bit_for_bit():
    canvas, layer, mask = trajectory(1), trajectory(2), soft_mask(3)
    fused, area = fuse(canvas, layer, mask, [(2, -3), (-4, 6)])
    empty = area.reshape(33, 8, 17, 8).amax((1, 3)) == 0
    assert 0.1 < empty.float().mean() < 0.9
    for x, before in zip(fused.latents, canvas.latents, strict=True):
        assert (x - before)[..., empty].abs().max() == 0.0


def test_a_layer_laid_over_itself_is_no_change():
    canvas, mask = trajectory(1), soft_mask(3)
    fused, _ = fuse(canvas, canvas, mask, [(0, 0)])
    assert all((a - b).abs().max() == 0.0 for a, b in zip(fused.latents, canvas.latents, strict=True))


def test_only_common_noise_levels():
    canvas = trajectory(1, levels=[14.6146, 5.0, 1.5])
    layer = trajectory(2, levels=[5.0 * (1 + 4e-6), 3.0, 1.5, 0.4, 0.0])
    mask = soft_mask(3)
    fused, _ = fuse(canvas, layer, mask, [(1, 0)])
    assert fused.sigmas.tolist() == pytest.approx([5.0, 1.5])
    for position, (behind, own) in enumerate([(1, 0), (2, 2)]):
        pair = Trajectory([0.0], [canvas.latents[behind]]), Trajectory([0.0], [layer.latents[own]])
        assert np.abs(fused.latents[position].numpy() - equation_3(*pair, mask, [(1, 0)])[0]).max() < 2e-6


@pytest.mark.parametrize("factor", [0.5, 2, 4])
def test_a_mask_of_another_size_selects_the_same_cells(factor):
    canvas, layer = trajectory(1, (8, 12)), trajectory(2, (8, 12))
    cells = torch.zeros(1, 8, 12)
    cells[:, 2:4, 3:7] = 1
    masks = [cells.repeat_interleave(n, 1).repeat_interleave(n, 2) for n in (8, int(8 * factor))]
    (fused, _), (other, area) = (fuse(canvas, layer, mask, [(4, -1)]) for mask in masks)
    assert torch.equal(fused.clean, other.clean)
    there = torch.zeros(1, 8, 12)
    there[:, 1:3, 7:11] = 1
    assert torch.equal(area[:, :: int(8 * factor), :: int(8 * factor)], there) and area.shape == masks[1].shape


def test_a_picture_that_is_cropped_when_encoded_still_has_cells_of_8_pixels():
    mask = torch.zeros(1, 71, 103)
    mask[:, 8:16, 16:32] = 1
    _, area = fuse(trajectory(1, (8, 12)), trajectory(2, (8, 12)), mask, [(7, 4)])
    assert area.nonzero().amin(0).tolist() == [0, 40, 72] and area.sum() == mask.sum()


def test_moved_mask_joins_all_places():
    mask = soft_mask(1, (9, 16), 2)
    got = moved_mask(mask, [(1, 0), (-2, 3)])
    expected = np.maximum(moved(mask.numpy(), 8, 0), moved(mask.numpy(), -16, 24))
    assert np.array_equal(got.numpy(), expected)


# errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moves": []}, "there is no move; write at least one"),
        ({"moves": [(17, 0), (0, -33)]}, "every move takes the whole layer out of the frame; use smaller moves"),
        ({"mask": torch.zeros(1, 264, 136)}, "mask is empty (all 0); paint the layer"),
        ({"mask": torch.ones(3, 264, 136)}, "mask has a batch of 3 for 2 picture(s); give 1 mask or 2"),
        ({"mask": torch.ones(1, 136, 264)}, "mask is 264x136, another shape"),
        ({"layer": trajectory(2, (17, 33))}, "the layer's latents are 33×17 with 4 channels, the canvas's 17×33"),
        ({"layer": trajectory(2, channels=16)}, "with 16 channels, the canvas's 17×33 with 4 channels"),
        ({"layer": trajectory(2, batch=3)}, "layer has a batch of 3, the canvas of 2; invert one picture"),
        ({"layer": trajectory(2, levels=[9.0, 3.0])}, "have no noise level in common"),
        (
            {"layer": trajectory(2, family=replace(FAMILY, latent_format="SDXL"))},
            "layer: the model is of another family",
        ),
        ({"placed": torch.zeros(1, 4, 17, 33)}, "placed has shape (1, 4, 17, 33), the canvas's latents (2, 4, 33, 17)"),
        ({"placed": torch.zeros(3, 4, 33, 17)}, "placed has shape (3, 4, 33, 17)"),
        (
            {"placed": torch.zeros(1, 4, 33, 17), "layer": trajectory(2, levels=LEVELS[:3])},
            "must reach its clean picture",
        ),
    ],
)
def test_errors_name_the_input_and_the_remedy(change, message):
    arguments = {"canvas": trajectory(1, batch=2), "layer": trajectory(2), "mask": soft_mask(3), "moves": [(0, 0)]}
    fuse(**arguments)
    with pytest.raises(ValueError, match=rf"^Node: .*{re.escape(message)}"):
        fuse(**{**arguments, **change}, where="Node")


def test_one_move_out_of_the_frame_is_only_gone():
    canvas, layer, mask = trajectory(1), trajectory(2), soft_mask(3)
    both, _ = fuse(canvas, layer, mask, [(1, 1), (17, 0)])
    alone, _ = fuse(canvas, layer, mask, [(1, 1)])
    assert torch.equal(both.clean, alone.clean)


def test_unknown_models_may_be_mixed():
    fused, _ = fuse(trajectory(1), trajectory(2, family=None), soft_mask(3), [(0, 0)])
    assert fused.family == FAMILY
