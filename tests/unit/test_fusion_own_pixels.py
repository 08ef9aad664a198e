"""The layers' own pixels in the finished picture: which ones, where, and in front of what."""

import numpy as np
import torch

from latent_layers.fusion.geometry import shifted
from latent_layers.fusion.layered import DILATION, lay_out, with_detail
from latent_layers.fusion.layers import Layer
from latent_layers.masks.grid import dilate

WIDTH, HEIGHT = 136, 96


def picture(width=WIDTH, height=HEIGHT) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))


def box(left, top, right, bottom) -> torch.Tensor:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, top:bottom, left:right] = 1
    return mask


BOX = box(40, 32, 64, 56)


def test_a_moved_layer_keeps_every_pixel_where_it_lands():
    source = picture()
    own, kept = lay_out(source, [Layer("a", BOX, moves=((16.0, -8.0), (-24.0, 8.0)))]).own_pixels()
    for right, down in ((16, -8), (-24, 8)):
        there = shifted(BOX, right, down)[0] == 1
        assert torch.equal(own[0][there], shifted(source[0].movedim(2, 0), right, down).movedim(0, 2)[there])
        assert (kept[0][there] == 1).all()
    places = torch.maximum(shifted(BOX, 16, -8), shifted(BOX, -24, 8))
    assert torch.equal(kept, places)


def test_rims_are_the_models():
    mask = BOX.clone()
    mask[:, 31], mask[:, 56], mask[:, :, 39] = 0.4 * BOX[:, 32], 0.5 * BOX[:, 55], 0.75 * BOX[:, :, 40]
    _, kept = lay_out(picture(), [Layer("a", mask, moves=((8.0, 0.0),))]).own_pixels()
    assert torch.equal(kept, shifted(BOX, 8, 0))


def test_detail_of_what_the_model_left_alone_is_the_pictures_own():
    generator = torch.Generator().manual_seed(1)
    laid, blurred = (torch.rand(2, 9, 14, 3, generator=generator) for _ in range(2))
    assert torch.equal(with_detail(blurred, laid, blurred), laid)
    changed = 0.3 * torch.randn(2, 9, 14, 3, generator=generator)
    by_hand = np.clip(laid.double().numpy() + changed.double().numpy(), 0, 1)
    assert np.abs(with_detail(blurred + changed, laid, blurred).numpy() - by_hand).max() < 1e-6


def test_what_was_hidden_is_completed_with_a_margin():
    occluder = box(56, 24, 80, 64)
    layout = lay_out(picture(), [Layer("a", BOX, moves=((-24.0, 0.0),), occluder=occluder)])
    assert layout.occluded is not None and layout.completed is not None
    assert torch.equal(layout.completed, dilate(layout.occluded, DILATION))
    assert lay_out(picture(), [Layer("a", BOX, moves=((-24.0, 0.0),))]).completed is None


def test_what_lies_in_front_covers_what_is_kept_behind():
    source = picture()
    behind = Layer("behind", BOX, moves=((8.0, 0.0),), order=0)
    soft = box(56, 40, 96, 64) * 0.3
    front = Layer("front", torch.maximum(soft, box(64, 48, 88, 56)), moves=((-8.0, 0.0),), order=1)
    own, kept = lay_out(source, [front, behind]).own_pixels()
    solid = box(56, 48, 80, 56)[0] == 1  # the front layer's core at its place
    expected = shifted(source[0].movedim(2, 0), -8, 0).movedim(0, 2)
    assert torch.equal(own[0][solid], expected[solid]) and (kept[0][solid] == 1).all()
    # under its soft rim so much of the one behind is left as shows through
    rim = (box(48, 40, 88, 48) * box(48, 32, 72, 56))[0] == 1
    assert rim.any() and torch.allclose(kept[0][rim], torch.tensor(0.7))


def test_nothing_is_kept_where_something_hid_the_layer():
    occluder = box(56, 24, 80, 64)
    seen = BOX * (1 - occluder)
    layout = lay_out(picture(), [Layer("a", torch.maximum(seen, BOX), moves=((-24.0, 0.0),), occluder=occluder)])
    _, kept = layout.own_pixels()
    assert torch.equal(kept, shifted(seen, -24, 0))


def test_a_removed_layer_keeps_nothing_and_one_that_stays_keeps_itself():
    source = picture()
    own, kept = lay_out(source, [Layer("gone", box(96, 40, 112, 60), moves=()), Layer("stays", BOX)]).own_pixels()
    assert torch.equal(kept, BOX)
    assert torch.equal(own[0][BOX[0] == 1], source[0][BOX[0] == 1])


def test_a_resampled_layer_keeps_its_resampled_pixels():
    source = picture()
    layout = lay_out(source, [Layer("a", BOX, scale_x=1.5, moves=((13.0, 4.5),))])
    own, kept = layout.own_pixels()
    laid = layout.laid_on(torch.zeros_like(source))
    solid = kept[0] == 1
    assert solid.sum() > 0.7 * 1.5 * BOX.sum()
    assert torch.allclose(own[0][solid], laid[0][solid])
