"""Emu Edit's threshold between turns: the formula in float64, and pixels that are kept to the bit."""

import math

import pytest
import torch

from latent_layers.masks.threshold import change_picture, colour_distance, soft_border, threshold_changes


def random(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference_distance(previous, new, sigma):
    """d_bar, tap by tap, with indices that reflect at the borders."""
    d = torch.zeros(previous.shape[:3], dtype=torch.float64)
    for channel in range(3):
        d += (new[..., channel].double() - previous[..., channel].double()).abs()
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    for axis in (1, 2):
        size, smooth = d.shape[axis], torch.zeros_like(d)
        for k, weight in zip(range(-reach, reach + 1), weights, strict=True):
            places = [(i + k) % (2 * size) for i in range(size)]
            line = torch.tensor([place if place < size else 2 * size - 1 - place for place in places])
            smooth += weight / sum(weights) * d.index_select(axis, line)
        d = smooth
    return d


def turns(batch=2, height=23, width=37, dtype=torch.float32, drift=0.004):
    """A picture, and the next turn: a box of other colours, and a little noise everywhere."""
    previous = random(batch, height, width, 3)
    new = previous + drift * (random(batch, height, width, 3, seed=1) - 0.5)
    new[:, 5:12, 8:20] = random(batch, 7, 12, 3, seed=2)
    return previous.to(dtype), new.clamp(0, 1).to(dtype)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 9.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_distance_is_the_papers(sigma, dtype):
    previous, new = turns(dtype=dtype)
    got = colour_distance(previous, new, sigma)
    assert (got - reference_distance(previous, new, sigma)).abs().max() < 1e-12
    assert torch.equal(colour_distance(previous, new, 0), (new.double() - previous.double()).abs().sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low_pass", [0.0, 1.5])
def test_a_hard_edge_takes_every_pixel_whole_from_one_of_both(dtype, low_pass):
    previous, new = turns(dtype=dtype, drift=0.0)
    new = torch.where((random(2, 23, 37, 1, seed=7) < 0.2), new, new * 0.999)  # a difference everywhere, below alpha
    got = threshold_changes(previous, new, low_pass=low_pass)
    distance = reference_distance(previous, new, low_pass) if low_pass else (new.double() - previous).abs().sum(-1)
    kept = torch.lt(distance, 0.03)
    assert 0.3 < kept.double().mean() < 0.95
    assert torch.equal(got.mask, (~kept).float())
    assert torch.equal(got.image[kept], previous[kept]) and torch.equal(got.image[~kept], new[~kept])
    assert got.image.dtype == dtype and got.distance.dtype == torch.float32
    assert (got.distance - distance).abs().max() < 1e-6


def test_a_pixel_at_alpha_is_new():
    previous, new = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3)
    new[0, 0, 0, 1], new[0, 1, 1, 2], new[0, 0, 1] = 0.25, 0.2499, 0.125
    got = threshold_changes(previous, new, alpha=0.25, low_pass=0)
    assert got.mask[0].tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("width", [1.0, 2.5, 6.0])
def test_a_soft_edge_falls_with_the_distance_to_the_change(width):
    changed = random(2, 19, 26, seed=5) < 0.01
    changed[1] = False
    changed[1, 18, 0] = True
    got = soft_border(changed, width)
    for share, area in zip(got, changed, strict=True):
        places = area.nonzero().double()
        every = torch.cartesian_prod(torch.arange(19.0), torch.arange(26.0)).double()
        nearest = (every[:, None] - places).norm(dim=2).amin(1).view(19, 26)
        assert (share - (1 - nearest / (width + 1)).clamp(min=0)).abs().max() < 1e-12


def test_a_soft_edge_mixes_only_around_the_change():
    previous, new = turns()
    hard, got = threshold_changes(previous, new), threshold_changes(previous, new, soft_edge=4)
    share = got.mask.double()
    assert torch.equal(share == 1, hard.mask == 1)
    mixed = (share > 0) & (share < 1)
    assert mixed.any() and (share == 0).any()
    assert torch.equal(got.image[share == 0], previous[share == 0])
    assert torch.equal(got.image[share == 1], new[share == 1])
    want = previous.double() + share[..., None] * (new.double() - previous.double())
    assert (got.image - want).abs().max() < 1e-7


@pytest.mark.parametrize("soft_edge", [0.0, 5.0])
def test_a_turn_that_changes_nothing_returns_the_picture(soft_edge):
    previous, _ = turns()
    got = threshold_changes(previous, previous + 1e-4, soft_edge=soft_edge)
    assert torch.equal(got.image, previous) and not got.mask.any()


def test_alpha_0_takes_the_new_picture_whole():
    previous, new = turns()
    assert torch.equal(threshold_changes(previous, new, alpha=0).image, new)


def test_outside_the_mask_nothing_changes():
    previous, new = turns()
    mask = torch.zeros(1, 23, 37)
    mask[:, :9] = 1.0
    mask[:, :, 16:] *= 0.5
    free = threshold_changes(previous, new, soft_edge=3)
    got = threshold_changes(previous, new, soft_edge=3, mask=mask)
    assert torch.equal(got.image[:, 9:], previous[:, 9:])
    assert torch.equal(got.image[:, :9, :16], free.image[:, :9, :16])
    assert (got.mask - free.mask * mask).abs().max() < 1e-7
    grey = (previous.double() + got.mask.double()[..., None] * (new.double() - previous))[:, :9, 16:]
    assert (got.image[:, :9, 16:] - grey).abs().max() < 1e-7 and not torch.equal(got.image[:, 6], free.image[:, 6])


@pytest.mark.parametrize("batches", [(1, 3, 1), (3, 1, 3), (3, 3, 1), (1, 1, 1)])
def test_batches_of_one_serve_all(batches):
    previous, new = (turns(3)[i][: batches[i]] for i in range(2))
    mask = (random(3, 23, 37, seed=8) < 0.7).float()[: batches[2]]
    got = threshold_changes(previous, new, low_pass=1, soft_edge=2, mask=mask)
    assert got.image.shape == (max(batches), 23, 37, 3) and got.mask.shape == got.distance.shape == got.image.shape[:3]
    for index in range(max(batches)):
        one = [part[min(index, len(part) - 1)][None] for part in (previous, new, mask)]
        alone = threshold_changes(one[0], one[1], low_pass=1, soft_edge=2, mask=one[2])
        assert torch.equal(alone.image[0], got.image[index]) and torch.equal(alone.mask[0], got.mask[index])


def test_ten_turns_leave_the_rest_of_the_picture_untouched():
    first = random(1, 40, 60, 3)
    picture, drifting, edited = first, first, torch.zeros(40, 60, dtype=torch.bool)
    for turn in range(10):
        top, left = 20 * (turn % 2) + 6, 12 * (turn // 2) + 3
        rows, columns = slice(top, top + 5), slice(left, left + 5)
        edited[rows, columns] = True
        results = []
        for before in (picture, drifting):
            # each turn makes everything a little darker, as a decoder might
            after = before * 0.995 + 0.004 * (random(1, 40, 60, 3, seed=turn) - 0.5)
            after[:, rows, columns] = random(5, 5, 3, seed=100 + turn)
            results.append(after)
        picture, drifting = threshold_changes(picture, results[0], low_pass=0.5).image, results[1]
        assert torch.equal(picture[:, rows, columns], results[0][:, rows, columns])
    # a sigma of half a pixel reaches two pixels around an edit
    near = torch.nn.functional.max_pool2d(edited.float()[None], 5, 1, 2)[0].bool()
    assert torch.equal(picture[:, ~near], first[:, ~near])
    assert (drifting - first)[:, ~near].abs().mean() > 0.01


def test_inputs_stay_as_they_were():
    previous, new = turns()
    copies = previous.clone(), new.clone()
    threshold_changes(previous, new, soft_edge=3)
    assert torch.equal(previous, copies[0]) and torch.equal(new, copies[1])


def test_the_change_map_is_blue_where_kept_and_hot_where_new():
    distance = torch.linspace(0, 3.3, 1000).expand(2, 5, 1000)
    picture = change_picture(distance, alpha=0.3)
    assert picture.shape == (2, 5, 1000, 3) and picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() == 1
    red, _, blue = picture[0, 0].unbind(-1)
    kept = distance[0, 0] < 0.3
    assert (blue[kept] > red[kept]).all() and (red[~kept] >= blue[~kept]).all()
    for part in (picture[0, 0][kept], picture[0, 0][~kept]):
        assert (part.sum(-1).diff() >= -1e-6).all()  # brighter is more
    assert (picture[0, 0, -1] == 1).all()


def test_the_change_map_of_any_alpha():
    for alpha in (0.0, 0.03, 3.0, 5.0):
        assert torch.isfinite(change_picture(random(1, 4, 5) * 3, alpha)).all()
    red, _, blue = change_picture(torch.zeros(1, 1, 1), 0.0)[0, 0, 0]
    assert red > blue


def test_bad_input_says_what_would_be_right():
    previous, new = random(2, 8, 12, 3), random(2, 8, 12, 3, seed=1)
    with pytest.raises(ValueError, match="Change Threshold: alpha is -0.1; it must be 0 or more"):
        threshold_changes(previous, new, alpha=-0.1)
    with pytest.raises(ValueError, match="soft_edge is nan"):
        threshold_changes(previous, new, soft_edge=float("nan"))
    with pytest.raises(ValueError, match="low_pass is -1"):
        threshold_changes(previous, new, low_pass=-1)
    with pytest.raises(ValueError, match="new is 12x7, previous 12x8; bring one .* with Upscale Image"):
        threshold_changes(previous, new[:, 1:])
    with pytest.raises(ValueError, match=r"previous has 4 channels \(RGBA\); take the alpha off with Split Image with"):
        threshold_changes(random(1, 8, 12, 4), new)
    with pytest.raises(ValueError, match="new has 1 channels; give an RGB picture"):
        threshold_changes(previous, new[..., :1])
    with pytest.raises(ValueError, match=r"new has shape \(8, 12, 3\); an IMAGE is"):
        threshold_changes(previous, new[0])
    with pytest.raises(ValueError, match="new has values that are not numbers"):
        threshold_changes(previous, new * float("nan"))
    with pytest.raises(ValueError, match="new has a batch of 3, previous of 2; give as many of both"):
        threshold_changes(previous, random(3, 8, 12, 3))
    with pytest.raises(ValueError, match=r"reference has a batch of 3 for 2 image"):
        threshold_changes(previous[:1], new, reference=random(3, 8, 12, 3))
    broken = random(2, 8, 12, 3)
    broken[1, 3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"reference has values that are not numbers"):
        threshold_changes(new, new, reference=broken)
    with pytest.raises(ValueError, match=r"reference has a batch of 2 for 1 image"):
        threshold_changes(previous[:1], new[:1], reference=random(2, 8, 12, 3))
    with pytest.raises(ValueError, match=r"mask has a batch of 3 for 2 image"):
        threshold_changes(previous, new, mask=torch.ones(3, 8, 12))
    with pytest.raises(ValueError, match="mask is 8x12, the pictures 12x8"):
        threshold_changes(previous, new, mask=torch.ones(1, 12, 8))
    with pytest.raises(ValueError, match="mask 2 of 2 is empty"):
        threshold_changes(previous, new, mask=torch.stack([torch.ones(8, 12), torch.zeros(8, 12)]))


def test_a_reference_takes_what_the_autoencoder_alone_changes_out_of_the_comparison():
    generator = torch.Generator().manual_seed(5)
    previous = torch.rand(2, 33, 47, 3, generator=generator)
    blurred = previous + 0.2 * (torch.rand(2, 33, 47, 3, generator=generator) - 0.5)
    new = blurred.clone()
    new[:, 10:20, 30:40] = 1 - previous[:, 10:20, 30:40]
    turn = threshold_changes(previous, new, low_pass=0, reference=blurred)
    expected = ((new.double() - blurred.double()).abs().sum(-1) >= 0.03).float()
    assert torch.equal(turn.mask, expected)
    assert torch.equal(turn.image[turn.mask == 0], previous[turn.mask == 0])
    assert turn.mask.sum() < 2 * 10 * 10 + 1 and threshold_changes(previous, new, low_pass=0).mask.mean() > 0.9
    # one for all pictures of the batch is enough
    one = threshold_changes(previous[:1], new, low_pass=0, reference=blurred[:1])
    assert one.image.shape == new.shape and one.mask.shape == new.shape[:3]
    with pytest.raises(ValueError, match="reference is 47x32, previous 47x33"):
        threshold_changes(previous, new, reference=blurred[:, 1:])
