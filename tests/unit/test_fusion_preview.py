"""The layout preview shows each layer where it is and where it goes, at any size."""

import colorsys
import math

import pytest
import torch
from PIL import Image, ImageDraw

from latent_layers.fusion.layered import lay_out
from latent_layers.fusion.layers import Layer, painted_box
from latent_layers.fusion.preview import layout_preview

GREY = 0.5


def plain(height: int, width: int) -> torch.Tensor:
    return torch.full((1, height, width, 3), GREY)


def box_mask(height: int, width: int, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1.0
    return mask


def coloured(picture: torch.Tensor) -> torch.Tensor:
    """(H, W) of what is neither grey, nor nearly so: lines, labels and coloured layers."""
    return (picture[0].amax(2) - picture[0].amin(2)) > 0.15


def hues(picture: torch.Tensor) -> set[int]:
    """The bright colours of lines and labels, as tenths of the circle of hues that fill more than a few pixels."""
    strong = picture[0][(picture[0].amax(2) - picture[0].amin(2) > 0.4) & (picture[0].amax(2) > 0.95)]
    found = [round(36 * colorsys.rgb_to_hsv(*pixel)[0]) % 36 for pixel in strong.tolist()]
    return {hue for hue in set(found) if found.count(hue) > 20}


def near(picture: torch.Tensor, x: float, y: float, radius: int = 3) -> bool:
    """Whether something coloured is drawn near a point."""
    height, width = picture.shape[1:3]
    rows = slice(max(round(y) - radius, 0), min(round(y) + radius + 1, height))
    columns = slice(max(round(x) - radius, 0), min(round(x) + radius + 1, width))
    return bool(coloured(picture)[rows, columns].any())


@pytest.mark.parametrize("height, width", [(64, 64), (64, 200), (333, 77), (512, 768), (1600, 2304)])
def test_any_size(height, width):
    mask = box_mask(height, width, width // 4, height // 4, width // 2, height // 2)
    layers = [Layer("gone", mask, moves=()), Layer("there", mask, moves=((width / 4, height / 4),), rotation=20)]
    source = plain(height, width)
    got = layout_preview(source, layers)
    assert got.shape == source.shape and got.dtype == torch.float32
    assert got.min() >= 0 and got.max() <= 1
    assert 0.01 < coloured(got).float().mean() < 0.7
    assert torch.equal(source, plain(height, width))


def test_without_layers_it_is_the_dimmed_source():
    source = torch.rand(1, 50, 70, 3, generator=torch.Generator().manual_seed(1))
    got = layout_preview(source, [])
    assert (got - 0.4 * source).abs().max() < 0.01


def test_a_moved_layer_is_shown_at_both_places_with_its_pixels():
    source = plain(256, 256)
    source[:, 100:140, 40:80] = torch.tensor([0.0, 0.0, 0.9])
    got = layout_preview(source, [Layer("sky", box_mask(256, 256, 40, 100, 80, 140), moves=((120, 10),))])
    assert near(got, 40, 120) and near(got, 80, 120)  # the dashed box and the outline
    assert near(got, 160, 130) and near(got, 200, 130)  # the box at the new place
    # its own pixels there, and the dimmed ones where it was (beside the arrow)
    assert torch.allclose(got[0, 145, 190], torch.tensor([0.0, 0.0, 0.9]), atol=0.01)
    assert torch.allclose(got[0, 105, 50], torch.tensor([0.0, 0.0, 0.36]), atol=0.01)
    # the arrow from centroid to centroid (60, 120) to (180, 130), in the middle of nowhere too
    assert near(got, 60, 120) and near(got, 120, 125) and near(got, 178, 130)
    assert not near(got, 120, 180) and not near(got, 230, 230)


def test_every_copy_is_shown():
    mask = box_mask(256, 256, 100, 100, 130, 130)
    got = layout_preview(plain(256, 256), [Layer("twin", mask, moves=((0, 0), (90, 90), (-80, 60)))])
    for right, down in [(0, 0), (90, 90), (-80, 60)]:
        assert near(got, 130 + right, 115 + down) and near(got, 115 + right, 130 + down)


def test_a_removed_layer_is_crossed_out_and_one_that_stays_is_not():
    mask = box_mask(256, 256, 80, 80, 180, 180)
    removed = layout_preview(plain(256, 256), [Layer("gone", mask, moves=())])
    kept = layout_preview(plain(256, 256), [Layer("kept", mask)])
    for t in (0.2, 0.35, 0.65, 0.8):
        for point in [(80 + 100 * t, 80 + 100 * t), (180 - 100 * t, 80 + 100 * t)]:
            assert near(removed, *point, radius=1) and not near(kept, *point)
    # what stays is as bright as it was, what goes away is dimmed
    assert kept[0, 130, 105, 0] == pytest.approx(GREY, abs=0.01)
    assert removed[0, 130, 105, 0] == pytest.approx(0.4 * GREY, abs=0.01)


def test_the_box_is_turned_and_scaled_about_the_centroid():
    """A 60x20 box turned by 90 degrees and stretched to twice its length stands on end, 120 high."""
    mask = box_mask(256, 256, 98, 118, 158, 138)
    got = layout_preview(plain(256, 256), [Layer("bar", mask, scale_x=2, rotation=90)])
    assert near(got, 118, 150) and near(got, 138, 100) and near(got, 128, 188)
    assert not near(got, 118, 200) and not near(got, 60, 128)
    slanted = layout_preview(plain(256, 256), [Layer("bar", mask, rotation=30)])
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    for x, y in [(30, 10), (-30, -10), (30, -10), (-30, 10)]:  # clockwise: the right end goes down
        assert near(slanted, 128 + c * x - s * y, 128 + s * x + c * y)
    assert not near(slanted, 128 + 30, 128 - 25)


def test_the_pixels_are_flipped_and_turned_as_the_edit_will():
    """Red left, blue right: mirrored, the red is right; a quarter turn clockwise brings the left end to the top."""
    source = plain(256, 256)
    source[:, 100:160, 40:80] = torch.tensor([0.8, 0.0, 0.0])
    source[:, 100:160, 80:120] = torch.tensor([0.0, 0.0, 0.8])
    mask = box_mask(256, 256, 40, 100, 120, 160)
    red, blue = torch.tensor([0.8, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.8])
    # points beside the arrow, which ends in the middle
    flipped = layout_preview(source, [Layer("flag", mask, flip_x=True, moves=((100, 0),))])
    assert torch.allclose(flipped[0, 150, 210], red, atol=0.02)
    assert torch.allclose(flipped[0, 150, 150], blue, atol=0.02)
    turned = layout_preview(source, [Layer("flag", mask, rotation=90, moves=((100, 0),))])
    assert torch.allclose(turned[0, 105, 195], red, atol=0.02)
    assert torch.allclose(turned[0, 155, 195], blue, atol=0.02)


def test_the_front_layer_hides_the_back_one():
    source = plain(256, 256)
    source[:, 20:60, 20:60] = torch.tensor([0.7, 0.7, 0.2])
    source[:, 20:60, 180:220] = torch.tensor([0.2, 0.7, 0.7])
    left, right = box_mask(256, 256, 20, 20, 60, 60), box_mask(256, 256, 180, 20, 220, 60)
    for order, front in [(1, (0.7, 0.7, 0.2)), (0, (0.2, 0.7, 0.7)), (-1, (0.2, 0.7, 0.7))]:
        layers = [Layer("left", left, moves=((80, 130),), order=order), Layer("right", right, moves=((-80, 130),))]
        got = layout_preview(source, layers)
        assert torch.allclose(got[0, 185, 120], torch.tensor(front), atol=0.02)


def test_a_layer_of_another_picture_is_fitted_on_the_canvas():
    """A picture of half the size: its box is doubled; nothing marks an old place, as there is none."""
    image = torch.zeros(1, 128, 128, 3)
    image[..., 2] = 0.8
    mask = box_mask(128, 128, 20, 30, 50, 60)
    got = layout_preview(plain(256, 256), [Layer("guest", mask, image=image, moves=((60, 40),))])
    assert near(got, 100, 130) and near(got, 160, 130) and near(got, 130, 160)
    assert torch.allclose(got[0, 130, 130], torch.tensor([0.0, 0.0, 0.8]), atol=0.02)
    assert not coloured(got)[:60].any() and not coloured(got)[:, :80].any()


def test_a_layer_of_another_shape_keeps_its_own_and_is_centred():
    """A picture half as wide as the canvas: as the edit lays it on, pixel for pixel."""
    image = torch.zeros(1, 256, 128, 3)
    image[..., 2] = 0.8
    layer = Layer("guest", box_mask(256, 128, 8, 60, 40, 120), image=image, moves=((60, 40),))
    got = layout_preview(plain(256, 256), [layer])
    area = lay_out(plain(256, 256), [layer]).placed[0].area[0] > 0.5
    blue = (got[0] - torch.tensor([0.0, 0.0, 0.8])).abs().amax(2) < 0.02
    assert blue.sum() > 0.6 * area.sum() and not blue[~area].any()
    assert painted_box(area[None].float()) == (132, 100, 164, 160)


def test_every_layer_has_its_own_colour():
    layers = []
    for index in range(8):
        x, y = 20 + 120 * (index % 4), 40 + 120 * (index // 4)
        layers.append(Layer(f"layer {index}", box_mask(256, 512, x, y, x + 60, y + 50)))
    assert len(hues(layout_preview(plain(256, 512), layers))) >= 8


def test_labels_hide_neither_each_other_nor_leave_the_canvas(monkeypatch):
    written = []
    rounded = ImageDraw.ImageDraw.rounded_rectangle
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "rounded_rectangle",
        lambda self, box, *args, **options: (written.append((box, self.im.size)), rounded(self, box, *args, **options)),
    )
    mask = box_mask(300, 400, 180, 140, 220, 160)
    places = ((0, 0), (-190, -140), (190, 140), (-500, 0), (0, -500))
    layout_preview(plain(300, 400), [Layer("one", mask, moves=places), Layer("two", mask), Layer("three", mask)])
    boxes = [box for box, _ in written[1::2]]  # each on its dark casing
    width, height = written[0][1]
    assert len(boxes) == len(places) + 2
    assert all(0 <= box[0] < box[2] < width and 0 <= box[1] < box[3] < height for box in boxes)
    for index, a in enumerate(boxes):
        for b in boxes[:index]:
            assert a[0] > b[2] or b[0] > a[2] or a[1] > b[3] or b[1] > a[3]


def test_labels_say_number_and_name(monkeypatch):
    written = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, label, *args, **options: (written.append(label), text(self, at, label, *args, **options)),
    )
    mask = box_mask(256, 256, 100, 100, 150, 150)
    layers = [Layer("sun", mask, order=2), Layer("图 sea\n", mask), Layer("图层", mask), Layer("", mask, order=-1)]
    layout_preview(plain(256, 256), layers)
    assert written == ["1", "2 sea", "3", "4 sun"]
    written.clear()
    layout_preview(plain(256, 256), [Layer("a very long name for such a small thing", mask)])
    assert written[0].startswith("1 a very") and written[0].endswith("…") and len(written[0]) < 30
    written.clear()
    layout_preview(plain(64, 64), [Layer("hippopotamus", box_mask(64, 64, 20, 20, 40, 40))])
    assert written == ["1"]


def test_extremes_are_drawn_all_the_same():
    """One pixel; far beyond the canvas; twenty times the size; a sliver."""
    dot = box_mask(96, 96, 0, 0, 1, 1)
    most = box_mask(96, 96, 1, 0, 96, 96)
    layers = [
        Layer("dot", dot, moves=((95, 95), (1e5, -1e5))),
        Layer("dots", dot, scale_x=0.05, scale_y=0.05, rotation=45),
        Layer("giant", most, scale_x=20, scale_y=20, rotation=-30, flip_y=True),
        Layer("sliver", most, scale_x=0.05, scale_y=20),
    ]
    assert torch.isfinite(layout_preview(plain(96, 96), layers)).all()


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="mask of layer 'moon' is empty"):
        layout_preview(plain(64, 64), [Layer("moon", torch.zeros(1, 64, 64))])
    with pytest.raises(ValueError, match=r"source has shape \(2, 64, 64, 3\)"):
        layout_preview(plain(64, 64).expand(2, -1, -1, -1), [])


def test_the_font_scales():
    """Labels of a picture four times as large are about four times as large."""

    def label_height(side: int) -> int:
        mask = box_mask(side, side, side // 2, side // 2, side // 2 + 8, side // 2 + 8)
        rows = coloured(layout_preview(plain(side, side), [Layer("name", mask)])).any(1)
        image = Image.fromarray(rows.numpy()[None].repeat(2, 0))
        box = image.getbbox()
        assert box is not None
        return box[2] - box[0]

    assert 3 < label_height(2048) / label_height(512) < 5
