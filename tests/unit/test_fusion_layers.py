"""Layers and the layout of an edit: what goes where, what has to be filled, and what may change."""

import copy
import re

import pytest
import torch

from latent_layers.fusion.layered import DILATION, Content, Layout, lay_out
from latent_layers.fusion.layers import Layer, in_order, painted_box, parse_moves
from latent_layers.masks.grid import dilate

WIDTH, HEIGHT = 128, 96
GROW = round(DILATION * WIDTH)


def picture(width=WIDTH, height=HEIGHT, batch=1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(0))


def box(left, top, right, bottom, width=WIDTH, height=HEIGHT) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


def bounds(mask: torch.Tensor) -> tuple[int, int, int, int]:
    found = painted_box(mask)
    assert found is not None
    assert mask.sum() == (found[2] - found[0]) * (found[3] - found[1])  # it is a box
    return found


def layout(*layers: Layer, **more) -> Layout:
    return lay_out(picture(), layers, **more)


BOX = box(40, 32, 56, 48)

# layers


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("", ((0, 0),)),
        (" \n ; ", ((0, 0),)),
        ("120, -40", ((120, -40),)),
        ("10%, -5%", ((20, -5),)),
        ("12.5%, 8", ((25, 8),)),
        ("-40, 25; 0,0", ((-40, 25), (0, 0))),
        ("1,2\n3,4\n", ((1, 2), (3, 4))),
        ("  1.5 \t, -.25 ;", ((1.5, -0.25),)),
        ("7 8", ((7, 8),)),
        ("-100%,100%", ((-200, 100),)),
        ("-40\uff0c25\uff1b0\uff0c0", ((-40, 25), (0, 0))),  # a Chinese keyboard's comma and semicolon
    ],
)
def test_moves_are_read(text, moves):
    assert parse_moves(text, 200, 100, "Node: moves") == moves


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "'5' is not a move; write right, down"),
        ("0, 0; 1, 2, 3", "'1, 2, 3' is not a move"),
        (",", "',' is not a move"),
        ("a, 0", "'a' is not a number; write pixels"),
        ("0, %", "'%' is not a number"),
        ("0, 5%%", "'5%%' is not a number"),
        ("nan, 0", "'nan' is not a finite number"),
        ("0, -inf%", "'-inf%' is not a finite number"),
        ("1e308%, 0", "'1e308%' is not a finite number"),
    ],
)
def test_moves_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match="^Node: moves: " + re.escape(message)):
        parse_moves(text, 20000, 100, "Node: moves")


def test_in_order_keeps_what_is_equal():
    layers = [Layer(name, BOX, order=order) for name, order in [("a", 1), ("b", 0), ("c", 1), ("d", -2), ("e", 0)]]
    assert "".join(layer.name for layer in in_order(layers)) == "dbeac"
    assert "".join(layer.name for layer in layers) == "abcde"


@pytest.mark.parametrize(
    ("fields", "transforms", "stays"),
    [
        ({}, False, True),
        ({"moves": ((8.0, 0.0),)}, False, False),
        ({"moves": ()}, False, False),
        ({"moves": ((8.0, 0.0), (0.0, 0.0))}, False, True),
        ({"rotation": -720.0}, False, True),
        ({"rotation": 1.0}, True, False),
        ({"scale_x": 1.1}, True, False),
        ({"scale_y": 0.9}, True, False),
        ({"flip_x": True}, True, False),
        ({"flip_y": True}, True, False),
        ({"image": torch.zeros(1, 8, 8, 3)}, False, False),
    ],
    ids=str,
)
def test_what_transforms_and_what_stays(fields, transforms, stays):
    layer = Layer("l", BOX, **fields)
    assert (layer.transforms, layer.stays) == (transforms, stays)


def test_painted_box_ends_after_the_last_pixel():
    assert painted_box(box(3, 5, 9, 6)) == (3, 5, 9, 6)
    soft = 0.2 * box(3, 5, 9, 6) + 0.1 * box(2, 4, 12, 9)  # above half of 0.3
    assert painted_box(soft) == (3, 5, 9, 6) and painted_box(0 * BOX) is None


# what goes where


def test_a_move_by_whole_cells_leaves_a_hole_and_uses_the_source():
    got = layout(Layer("l", BOX, moves=((16.0, -8.0),)))
    (part,) = got.placed
    assert part.from_source and part.on_canvas.picture is got.source and part.moves == ((2, -1),)
    assert bounds(part.area) == (56, 24, 72, 40)
    assert got.hole is not None and bounds(got.hole) == (40 - GROW, 32 - GROW, 56 + GROW, 48 + GROW)
    assert got.occluded is None and not got.needs_inversion
    assert torch.equal(got.edited, torch.maximum(got.hole, dilate(part.area, GROW)))
    assert torch.equal(got.final_masks(), part.area) and torch.equal(got.covered, part.area)


def test_a_removed_layer_is_only_a_hole():
    got = layout(Layer("l", BOX, moves=()), dilation=5)
    assert got.placed == () and got.final_masks().abs().max() == 0
    assert got.hole is not None and bounds(got.hole) == (35, 27, 61, 53) and torch.equal(got.hole, got.edited)
    assert torch.equal(layout(Layer("l", BOX, moves=()), dilation=0).edited, BOX)


def test_a_duplicate_leaves_the_original_untouched():
    got = layout(Layer("l", BOX, moves=((0.0, 0.0), (40.0, 0.0))))
    assert got.hole is None
    (part,) = got.placed
    assert part.moves == ((0, 0), (5, 0)) and part.from_source
    assert bounds(got.edited) == (80 - GROW, 32 - GROW, 96 + GROW, 48 + GROW)
    assert torch.equal(got.final_masks(), torch.maximum(BOX, box(80, 32, 96, 48)))


def test_what_stays_is_laid_over_what_moves_behind_it():
    behind = Layer("behind", box(8, 32, 24, 48), moves=((32.0, 0.0),))
    got = layout(Layer("front", BOX, order=1), behind)
    assert [part.layer.name for part in got.placed] == ["behind", "front"]
    assert got.hole is not None and bounds(got.hole) == (8 - GROW, 32 - GROW, 24 + GROW, 48 + GROW)
    laid = got.laid_on(torch.zeros_like(got.source))
    assert torch.equal(laid[0, 32:48, 40:56], got.source[0, 32:48, 40:56])
    assert [layer.name for layer in got.layers] == ["behind", "front"]
    assert torch.equal(got.final_masks(), torch.cat([box(40, 32, 56, 48), BOX]))


def test_a_transformed_layer_gets_a_picture_of_its_own():
    got = layout(Layer("l", BOX, scale_x=2.0), Layer("other", box(90, 60, 100, 70), moves=((8.0, 8.0),)))
    part, other = got.placed
    assert got.needs_inversion and not part.from_source and other.from_source
    assert part.moves == ((0, 0),) and part.area.sum() == pytest.approx(512, rel=0.01)
    assert (part.on_canvas.picture - got.source)[0][part.area[0] == 0].abs().max() == 0
    assert got.hole is not None and (got.hole[BOX == 1] == 1).all()
    assert (got.edited[part.area > 0.02] == 1).all()


def test_moves_share_a_picture_when_the_same_part_of_a_cell_is_left():
    moves = ((3.0, 0.0), (-21.0, 16.0), (16.0, 8.0), (3.004, -24.0), (3.0, 1.0), (0.0, 0.0))
    got = layout(Layer("l", BOX, moves=moves))
    assert [part.moves for part in got.placed] == [((0, 0), (-3, 2), (0, -3)), ((2, 1), (0, 0)), ((0, 0),)]
    assert [part.from_source for part in got.placed] == [False, True, False]
    groups = [(moves[0], moves[1], moves[3]), (moves[2], moves[5]), (moves[4],)]
    for part, group in zip(got.placed, groups, strict=True):
        alone = torch.cat([layout(Layer("l", BOX, moves=(move, (1.7, 0.0)))).placed[0].area for move in group])
        assert (part.area - alone.amax(0)).abs().max() < 0.005  # a hundredth of a pixel is nothing
    assert torch.equal(got.final_masks()[0], torch.stack([part.area[0] for part in got.placed]).amax(0))


@pytest.mark.parametrize("move", [(-21.0, 16.0), (3.3, -4.0), (0.5, 12.0)])
def test_a_layer_lands_where_its_move_says(move):
    got = layout(Layer("l", BOX, moves=(move,))).final_masks()[0].double()
    rows, columns = (torch.arange(side) + 0.5 for side in got.shape)
    place = float((got.sum(0) * columns).sum() / got.sum()), float((got.sum(1) * rows).sum() / got.sum())
    assert place == pytest.approx((48 + move[0], 40 + move[1]), abs=1e-3)


def test_a_layer_over_the_border_is_made_where_each_move_needs_it():
    # four times as wide it is over both borders; each side is brought in by another move
    got = layout(Layer("l", box(44, 40, 84, 56), scale_x=4.0, moves=((40.0, 0.0), (-40.0, 0.0))))
    for part, columns in zip(got.placed, [slice(30, WIDTH), slice(0, WIDTH - 30)], strict=True):
        assert (part.area[0, 42:54, columns] == 1).all()
    assert len(got.placed) == 2


def test_a_layer_of_another_picture_is_placed_but_leaves_no_hole():
    guest = Layer("guest", box(8, 8, 24, 24, 64, 48), image=picture(64, 48), moves=((8.0, 0.0),))
    got = layout(guest)
    assert got.hole is None and got.needs_inversion
    (part,) = got.placed
    inner = got.final_masks()[0, 18:46, 26:54]  # fitted to twice the size
    assert inner.min() > 0.99 and part.area.sum() == pytest.approx(32 * 32, rel=0.01)


@pytest.mark.parametrize("width, height", [(131, 99), (135, 97), (128, 103)])
def test_sides_are_cut_to_whole_cells(width, height):
    source, mask = picture(width, height), box(40, 32, width, 48, width, height)
    got = lay_out(source, [Layer("l", mask, moves=((-16.0, 0.0),), occluder=mask)])
    assert got.source.shape == (1, 96, 128, 3) and torch.equal(got.source, source[:, :96, :128])
    assert bounds(got.final_masks()) == (24, 32, 112, 48) and got.edited.shape == (1, 96, 128)


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_masks_of_another_size_are_resized(factor):
    left, top, right, bottom, width, height = (int(v * factor) for v in (40, 32, 56, 48, WIDTH, HEIGHT))
    mask = box(left, top, right, bottom, width, height)
    got = layout(Layer("l", mask[0], moves=((16.0, 0.0),)))
    assert got.layers[0].mask.shape == (1, HEIGHT, WIDTH)
    assert (got.layers[0].mask - BOX).abs().mean() < 0.005
    assert got.layers[0].mask[0, 34:46, 42:54].min() == 1 and got.layers[0].mask[0, :28].max() == 0


def test_no_detail_of_a_larger_mask_is_skipped():
    fine = torch.zeros(1, HEIGHT * 4, WIDTH * 4)
    fine[:, 100:300, 200:300:4] = 1
    mask = layout(Layer("l", fine, moves=())).layers[0].mask
    assert (mask[0, 30:70, 55:70] - 0.25).abs().max() < 0.02


def test_alpha_is_dropped():
    source = torch.cat([picture(), torch.zeros(1, HEIGHT, WIDTH, 1)], dim=3)
    assert torch.equal(lay_out(source, [Layer("l", BOX, moves=())]).source, picture())


def test_nothing_given_is_changed():
    source, mask, occluder = picture(), BOX.clone(), box(50, 32, 60, 48)
    copies = [t.clone() for t in (source, mask, occluder)]
    layers = [Layer("l", mask, rotation=30.0, moves=((3.0, 0.0), (40.0, 0.0)), occluder=occluder)]
    lay_out(source, layers).laid_on(source)
    assert all(torch.equal(*pair) for pair in zip((source, mask, occluder), copies, strict=True))


# what something hid


OCCLUDER = box(56, 32, 72, 48)


def test_what_hid_a_layer_moves_along_and_may_change():
    got = layout(Layer("l", BOX, moves=((16.0, 32.0), (-24.0, 0.0)), occluder=OCCLUDER))
    assert got.occluded is not None
    assert torch.equal(got.occluded, torch.maximum(box(72, 64, 88, 80), box(32, 32, 48, 48)))
    assert (got.edited[dilate(got.occluded, GROW) == 1] == 1).all()


def test_what_still_hides_a_layer_that_stays_is_kept():
    twice = Layer("l", BOX, moves=((0.0, 0.0), (0.0, 32.0)), occluder=OCCLUDER)
    got = layout(twice)
    assert got.occluded is not None and torch.equal(got.occluded, box(56, 64, 72, 80))
    # removed, it is hidden no longer
    got = layout(twice, Layer("front", OCCLUDER, moves=(), order=1))
    assert got.occluded is not None and torch.equal(got.occluded, torch.maximum(OCCLUDER, box(56, 64, 72, 80)))


def test_layers_in_front_cover_what_was_hidden():
    front = Layer("front", box(0, 32, 8, 48), moves=((80.0, 32.0),), order=1)
    got = layout(Layer("l", BOX, moves=((16.0, 32.0),), occluder=OCCLUDER), front)
    assert got.occluded is not None and torch.equal(got.occluded, box(72, 64, 80, 80))


def test_nothing_is_filled_when_what_hid_the_layer_leaves_the_frame():
    assert layout(Layer("l", BOX, moves=((64.0, 0.0),), occluder=box(64, 32, 72, 48))).occluded is None


# errors


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({}, "no layer is removed, moved or changed; give one a move"),
        ({"mask": 0 * BOX}, "layer 'cup': mask is empty (all 0); paint it"),
        ({"mask": torch.zeros(1, 64, 64)}, "layer 'cup': mask is empty (all 0); paint it"),  # Load Image's, unpainted
        ({"occluder": 0 * BOX}, "layer 'cup': occluder is empty (all 0)"),
        ({"mask": torch.ones(1, WIDTH, HEIGHT)}, "layer 'cup': mask is 96x128, another shape"),
        ({"occluder": torch.ones(1, 96, 96)}, "layer 'cup': occluder is 96x96, another shape"),
        ({"mask": BOX.repeat(2, 1, 1)}, "layer 'cup': mask has a batch of 2; give each its own Add Layer"),
        ({"mask": torch.full_like(BOX, float("nan"))}, "layer 'cup': mask has values that are not numbers"),
        ({"image": picture(batch=2)}, "layer 'cup': its image has a batch of 2; choose one"),
        ({"scale_x": 0.04}, "layer 'cup': scale_x is 0.04; it must be 0.05 to 20"),
        ({"scale_y": 21.0}, "layer 'cup': scale_y is 21; it must be"),
        ({"scale_y": float("nan")}, "layer 'cup': scale_y is nan; it must be"),
        ({"moves": ((0.0, 0.0), (90.0, 4.0))}, "layer 'cup': the move 90, 4 takes it out of the frame; use a smaller"),
        ({"moves": ((0.0, -48.0),)}, "layer 'cup': the move 0, -48 takes it out of the frame"),
        ({"mask": torch.ones_like(BOX), "moves": ()}, "the layers cover the whole picture; leave something"),
    ],
)
def test_errors_name_the_layer_and_the_remedy(layer, message):
    with pytest.raises(ValueError, match="^Layered Edit: " + re.escape(message)):
        layout(Layer(**{"name": "cup", "mask": BOX, **layer}))


def test_what_is_hidden_wholly_leaves_nothing_behind():
    cover = torch.ones_like(BOX) - box(0, 0, 8, 8)
    assert layout(Layer("l", BOX, moves=((16.0, 16.0),), occluder=cover)).hole is None
    with pytest.raises(ValueError, match="^Layered Edit: occluder covers all that a layer would leave behind; paint"):
        layout(Layer("l", BOX, moves=(), occluder=cover))


def test_one_picture_and_at_least_one_layer():
    with pytest.raises(ValueError, match="^Node: image has a batch of 2; a layered edit takes one picture"):
        lay_out(picture(batch=2), [Layer("l", BOX, moves=())], where="Node")
    with pytest.raises(ValueError, match="^Node: layers is empty; connect Add Layer"):
        lay_out(picture(), [], where="Node")


# content


def test_content_is_equal_when_what_it_stands_for_is():
    x = torch.rand(2, 3)
    same, other = Content(x.clone()), x.clone()
    other[1, 2] += 1e-6
    assert Content(x) == same and hash(Content(x)) == hash(same) and same.value is not x
    assert isinstance(same, str) and torch.equal(same.value, x)
    for different in (other, x.view(3, 2), x.double(), x.T):
        assert Content(different) != Content(x)
    assert Content(x.T) == Content(x.T.contiguous())
    assert Content(0.5) == Content(0.5) != Content(0.25)


def test_content_hashes_every_type_and_all_of_a_large_tensor():
    large = torch.zeros(200, 200, dtype=torch.bfloat16)
    changed = large.clone()
    changed[100, 100] = 1
    assert Content(large) != Content(changed)
    assert Content(torch.tensor(True)) != Content(torch.tensor(False))


def test_content_may_be_named_and_copied():
    named, other = Content((1, 2), "stage"), Content((3, 4), "stage")
    assert named == other == "stage" and (named.value, other.value) == ((1, 2), (3, 4))
    for text in (named, Content(torch.ones(2))):
        again = copy.deepcopy(text)
        assert again == text and isinstance(again, Content) and str(again.value) == str(text.value)
