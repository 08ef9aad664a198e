"""Segment Anything's prompts: what is read, what is refused, which masks are kept, and the picture of it."""

import math

import numpy as np
import pytest
import torch

from latent_layers.masks import sam

WIDTH, HEIGHT = 131, 77
WHO = "Segment Anything"


def picture(height=HEIGHT, width=WIDTH, channels=3, seed=0):
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(seed))


def points(text):
    return sam.read_points(text, WIDTH, HEIGHT, f"{WHO}: positive")


def boxes(given):
    return sam.read_boxes(given, WIDTH, HEIGHT, f"{WHO}: bboxes")


def box(x, y, width, height, **more):
    return {"x": x, "y": y, "width": width, "height": height, **more}


# points


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (" ;\n ", ()),
        ("12, 34", ((12.0, 34.0),)),
        ("12 34", ((12.0, 34.0),)),
        ("12,34; 0,0\n130.9, 76.9;", ((12.0, 34.0), (0.0, 0.0), (130.9, 76.9))),
        ('[{"x": 12, "y": 34.5}, {"x": 0, "y": 1, "label": 1}]', ((12.0, 34.5), (0.0, 1.0))),
        ("[]", ()),
        ("12\uff0c34\uff1b0\uff0c0", ((12.0, 34.0), (0.0, 0.0))),  # a Chinese keyboard's comma and semicolon
    ],
)
def test_points_are_read(text, expected):
    assert points(text) == expected


@pytest.mark.parametrize("text", ["12", "12, 34, 56", "a, b", "10, 20; 5", '["x"]', "[[1, 2]]", '[{"x": 1}]'])
def test_what_is_no_point_is_refused(text):
    with pytest.raises(ValueError, match=r"Segment Anything: positive: .* is not a point; write x, y in pixels"):
        points(text)


def test_broken_json_is_refused():
    with pytest.raises(ValueError, match=r"positive is no valid JSON list .*; write x, y in pixels"):
        points("[10, 20]; [30, 40]")


@pytest.mark.parametrize("point", [(-0.1, 5), (131, 5), (5, 77), (5, -1), ("nan", 5), (5, "inf")])
def test_points_outside_the_image_are_refused(point):
    with pytest.raises(ValueError, match=r"point 2 \(.*\) is outside the image of 131x77; x goes from 0 to 130"):
        points(f"3, 4; {point[0]}, {point[1]}")


# boxes


@pytest.mark.parametrize(
    "given",
    [
        box(10, 20, 30.5, 40),
        [box(10, 20, 30.5, 40, metadata={"type": "obj"})],
        [[box(10, 20, 30.5, 40, label="cat", score=0.9)]],
    ],
)
def test_boxes_are_read_in_each_of_the_hosts_forms(given):
    assert boxes(given) == ((10.0, 20.0, 40.5, 60.0),)


@pytest.mark.parametrize("given", [None, [], [[]]])
def test_no_boxes(given):
    assert boxes(given) == ()


def test_a_box_that_sticks_out_is_cut_off():
    assert boxes([box(-4, -3, 40, 30), box(100, 50, 40, 40)]) == ((0.0, 0.0, 36.0, 27.0), (100.0, 50.0, 131.0, 77.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[box(1, 1, 5, 5)], [box(2, 2, 5, 5)]], "are of 2 images; give those of one image"),
        ([box(1, 1, 5, 5), box(2, 2, 0, 5)], r"box 2 \(x 2, y 2, 0x5\) has no area"),
        (box(1, 1, 5, -5), "has no area"),
        (box(1, 1, float("nan"), 5), "has no area"),
        (box(float("inf"), 1, 5, 5), "has no area"),
        (box(400, 400, 50, 50), r"box 1 \(x 400, y 400, 50x50\) lies mostly outside the image of 131x77"),
        (box(0, 0, 512, 512), "lies mostly outside"),
        (box(0, 0, 131, 155), "lies mostly outside"),
        ([{"x": 1, "y": 2}], "a box has x, y, width and height"),
        ("10, 20", "a box has x, y, width and height"),
    ],
)
def test_what_is_no_box_of_this_image_is_refused(given, message):
    with pytest.raises(ValueError, match=f"Segment Anything: bboxes.*{message}"):
        boxes(given)


# prompts


def test_points_alone_and_a_single_box_make_one_prompt():
    here, there = ((1.0, 2.0), (3.0, 4.0)), ((90.0, 70.0),)
    assert sam.make_prompts(here, there, (), WHO) == (sam.Prompt(here, there, None),)
    single = (0.0, 0.0, 10.0, 10.0)
    assert sam.make_prompts(here, there, (single,), WHO) == (sam.Prompt(here, there, single),)
    assert sam.make_prompts((), there, (single,), WHO) == (sam.Prompt((), there, single),)


def test_each_of_several_boxes_takes_the_points_in_it():
    left, right = (0.0, 0.0, 50.0, 50.0), (40.0, 0.0, 90.0, 50.0)
    both, first, second = (45.0, 10.0), (5.0, 5.0), (89.0, 50.0)
    assert sam.make_prompts((both, first), (second,), (left, right), WHO) == (
        sam.Prompt((both, first), (), left),
        sam.Prompt((both,), (second,), right),
    )


@pytest.mark.parametrize(
    ("positive", "negative", "given", "message"),
    [
        ((), (), (), "there are neither points nor boxes; write a point on the object into positive"),
        ((), ((1.0, 1.0),), (), "negative: points alone only say what is not meant; add a positive point"),
        (
            ((1.0, 1.0), (60.0, 2.0)),
            (),
            ((0.0, 0.0, 9.0, 9.0), (20.0, 0.0, 29.0, 9.0)),
            r"positive: point 2 \(60, 2\) lies in none of the 2 boxes",
        ),
        ((), ((60.0, 2.0),), ((0.0, 0.0, 9.0, 9.0), (20.0, 0.0, 29.0, 9.0)), "negative: point 1"),
    ],
)
def test_prompts_that_do_not_say_what_is_meant_are_refused(positive, negative, given, message):
    with pytest.raises(ValueError, match=f"Segment Anything: {message}"):
        sam.make_prompts(positive, negative, given, WHO)


def test_prompts_as_arrays():
    coordinates, labels, frame = sam.Prompt(((1.0, 2.0),), ((3.0, 4.0), (5.0, 6.0)), (7.0, 8.0, 9.0, 10.0)).arrays()
    assert coordinates is not None and labels is not None and frame is not None
    assert coordinates.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert labels.tolist() == [1, 0, 0]
    assert frame.tolist() == [7, 8, 9, 10]
    assert sam.Prompt((), (), None).arrays() == (None, None, None)


# the picture


def test_the_picture_is_read_as_the_host_saves_it():
    image = picture(channels=4)
    image[0, 0, 0, :3] = torch.tensor([-0.5, 1.5, 0.5])
    pixels = sam.read_picture(image, WHO)
    expected = np.rint(np.clip(image[0, ..., :3].double().numpy(), 0, 1) * 255)
    assert pixels.dtype == np.uint8 and pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels - expected).max() <= 1 and (pixels != expected).mean() < 0.001
    assert pixels[0, 0].tolist() == [0, 255, 128]
    half = sam.read_picture(image.half(), WHO)
    assert np.abs(half.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 5, 7, 3), "image is a batch of 2, but points and boxes are of one picture"),
        (torch.zeros(5, 7, 3), r"image has shape \(5, 7, 3\)"),
        (torch.zeros(1, 5, 7, 1), r"image has shape \(1, 5, 7, 1\)"),
        (torch.zeros(1, 0, 7, 3), r"image has shape \(1, 0, 7, 3\)"),
        (torch.full((1, 5, 7, 3), float("nan")), "image has values that are not numbers"),
    ],
)
def test_what_is_not_one_picture_is_refused(image, message):
    with pytest.raises(ValueError, match=f"Segment Anything: {message}"):
        sam.read_picture(image, WHO)


def test_the_digest_is_of_content_and_shape():
    pixels = sam.read_picture(picture(), WHO)
    assert sam.digest(pixels) == sam.digest(pixels.copy())
    changed = pixels.copy()
    changed[-1, -1, -1] ^= 1
    turned = np.ascontiguousarray(pixels.reshape(WIDTH, HEIGHT, 3))
    mirrored = pixels[:, ::-1]
    assert len({sam.digest(one) for one in (pixels, changed, turned, mirrored)}) == 4
    assert sam.digest(mirrored) == sam.digest(np.ascontiguousarray(mirrored))


# the checkpoint


@pytest.mark.parametrize(("width", "name"), [(768, "vit_b"), (1024, "vit_l"), (1280, "vit_h")])
def test_the_encoder_is_told_by_its_width(width, name):
    state = {"image_encoder.patch_embed.proj.weight": torch.empty(width, 3, 16, 16, device="meta")}
    assert sam.encoder_of(state, "Load Segment Anything: a.pth") == name


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model.diffusion_model.out.2.weight": torch.zeros(4)}, "is not a Segment Anything checkpoint"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(768)}, "is not a Segment Anything checkpoint"),
        ({"image_encoder.patch_embed.proj.weight": 1}, "is not a Segment Anything checkpoint"),
        (["something"], "is not a Segment Anything checkpoint"),
        (
            {"image_encoder.patch_embed.proj.weight": torch.zeros(384, 3, 1, 1)},
            r": its image encoder is 384 wide; use one of 768 \(vit_b\), 1024 \(vit_l\), 1280 \(vit_h\)",
        ),
    ],
)
def test_other_checkpoints_are_refused(state, message):
    with pytest.raises(ValueError, match=f"Load Segment Anything: a.pth ?{message}"):
        sam.encoder_of(state, "Load Segment Anything: a.pth")


# choosing


def test_the_threshold_is_a_probability():
    for probability in (0.01, 0.3, 0.5, 0.99):
        assert 1 / (1 + math.exp(-sam.logit(probability, "threshold"))) == pytest.approx(probability, abs=1e-12)
    assert sam.logit(0.5, "threshold") == 0.0
    for wrong in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="Segment Anything: threshold is .*between 0 and 1"):
            sam.logit(wrong, "Segment Anything: threshold")


def test_masks_are_chosen_by_score():
    scores = torch.tensor([0.25, 0.75, 0.5])
    assert sam.choose(scores, "best") == [1]
    assert sam.choose(scores, "all") == [1, 2, 0]
    assert sam.choose(scores[:1], "off") == [0]
    assert sam.choose(torch.tensor([0.5, 0.5, 0.5]), "all") == [0, 1, 2]


def test_scores_are_shown():
    assert sam.score_lines([0.97251], [0], 1) == "mask 1: 0.973"
    assert sam.score_lines([0.9, 0.8], [0, 1], 2) == "mask 1: 0.900 (box 1)\nmask 2: 0.800 (box 2)"


# drawing


def test_the_preview_tints_masks_and_marks_the_prompt():
    image = torch.full((1, 301, 403, 3), 0.5)
    pixels = sam.read_picture(image, WHO)
    masks = torch.zeros(2, 301, 403)
    masks[0, 100:150, 200:260], masks[1, 200:250, 300:350] = 1, 1
    prompt = sam.Prompt(((230.0, 120.0),), ((30.0, 280.0),), (190.0, 90.0, 280.0, 160.0))
    shown = sam.draw(pixels, masks, [prompt])
    assert shown.shape == (1, 301, 403, 3) and shown.dtype == torch.float32
    assert shown.min() >= 0 and shown.max() <= 1
    plain = torch.tensor([128.0] * 3) / 255
    assert torch.equal(shown[0, 20, 20], plain)
    first, second = shown[0, 145, 205], shown[0, 245, 305]
    assert (first - plain).abs().max() > 0.1 and (second - plain).abs().max() > 0.1
    assert (first - second).abs().max() > 0.1
    green, red = shown[0, 120 - 3, 230 - 3], shown[0, 280 - 3, 30 - 3]
    assert green[1] > green[0] + 0.3 and green[1] > green[2] + 0.3
    assert red[0] > red[1] + 0.3 and red[0] > red[2] + 0.3
    assert shown[0, 120, 230].tolist() == shown[0, 280, 30].tolist() == [1, 1, 1]
    assert shown[0, 118, 230].min() == 1 and shown[0, 278, 30].max() < 1  # a plus has a vertical bar, a minus none
    assert (shown[0, 90, 190:280] < 0.1).all() and (shown[0, 159, 190:280] < 0.1).all()
    assert (shown[0, 91, 195:275] == 1).all() and (shown[0, 95:150, 191] == 1).all()
    changed = (shown[0] - plain).abs().amax(-1) > 1e-6
    changed[90:160, 190:280] = changed[200:250, 300:350] = False
    changed[270:291, 20:41] = False
    assert not changed.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_the_preview_fits_any_picture(size):
    image = picture(*size)
    prompt = sam.Prompt(((0.0, 0.0),), (), (0.0, 0.0, float(size[1]), float(size[0])))
    assert sam.draw(sam.read_picture(image, WHO), torch.ones(1, *size), [prompt]).shape == image.shape
