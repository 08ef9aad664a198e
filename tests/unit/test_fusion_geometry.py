"""Geometry of layers: exact shifts, and pixels that land where the same edit of the scene draws them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latent_layers.fusion import geometry
from latent_layers.fusion.layers import Layer
from latent_layers.toyscenes.backgrounds import Background
from latent_layers.toyscenes.layer_edits import _about_centroid, mask_of
from latent_layers.toyscenes.scenes import Scene, SceneObject

STRIPES = Background("striped", (214, 198, 170), (100, 112, 128), period=0.2, angle=0.5)
SIZES = [(128, 128), (200, 136), (119, 190)]  # width, height


def scene_of(shape="letter L", width=128, height=128, x=0.5, y=0.5, size=0.4, **fields) -> Scene:
    """One object on stripes; x and y are shares of the sides."""
    unit = min(width, height)
    thing = SceneObject(shape, "red", x * width / unit, y * height / unit, size, **fields)
    return Scene(width, height, STRIPES, (thing,))


def picture(scene: Scene) -> torch.Tensor:
    return torch.from_numpy(scene.image())[None]


def centre(mask: torch.Tensor | np.ndarray) -> np.ndarray:
    """Centre of gravity (x, y) in pixels, computed another way than the code under test."""
    mask = np.asarray(mask, dtype=np.float64).squeeze()
    return np.array([np.average(np.indices(mask.shape)[axis] + 0.5, weights=mask) for axis in (1, 0)])


def psnr(a: torch.Tensor, b: np.ndarray, where: np.ndarray) -> float:
    error = (a[0].numpy() - b)[where].astype(np.float64)
    return -10 * math.log10((error**2).mean() + 1e-12)


def shifted_by_loop(x: torch.Tensor, right: int, down: int) -> torch.Tensor:
    out = torch.zeros_like(x)
    for row in range(x.shape[-2]):
        for column in range(x.shape[-1]):
            if 0 <= row - down < x.shape[-2] and 0 <= column - right < x.shape[-1]:
                out[..., row, column] = x[..., row - down, column - right]
    return out


# whole cells


@pytest.mark.parametrize("size", [(4, 7), (5, 5), (1, 6), (9, 2)])
@pytest.mark.parametrize(
    "move", [(0, 0), (1, 0), (-2, 0), (0, 3), (0, -1), (2, -3), (-1, 1), (5, 0), (0, -9), (40, 40)]
)
def test_shifted_is_a_plain_loop(size, move):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    for given in (x, x[0, 0], (x * 1000).long()):
        assert torch.equal(geometry.shifted(given, *move), shifted_by_loop(given, *move))
    assert torch.equal(x, before)


def test_shifting_there_and_back_only_loses_what_left():
    x = torch.rand(1, 4, 33, 17)
    back = geometry.shifted(geometry.shifted(x, 5, -7), -5, 7)
    assert torch.equal(back[..., 7:, :12], x[..., 7:, :12])
    assert back[..., :7, :].abs().max() == 0 and back[..., 12:].abs().max() == 0


@pytest.mark.parametrize("cell", [8, 16])
def test_split_move_leaves_at_most_half_a_cell(cell):
    rng = np.random.default_rng(0)
    moves = [(4.0, -4.0), (12.0, -12.0), (8.0, 0.0), (-0.004, 16.01), *rng.uniform(-400, 400, (200, 2)).tolist()]
    for move in moves:
        cells, rest = geometry.split_move(tuple(move), cell)
        assert all(isinstance(n, int) for n in cells)
        assert max(map(abs, rest)) <= cell / 2
        # what is too small to be worth resampling is dropped
        for n, part, whole in zip(cells, rest, move, strict=True):
            assert n * cell + part == pytest.approx(whole, abs=1e-9 if part else geometry.REST)
    assert geometry.split_move((-24.0, 80.0)) == ((-3, 10), (0.0, 0.0))
    assert geometry.split_move((27.0, -3.5)) == ((3, 0), (3.0, -3.5))


@pytest.mark.parametrize("width, height", SIZES)
def test_centroid_counts_pixels_by_their_middle(width, height):
    mask = torch.rand(1, height, width)
    assert geometry.centroid(mask) == pytest.approx(tuple(centre(mask)))
    dot = torch.zeros(1, height, width)
    dot[0, 3, 10] = 0.3
    assert geometry.centroid(dot) == (10.5, 3.5)


# what is not resampled


@pytest.mark.parametrize("fields", [{}, {"rotation": 360.0}, {"occluder": torch.ones(1, 128, 128)}])
@pytest.mark.parametrize("move, cells", [((0.0, 0.0), (0, 0)), ((48.0, -16.0), (6, -2)), ((800.0, 0.01), (100, 0))])
def test_whole_cells_pass_the_very_same_tensors_through(fields, move, cells):
    scene = scene_of()
    source, layer = picture(scene), Layer("l", mask_of(scene, 0), **fields)
    placed = geometry.transform_layer(source, layer, move)
    assert placed.picture is source and placed.mask is layer.mask and placed.hidden is layer.occluder
    assert placed.cells == cells


# what is: the same edit, drawn by the scene


def placed_and_truth(scene: Scene, vector=(0.0, 0.0), **fields):
    """A transformed layer, and the scene whose object is edited the same way, drawn over the old one."""
    truth, changes = _about_centroid(scene, 0, vector, **fields)
    layer = Layer("l", mask_of(scene, 0), **{**changes, "moves": (vector,)})
    placed = geometry.transform_layer(picture(scene), layer, vector)
    both = dataclasses.replace(scene, objects=scene.objects + truth.objects)
    return placed, both


@pytest.mark.parametrize("shape", ["letter L", "star", "ring"])
@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("move", [(3.3, 0.0), (-1.5, 2.25), (0.4, -3.9)])
def test_a_part_of_a_cell_is_as_if_drawn_there(shape, width, height, move):
    scene = scene_of(shape, width, height, size=0.5)
    placed, both = placed_and_truth(scene, move)
    truth = both.full_mask(1)
    assert placed.cells == (0, 0)
    assert psnr(placed.picture, both.image(), truth > 0) > 30
    assert np.abs(centre(placed.mask) - centre(truth)).max() < 0.02
    outside = placed.mask[0] == 0
    assert torch.equal(placed.picture[0][outside], picture(scene)[0][outside])


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_x": 0.6, "scale_y": 0.6},
        {"scale_x": 1.6, "scale_y": 1.6},
        {"scale_x": 0.7, "scale_y": 1.4},
        {"rotation": 37.0},
        {"rotation": -90.0},
        {"flip_x": True},
        {"flip_y": True},
        {"scale_x": 1.3, "scale_y": 0.8, "rotation": 25.0, "flip_x": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("width, height", SIZES)
def test_transforms_are_the_same_edit_of_the_scene(fields, width, height):
    move = (-13.7, 5.2)
    placed, both = placed_and_truth(scene_of("letter L", width, height, rotation=8), move, **fields)
    seen = geometry.shifted(placed.mask, *(8 * n for n in placed.cells))
    truth = both.full_mask(1)
    assert placed.cells == (-2, 1)
    assert np.abs(seen[0].numpy() - truth).sum() < 0.08 * truth.sum()
    assert np.abs(centre(seen) - centre(truth)).max() < 0.02
    # at the rim the picture still shows what lay behind the layer before the cells were shifted
    pixels = geometry.shifted(placed.picture[0].movedim(2, 0), *(8 * n for n in placed.cells)).movedim(0, 2)
    assert psnr(pixels[None], both.image(), truth == 1) > 32
    laid = geometry.lay_on(picture(both.without(1)), placed, [placed.cells])
    assert psnr(laid, both.image(), truth > 0) > 29


@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize(
    ("fields", "edit"),
    [
        ({"rotation": 30.0}, {"rotation": 40}),
        ({"rotation": -65.0}, {"rotation": -55}),
        ({"flip_x": True}, {"rotation": -10}),
        ({"flip_y": True, "rotation": 50.0}, {"rotation": 40}),
    ],
    ids=str,
)
def test_angles_and_sides_are_the_scenes_own(fields, edit, width, height):
    # its centroid is its middle, about which scenes turn
    scene = scene_of("letter H", width, height, rotation=10)
    placed = geometry.transform_layer(picture(scene), Layer("l", mask_of(scene, 0), **fields), (0.0, 0.0))
    truth = scene.edited(0, **edit).full_mask(0)
    assert np.abs(placed.mask[0].numpy() - truth).sum() < 0.06 * truth.sum()
    assert np.abs(scene.full_mask(0) - truth).sum() > 0.2 * truth.sum()


def test_what_is_scaled_grows_along_the_pictures_axes():
    scene = scene_of("letter H")
    layer = Layer("l", mask_of(scene, 0), scale_x=1.5, scale_y=0.7)
    placed = geometry.transform_layer(picture(scene), layer)
    truth = scene.edited(0, scale_x=1.5, scale_y=0.7).full_mask(0)
    assert np.abs(placed.mask[0].numpy() - truth).sum() < 0.06 * truth.sum()


@pytest.mark.parametrize("shape", ["ring", "square", "circle"])
def test_laid_on_by_whole_pixels_is_the_scene_itself(shape):
    scene = scene_of(shape, rotation=12)
    placed = geometry.transform_layer(picture(scene), Layer("l", mask_of(scene, 0)), (16.0, -24.0))
    twice = scene.duplicated(0, 16, -24).duplicated(0, -32, 8)
    background = picture(scene.without(0))
    truth = picture(twice.without(0))
    laid = geometry.lay_on(background, placed, [(-4, 1), (2, -3)])
    # no fringe of what lay behind the object at its old place
    assert (laid - truth).abs().max() < 2e-3
    assert torch.equal(background, picture(scene.without(0)))


def test_warp_samples_the_picture_at_the_points_the_map_says():
    def colour(x, y):
        return np.stack([np.sin(x / 9) + np.cos(y / 11), np.cos((x + y) / 14), x * y / 5000], axis=-1)

    rows, columns = np.indices((90, 121)) + 0.5
    source = torch.from_numpy(colour(columns, rows)).float()
    for affine in (
        geometry.Affine(np.array([[1.2, -0.4], [0.3, 1.1]]), np.array([7.3, -11.9])),
        geometry.Affine(np.array([[-1.0, 0.0], [0.0, 1.5]]), np.array([110.0, 4.5])),
        geometry.Affine(np.array([[0.8, 0.1], [-0.2, 0.7]]), np.array([10.0, 20.0])),
    ):
        got = geometry.warp(source, affine, 80, 101, order=3).numpy()
        y, x = np.indices((80, 101)) + 0.5
        points = np.stack([x, y], axis=-1).reshape(-1, 2)
        x, y = ((points - affine.offset) @ np.linalg.inv(affine.linear).T).reshape(80, 101, 2).transpose(2, 0, 1)
        inside = (x > 4) & (x < 117) & (y > 4) & (y < 86)
        assert inside.mean() > 0.3
        # what is reduced is averaged a little on the way
        smaller = np.linalg.norm(affine.linear, axis=0).min() < 1
        assert np.abs(got - colour(x, y))[inside].max() < (0.02 if smaller else 2e-3)


def test_shrinking_averages_all_detail():
    checks = (torch.arange(200)[:, None] + torch.arange(200)) % 2
    source = torch.stack([checks, checks, checks], dim=-1).float()[None]
    mask = torch.zeros(1, 200, 200)
    mask[:, 50:150, 50:150] = 1
    placed = geometry.transform_layer(source, Layer("l", mask, scale_x=0.2, scale_y=0.2))
    assert (placed.picture[0, 92:108, 92:108] - 0.5).abs().max() < 0.02
    generator = torch.Generator().manual_seed(2)
    detail = F.interpolate(torch.rand(1, 3, 25, 25, generator=generator), size=(200, 200), mode="bilinear")
    placed = geometry.transform_layer(detail.movedim(1, 3), Layer("l", mask, scale_x=0.2, scale_y=0.2))
    boxes = F.avg_pool2d(detail, 5).movedim(1, 3)[0, 12:28, 12:28]
    assert (placed.picture[0, 92:108, 92:108] - boxes).abs().mean() < 0.02
    assert placed.mask.sum() == pytest.approx(400, rel=0.02)


@pytest.mark.parametrize("width, height", [(96, 160), (240, 100), (64, 64)])
def test_a_layer_of_another_size_is_fitted_into_the_middle(width, height):
    canvas = torch.full((1, 104, 152, 3), 0.25)
    guest = scene_of("letter L", width, height, x=0.4, y=0.6)
    layer = Layer("l", mask_of(guest, 0), picture(guest))
    placed = geometry.transform_layer(canvas, layer)
    fit = min(152 / width, 104 / height)
    offset = np.array([(152 - fit * width) / 2, (104 - fit * height) / 2])
    assert centre(placed.mask) == pytest.approx(fit * centre(layer.mask) + offset, abs=0.05)
    assert float(placed.mask.sum()) == pytest.approx(fit**2 * float(layer.mask.sum()), rel=0.01)
    solid = placed.mask[0] > 0.999
    assert (placed.picture[0][solid] - torch.from_numpy(guest.objects[0].rgb)).abs().max() < 0.03
    assert (placed.picture[0][placed.mask[0] == 0] == 0.25).all()


def test_the_same_size_is_the_same_place():
    scene = scene_of("star")
    placed = geometry.transform_layer(torch.zeros(1, 128, 128, 3), Layer("l", mask_of(scene, 0), picture(scene)))
    assert (placed.mask - mask_of(scene, 0)).abs().max() < 1e-5 and placed.cells == (0, 0)


def test_what_hid_the_layer_comes_along():
    scene = scene_of("square")
    occluder = torch.zeros(1, 128, 128)
    occluder[0, 60:80, 70:90] = 1
    layer = Layer("l", mask_of(scene, 0), scale_x=1.5, scale_y=0.5, occluder=occluder)
    hidden = geometry.transform_layer(picture(scene), layer, (3.0, 0.0)).hidden
    about = centre(layer.mask)
    assert hidden is not None
    expected = (centre(occluder) - about) * (1.5, 0.5) + about + (3, 0)
    assert centre(hidden) == pytest.approx(expected, abs=0.02)
    assert float(hidden.sum()) == pytest.approx(0.75 * 400, rel=0.02)


def test_the_inputs_are_not_changed():
    scene = scene_of()
    source, mask, occluder = picture(scene), mask_of(scene, 0), torch.rand(1, 128, 128)
    copies = [t.clone() for t in (source, mask, occluder)]
    placed = geometry.transform_layer(source, Layer("l", mask, rotation=20.0, occluder=occluder), (3.0, 0.0))
    geometry.lay_on(source, placed, [(1, 1)])
    assert all(torch.equal(*pair) for pair in zip((source, mask, occluder), copies, strict=True))


# layers that do not fit where they are made


@pytest.mark.parametrize(
    "x, y, scale, move",
    [
        (0.25, 0.5, (2.4, 1.0), (40.0, 0.0)),  # grows out on the left, and is moved in again
        (0.75, 0.8, (2.4, 2.0), (-45.0, -38.0)),  # on two sides
        (0.25, 0.25, (2.6, 2.6), (0.0, 0.0)),  # stays there: what is outside is not needed
        (0.5, 0.5, (4.5, 4.5), (60.0, -40.0)),  # larger than the canvas, to either side
        (0.5, 0.5, (4.5, 4.5), (-60.0, 40.0)),
        (0.38, 0.5, (3.4, 1.0), (0.0, 0.0)),  # nearly as wide as the canvas, over its left border
    ],
)
@pytest.mark.parametrize("width, height", [(128, 128), (152, 128)])
def test_nothing_is_lost_that_the_move_brings_into_the_frame(x, y, scale, move, width, height):
    scene = scene_of("square", width, height, x, y, size=0.34)
    placed, both = placed_and_truth(scene, move, scale_x=scale[0], scale_y=scale[1])
    seen = geometry.shifted(placed.mask, *(8 * n for n in placed.cells))[0].numpy()
    truth = both.full_mask(1)
    core, halo = (sign * F.max_pool2d(sign * torch.from_numpy(truth)[None], 13, 1, 6)[0].numpy() for sign in (-1, 1))
    assert (core == 1).mean() > 0.05
    assert seen[core == 1].min() > 0.99 and seen[halo == 0].max(initial=0) < 0.01


def test_a_layer_that_its_frame_cuts_stays_at_the_border_unless_it_is_moved_in():
    scene = scene_of("square", x=0.05)
    layer = Layer("l", mask_of(scene, 0), scale_x=1.5, scale_y=1.5)
    assert geometry.inward(layer, (128, 128), (0.0, 0.0)) == (0, 0)
    right, down = geometry.inward(layer, (128, 128), (64.0, 0.0))
    assert (right > 0) and down == 0


def test_a_layer_that_fits_is_made_where_it_is():
    scene = scene_of("square")
    layer = Layer("l", mask_of(scene, 0), scale_x=1.5, scale_y=1.5)
    for move in [(0.0, 0.0), (600.0, -3.0), (-41.5, 90.0)]:
        assert geometry.inward(layer, (128, 128), move) == (0, 0)
