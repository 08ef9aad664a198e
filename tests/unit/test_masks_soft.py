"""Emu Edit's soft mask against the formula written out in float64, and what its defaults promise."""

import math

import pytest
import torch

from latent_layers.masks import soft


def random(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gauss_matrix(size, sigma):
    """Every output pixel's weights on a line whose ends reflect: ... b a | a b c | c b ..."""
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for k, weight in zip(range(-reach, reach + 1), weights, strict=True):
            place = (row + k) % (2 * size)
            matrix[row, place if place < size else 2 * size - 1 - place] += weight / sum(weights)
    return matrix


def blurred(mask, sigma):
    return gauss_matrix(mask.shape[-2], sigma) @ mask.double() @ gauss_matrix(mask.shape[-1], sigma).T


def grown(mask, radius):
    """The largest value within `radius` rows and columns."""
    height, width = mask.shape[-2:]
    framed = torch.zeros(len(mask), height + 2 * radius, width + 2 * radius, dtype=mask.dtype)
    framed[:, radius : radius + height, radius : radius + width] = mask
    reach = range(2 * radius + 1)
    return torch.stack([framed[:, y : y + height, x : x + width] for y in reach for x in reach]).amax(0)


def boxed(mask, padding):
    rows, columns = torch.arange(mask.shape[-2])[:, None], torch.arange(mask.shape[-1])
    result = torch.zeros_like(mask)
    for image, box in zip(mask, result, strict=True):
        inside = (image > 0.5).nonzero() if (image > 0.5).any() else (image > 0).nonzero()
        (top, left), (bottom, right) = inside.amin(0) - padding, inside.amax(0) + padding
        box[(top <= rows) & (rows <= bottom) & (left <= columns) & (columns <= right)] = 1
    return result


def painted(height, width, seed=0, dtype=torch.float32):
    """Two masks (2, H, W): a soft blob with noise, and a faint one that nowhere reaches 0.5."""
    mask = torch.zeros(2, height, width)
    mask[0, height // 3 : height // 2 + 1, width // 4 : width // 2] = random(
        height // 2 + 1 - height // 3, width // 2 - width // 4, seed=seed
    )
    mask[0, height // 3, width // 3] = 1.0
    mask[1, 1:4, width - 5 : width - 2] = 0.3
    return mask.to(dtype)


@pytest.mark.parametrize("size", [(19, 31), (33, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "weights, radius, sigma, padding",
    [((1.0, 2.0, 0.5), 3, 1.7, 2), ((0.0, 1.0, 0.0), 0, 2.5, 0), ((0.3, 0.0, 0.7), 2, 1.0, 40)],
)
def test_it_is_the_papers_formula(size, dtype, weights, radius, sigma, padding):
    mask = painted(*size, dtype=dtype)
    before = mask.clone()
    got = soft.soft_mask(
        mask,
        precise_weight=weights[0],
        spread_weight=weights[1],
        box_weight=weights[2],
        radius=radius,
        blur_sigma=sigma,
        padding=padding,
    )
    precise = mask.double()
    parts = (precise, blurred(grown(precise, radius), sigma), boxed(precise, padding))
    want = sum(w / sum(weights) * part for w, part in zip(weights, parts, strict=True))
    assert got.dtype == torch.float32 and got.shape == mask.shape
    assert (got - want).abs().max() < 1e-7
    assert torch.equal(mask, before)


def test_lengths_below_1_are_shares_of_the_width():
    mask = painted(40, 50)
    shares = soft.soft_mask(mask, box_weight=1.0, radius=0.1, blur_sigma=0.03, padding=0.06)
    pixels = soft.soft_mask(mask, box_weight=1.0, radius=5, blur_sigma=1.5, padding=3)
    assert torch.equal(shares, pixels)
    tall = soft.soft_mask(mask.mT, spread_weight=0.0, box_weight=1.0, padding=0.1)  # 40 wide: 4 pixels, downwards too
    assert torch.equal(tall, boxed(mask.mT, 4))


def test_the_defaults_leave_the_object_whole_and_fall_off_smoothly():
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(320), indexing="ij")
    disc = ((rows - 120) ** 2 + (columns - 150) ** 2 < 40**2).float()[None]
    got = soft.soft_mask(disc)
    assert got[disc == 1].min() > 0.99
    assert got.max() == 1.0
    steps = max(got.diff(dim=1).abs().max(), got.diff(dim=2).abs().max())
    assert steps < 0.08  # a Gaussian of 6.4 pixels falls by 0.062 a pixel at most
    right = got[0, 120, 150:]
    assert (right.diff() <= 0).all()
    # grown by 19 pixels and blurred over 26 (4 sigma): nothing beyond, to the bit
    assert (right[40 + 19 + 26 + 1 :] == 0).all() and right[40 + 19 + 20] > 0


def test_one_part_alone_is_that_part_exactly():
    mask = painted(21, 34)
    assert torch.equal(soft.soft_mask(mask, precise_weight=0.3, spread_weight=0.0), mask)
    assert torch.equal(soft.soft_mask(mask, spread_weight=0.0, box_weight=7.0), boxed(mask, 0))
    assert torch.equal(soft.soft_mask(mask, radius=2, blur_sigma=0), grown(mask, 2))


def test_only_the_proportions_of_the_weights_count():
    mask = painted(21, 34)
    one = soft.soft_mask(mask, precise_weight=0.2, spread_weight=0.5, box_weight=0.3)
    ten = soft.soft_mask(mask, precise_weight=2.0, spread_weight=5.0, box_weight=3.0)
    assert (one - ten).abs().max() < 1e-7


def test_a_white_mask_stays_exactly_white_at_the_frame():
    got = soft.soft_mask(torch.ones(1, 17, 23), precise_weight=0.1, spread_weight=0.6, box_weight=0.3, blur_sigma=9)
    assert (got == 1).all()


def test_a_painted_ramp_stays_a_ramp():
    ramp = torch.linspace(0, 1, 64).expand(2, 9, 64)
    got = soft.soft_mask(ramp, precise_weight=1.0, spread_weight=1.0, radius=3, blur_sigma=2)
    assert (got.diff(dim=2)[:, :, :57] > 0).all() and len(got[0, 0].unique()) > 55


def test_every_mask_of_a_batch_is_taken_by_itself():
    mask = painted(21, 34)
    settings = {"precise_weight": 0.2, "box_weight": 0.5, "radius": 3, "blur_sigma": 2, "padding": 1}
    together = soft.soft_mask(mask, **settings)
    for index in range(2):
        assert torch.equal(together[index], soft.soft_mask(mask[index], **settings)[0])


@pytest.mark.parametrize("size, sigma", [((5, 40), 11.0), ((1, 7), 2.0), ((18, 3), 0.4)])
def test_blur_of_pictures_smaller_than_the_kernel(size, sigma):
    pixels = random(3, *size, seed=4)
    assert (soft.blur(pixels, sigma) - blurred(pixels, sigma)).abs().max() < 1e-12


def test_blur_of_nothing_is_the_picture():
    pixels = random(2, 5, 6, dtype=torch.float16)
    assert torch.equal(soft.blur(pixels, 0), pixels.double())


def test_bad_input_says_what_would_be_right():
    mask = painted(9, 20)
    with pytest.raises(ValueError, match=r"Soft Mask: mask is empty \(all 0\); paint the area to edit"):
        soft.soft_mask(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="Soft Mask: mask 2 of 2 is empty"):
        soft.soft_mask(torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))
    with pytest.raises(ValueError, match="precise_weight, spread_weight, box_weight are all 0; give at least one"):
        soft.soft_mask(mask, spread_weight=0.0)
    with pytest.raises(ValueError, match="box_weight is -1; it must be 0 or more"):
        soft.soft_mask(mask, box_weight=-1)
    with pytest.raises(ValueError, match="radius is -0.1"):
        soft.soft_mask(mask, radius=-0.1)
    with pytest.raises(ValueError, match="blur is nan"):
        soft.soft_mask(mask, blur_sigma=float("nan"))
    with pytest.raises(ValueError, match="padding is inf"):
        soft.soft_mask(mask, padding=float("inf"))
    with pytest.raises(ValueError, match=r"mask has shape \(1, 3, 4, 4\)"):
        soft.soft_mask(torch.ones(1, 3, 4, 4))
