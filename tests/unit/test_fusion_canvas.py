"""Pan And Zoom against the same world seen through another window."""

import math

import numpy as np
import pytest
import torch

from latent_layers.fusion import canvas
from latent_layers.fusion.canvas import pan_and_zoom, window_of
from latent_layers.toyscenes.backgrounds import PALETTE, Background
from latent_layers.toyscenes.measure import psnr
from latent_layers.toyscenes.scenes import Scene, SceneObject, Window

SIZES = [(256, 256), (320, 192), (168, 264)]
# shift_x, shift_y, zoom, center_x, center_y
PLACES = [
    (0.25, 0.0, 1.0, 0.5, 0.5),
    (-0.125, 0.25, 1.0, 0.5, 0.5),
    (0.103, -0.057, 1.0, 0.2, 0.9),
    (0.0, 0.0, 0.7, 0.5, 0.5),
    (0.0, 0.0, 0.5, 0.0, 1.0),
    (0.11, -0.07, 0.83, 0.3, 0.6),
    (-0.2, 0.1, 0.4, 0.5, 0.5),
]


def scene(width: int, height: int, kind: str) -> Scene:
    """A red star and a blue square before a background that goes on beyond the frame."""
    background = Background(kind, PALETTE["sand"], PALETTE["steel"], 0.13, 0.4, 0.2, 0.1)
    middle_x, middle_y = (side / min(width, height) / 2 for side in (width, height))
    square = SceneObject("square", "blue", middle_x - 0.12, middle_y - 0.1, 0.24, rotation=12)
    star = SceneObject("star", "red", middle_x + 0.13, middle_y + 0.12, 0.26)
    return Scene(width, height, background, (square, star))


def as_image(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture)[None]


def noise(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(5))


def centroid(weights: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum(dtype=np.float64)


# against the truth


@pytest.mark.parametrize("kind", ["plain", "striped"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_picture_agrees_with_the_world_through_the_window(size, place, kind):
    width, height = size
    drawn = scene(width, height, kind)
    window = Window(*window_of(width, height, *place))
    got, exposed = pan_and_zoom(as_image(drawn.image()), *place)
    inside = 1 - exposed[0].numpy()
    assert inside.any() and not inside.all()
    assert psnr(got[0].numpy(), drawn.image(window), inside) > 35


def test_there_is_no_blurry_border_row():
    """The outermost rows that count as picture are as true as the rest, at places between pixels."""
    drawn = scene(250, 190, "striped")
    for start in np.linspace(0.1, 0.109, 9):
        place = (float(start), 0.03, 0.61, 0.1, 0.4)
        got, exposed = pan_and_zoom(as_image(drawn.image()), *place, fill="black")
        inside = 1 - exposed[0].numpy()
        border = inside.copy()
        border[1:-1, 1:-1] -= inside[2:, 1:-1] * inside[:-2, 1:-1] * inside[1:-1, 2:] * inside[1:-1, :-2]
        truth = drawn.image(Window(*window_of(250, 190, *place)))
        assert 0 < border.sum() < inside.sum() / 10
        assert psnr(got[0].numpy(), truth, border) > 35


@pytest.mark.parametrize("place", [(0.11, -0.07, 0.83, 0.3, 0.6), (0.0, 0.0, 0.5, 0.5, 0.5), (0.1, 0.05, 0.37, 0.9, 0)])
def test_a_shape_lands_exactly(place):
    """Its centroid is moved and scaled as asked, to a hundredth of a pixel."""
    width, height = 240, 160
    mask = scene(width, height, "plain").full_mask(1)
    got, _ = pan_and_zoom(as_image(np.repeat(mask[..., None], 3, 2)), *place, fill="black")
    shift_x, shift_y, zoom, center_x, center_y = place
    fixed = np.array([center_x * width, center_y * height])
    expected = fixed + zoom * (centroid(mask) - fixed) + (shift_x * width, shift_y * height)
    assert np.abs(centroid(got[0, ..., 0].numpy()) - expected).max() < 0.01


def test_the_window_is_the_inverse_of_the_move():
    assert window_of(256, 256, 0.25, 0.0, 1.0) == (-0.25, 0.0, 1.0)
    assert window_of(256, 256, 0.0, 0.0, 0.5) == (0.0, 0.0, 0.5)
    # shrunk towards the top left corner, twice the world is seen, to the right and below
    assert window_of(200, 100, 0.0, 0.0, 0.5, 0.0, 0.0) == (0.5, 0.5, 0.5)


# what is exposed, and copied


@pytest.mark.parametrize("columns, rows", [(13, 0), (-20, 7), (0, -9), (1, 1), (-1, 0)])
def test_whole_pixels_are_copied_bit_for_bit(columns, rows):
    image = noise(2, 48, 80)
    got, exposed = pan_and_zoom(image, columns / 80, rows / 48)
    every = slice(None)
    to = every, slice(max(rows, 0), 48 + min(rows, 0)), slice(max(columns, 0), 80 + min(columns, 0))
    origin = every, slice(max(-rows, 0), 48 + min(-rows, 0)), slice(max(-columns, 0), 80 + min(-columns, 0))
    assert torch.equal(got[to], image[origin])
    expected = torch.ones(2, 48, 80)
    expected[to] = 0
    assert torch.equal(exposed, expected)


def test_directions():
    """Positive moves the picture right and down, so that the left and the top are exposed."""
    _, exposed = pan_and_zoom(noise(1, 40, 80), shift_x=0.25)
    assert (exposed[0, :, :20] == 1).all() and (exposed[0, :, 20:] == 0).all()
    _, exposed = pan_and_zoom(noise(1, 40, 80), shift_y=0.25)
    assert (exposed[0, :10] == 1).all() and (exposed[0, 10:] == 0).all()
    _, exposed = pan_and_zoom(noise(1, 40, 80), zoom=0.5, center_x=1.0, center_y=0.0)
    assert (exposed[0, :20, 40:] == 0).all() and exposed.sum() == 40 * 80 - 20 * 40


def test_a_shift_between_pixels_is_rounded_and_not_blurred():
    image = noise(1, 64, 64)
    got, exposed = pan_and_zoom(image, shift_x=10.4 / 64)
    assert torch.equal(got[:, :, 10:], image[:, :, :-10])
    assert exposed.sum() == 64 * 10
    assert window_of(64, 64, 10.4 / 64, 0.0, 1.0)[0] == -10 / 64


def test_a_pixel_covered_in_part_is_exposed():
    """At 0.7 a picture of 64 pixels covers 9.6 to 54.4: pixels 10 to 53 in full."""
    _, exposed = pan_and_zoom(noise(1, 64, 64), zoom=0.7)
    expected = torch.ones(1, 64, 64)
    expected[:, 10:54, 10:54] = 0
    assert torch.equal(exposed, expected)


def test_every_picture_of_a_batch_is_its_own():
    image = noise(3, 40, 56)
    got, exposed = pan_and_zoom(image, 0.1, 0.0, 0.6, fill="mirror")
    assert got.shape == image.shape and exposed.shape == image.shape[:3] and got.dtype == exposed.dtype == torch.float32
    for index in range(3):
        alone, mask = pan_and_zoom(image[index : index + 1], 0.1, 0.0, 0.6, fill="mirror")
        assert torch.equal(alone[0], got[index]) and torch.equal(mask[0], exposed[index])


def test_the_input_stays_as_it_was():
    image = noise(1, 32, 32)
    before = image.clone()
    for fill in canvas.FILLS:
        pan_and_zoom(image, 0.25, zoom=0.5, fill=fill)[0].zero_()
        pan_and_zoom(image, 0.25, fill=fill)[0].zero_()
    assert torch.equal(image, before)


# what lies beneath


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_fill_changes_the_exposed_area_only(place):
    image = noise(1, 56, 72)
    filled = {fill: pan_and_zoom(image, *place, fill=fill) for fill in canvas.FILLS}
    first, exposed = filled["original"]
    for got, mask in filled.values():
        assert torch.equal(mask, exposed)
        assert torch.equal(got[mask == 0], first[mask == 0])
    hidden = exposed == 1
    assert torch.equal(filled["original"][0][hidden], image[hidden])
    assert (filled["black"][0][hidden] == 0).all() and (filled["white"][0][hidden] == 1).all()


def test_mirror_and_edge_continue_a_shifted_picture():
    row = torch.arange(10.0) / 10
    image = row[None, None, :, None].expand(1, 4, 10, 3)
    mirrored, _ = pan_and_zoom(image, shift_x=0.3, fill="mirror")
    assert torch.equal(mirrored[0, 0, :, 0], row[[2, 1, 0, 0, 1, 2, 3, 4, 5, 6]])
    # more is exposed than is still seen: what left the frame is mirrored into it
    mirrored, _ = pan_and_zoom(image, shift_x=-0.8, fill="mirror")
    assert torch.equal(mirrored[0, 0, :, 0], row[[8, 9, 9, 8, 7, 6, 5, 4, 3, 2]])
    repeated, _ = pan_and_zoom(image, shift_x=-0.3, fill="edge")
    assert torch.equal(repeated[0, 0, :, 0], row[[3, 4, 5, 6, 7, 8, 9, 9, 9, 9]])


def test_mirror_repeats_when_the_picture_is_small():
    image = noise(1, 80, 80)
    got, exposed = pan_and_zoom(image, zoom=0.25, fill="mirror")
    tile = got[:, 30:50, 30:50]
    assert (exposed[:, 30:50, 30:50] == 0).all()
    assert torch.equal(got[:, 30:50, 50:70], tile.flip(2))
    assert torch.equal(got[:, 30:50, 70:], tile[:, :, :10])
    assert torch.equal(got[:, 10:30, 10:30], tile.flip(1, 2))
    assert torch.equal(got[:, :10, 30:50], tile[:, 10:])


# errors


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"zoom": 1.01}, r"zoom is 1\.01; .*0\.1 to 1"),
        ({"zoom": 0.05}, r"zoom is 0\.05; .*0\.1 to 1"),
        ({}, "shift_x 0, shift_y 0, zoom 1 expose nothing .*set zoom below 1"),
        ({"shift_x": 0.005}, r"shift_x 0\.005.* expose nothing .*half a pixel"),
        ({"shift_x": 1.0}, "shift_x 1,.* leave nothing .*nearer to 0"),
        ({"shift_y": -0.9, "zoom": 0.5}, r"shift_x 0, shift_y -0\.9, zoom 0\.5 leave nothing .*nearer to 0"),
        ({"shift_x": math.nan}, "shift_x is nan, not a number"),
        ({"shift_y": math.inf}, "shift_y is inf, not a number"),
        ({"zoom": math.nan}, "zoom is nan, not a number"),
        ({"zoom": 0.5, "center_x": math.nan}, "center_x is nan, not a number"),
        ({"zoom": 0.5, "fill": "grey"}, "fill is 'grey'; use one of original, mirror, edge, black, white"),
    ],
)
def test_errors_name_the_input_and_the_remedy(settings, message):
    with pytest.raises(ValueError, match=f"Pan And Zoom: {message}"):
        pan_and_zoom(noise(1, 64, 64), **settings)


def test_images_that_are_none_are_refused():
    with pytest.raises(ValueError, match="image has shape"):
        pan_and_zoom(torch.zeros(64, 64, 3), zoom=0.5)
    broken = noise(1, 64, 64)
    broken[0, 3, 3, 0] = math.nan
    with pytest.raises(ValueError, match="image has values that are not numbers"):
        pan_and_zoom(broken, zoom=0.5)


def test_the_smallest_frames():
    got, exposed = pan_and_zoom(noise(1, 1, 2), shift_x=0.5, fill="edge")
    assert exposed.tolist() == [[[1.0, 0.0]]] and torch.equal(got[:, :, 0], got[:, :, 1])
    with pytest.raises(ValueError, match="zoom nearer to 1"):
        pan_and_zoom(noise(1, 8, 8), zoom=0.1)
