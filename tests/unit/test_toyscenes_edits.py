"""Toy scenes, edited, seen through windows and named: every change is where it should be and nowhere else."""

import dataclasses
import re

import numpy as np
import pytest

from latent_layers.toyscenes.backgrounds import KINDS
from latent_layers.toyscenes.scenes import COLOURS, SHAPES, Scene, SceneObject, Window, random_scene

from .test_toyscenes_scenes import PLAIN, SIZES, centroid, changed, composited, crowd, halved, one

# edits


def test_without_changes_only_where_the_object_was_seen():
    scene = crowd()
    for index in range(3):
        after = scene.without(index)
        assert after.objects == tuple(o for i, o in enumerate(scene.objects) if i != index)
        difference = changed(scene, after)
        assert not difference[scene.visible_mask(index) == 0].any()
        assert difference[scene.visible_mask(index) > 0.9].mean() > 0.99
    assert scene == crowd()  # scenes are values: edits return new ones


@pytest.mark.parametrize("shape", SHAPES)
def test_moved_is_exact_to_a_fraction_of_a_pixel(shape):
    scene = one(shape, rotation=11)
    before = centroid(scene.full_mask(0))
    for shift in [(13.4, 0.0), (0.0, -13.4), (-20.7, 9.3), (0.3, 0.6)]:
        after = centroid(scene.moved(0, *shift).full_mask(0))
        assert np.abs(after - before - shift).max() < 0.12


@pytest.mark.parametrize("width, height", SIZES)
def test_moved_counts_in_pixels_of_any_frame(width, height):
    scene = crowd(width, height)
    before, after = scene.full_mask(1), scene.moved(1, 40, -24)
    assert np.abs(after.full_mask(1)[:-24, 40:] - before[24:, :-40]).max() < 0.15
    touched = (before > 0) | (after.full_mask(1) > 0)
    assert not changed(scene, after)[~touched].any()
    assert changed(scene, after)[(before == 1) & (scene.visible_mask(1) == 1) & ~(after.full_mask(1) > 0)].all()
    for index in (0, 2):
        assert np.array_equal(after.full_mask(index), scene.full_mask(index))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale_x, scale_y", [(1.5, None), (0.6, 1.4), (1.0, 0.5)])
def test_resized_scales_the_area_about_the_centre(shape, scale_x, scale_y):
    scene = one(shape, rotation=12)
    after = scene.resized(0, scale_x, scale_y)
    before = scene.full_mask(0)
    area = scale_x * (scale_x if scale_y is None else scale_y)
    assert after.full_mask(0).sum() == pytest.approx(area * before.sum(), rel=0.02)
    assert (after.objects[0].x, after.objects[0].y) == (0.5, 0.5)
    twice = scene.resized(0, 0.5).resized(0, 2 * scale_x, 2 * (scale_y or scale_x))
    assert np.abs(twice.full_mask(0) - after.full_mask(0)).max() < 0.15


def test_resized_stretches_along_the_objects_own_axes():
    mask = one("square", size=0.3, rotation=90).resized(0, 2.0, 1.0).full_mask(0) > 0.5
    wide, tall = np.ptp(np.nonzero(mask.any(axis=0))), np.ptp(np.nonzero(mask.any(axis=1)))
    assert tall == pytest.approx(2 * wide, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_flips_mirror_about_the_centre(shape):
    scene = one(shape, size=0.33)
    mask = scene.full_mask(0)
    for axis, flip in [(1, {"flip_x": True}), (0, {"flip_y": True})]:
        flipped = scene.edited(0, **flip).full_mask(0)
        difference = np.abs(flipped - np.flip(mask, axis))
        assert difference.max() < 0.2 and difference.sum() < 0.01 * mask.sum()
    if shape == "letter L":
        assert np.abs(scene.edited(0, flip_x=True).full_mask(0) - mask).sum() > 0.3 * mask.sum()


def test_a_flip_comes_before_the_rotation():
    flipped = one("letter L", rotation=30).edited(0, flip_x=True).full_mask(0)
    mirrored = {angle: one("letter L", rotation=angle).full_mask(0)[:, ::-1] for angle in (30, -30)}
    assert np.abs(flipped - mirrored[-30]).max() < 0.2
    assert np.abs(flipped - mirrored[30]).sum() > 0.2 * flipped.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_turns_clockwise_about_the_centre(shape):
    scene = one(shape, size=0.33)
    mask = scene.full_mask(0)
    quarter = scene.edited(0, rotation=90).full_mask(0)
    difference = np.abs(quarter - np.rot90(mask, -1))
    assert difference.max() < 0.2 and difference.sum() < 0.01 * mask.sum()
    round_again = scene.edited(0, rotation=360).full_mask(0)
    assert np.abs(round_again - mask).max() < 0.15 and np.abs(round_again - mask).sum() < 5e-3 * mask.sum()
    tilted = scene.edited(0, rotation=33).full_mask(0)
    assert tilted.sum() == pytest.approx(mask.sum(), rel=0.02)


def test_duplicated_adds_a_copy_in_front_of_the_object():
    scene = crowd()
    after = scene.duplicated(1, 31.6, 12.2)
    assert len(after.objects) == 4
    assert (after.objects[0], after.objects[1], after.objects[3]) == scene.objects
    assert centroid(after.full_mask(2)) - centroid(scene.full_mask(1)) == pytest.approx((31.6, 12.2), abs=0.1)
    assert dataclasses.replace(after.objects[2], x=0, y=0) == dataclasses.replace(scene.objects[1], x=0, y=0)
    seen = after.visible_mask(2)
    assert not changed(scene, after)[seen == 0].any()
    assert changed(scene, after)[(seen > 0) & (scene.visible_mask(1) == 0)].mean() > 0.95


def test_recoloured_changes_what_is_seen_of_one_object():
    scene = crowd()
    after = scene.edited(1, colour="purple", tint=(0, 0, 0))
    seen = scene.visible_mask(1)
    assert not changed(scene, after)[seen == 0].any() and changed(scene, after)[seen > 0.5].all()
    assert np.abs(after.image()[seen == 1] - np.array(COLOURS["purple"]) / 255).max() < 1e-6
    assert np.array_equal(after.full_mask(1), scene.full_mask(1))


def test_a_tint_never_leaves_the_range_of_colours():
    assert SceneObject("circle", "white", 0, 0, 1, tint=(8, 8, -8)).rgb.max() == 1.0
    assert SceneObject("circle", "black", 0, 0, 1, tint=(-30, 0, 0)).rgb.min() == 0.0


def test_reshaped_changes_only_between_the_two_outlines():
    scene = crowd()
    after = scene.edited(1, shape="circle")
    old, new = scene.visible_mask(1), after.visible_mask(1)
    difference = changed(scene, after)
    assert not difference[(old == 0) & (new == 0)].any() and not difference[(old == 1) & (new == 1)].any()
    assert difference[(old == 1) & (new == 0)].mean() > 0.95


def test_reordered_changes_only_where_objects_overlap():
    scene = crowd()
    assert scene.reordered((0, 1, 2)) == scene
    after = scene.reordered((1, 0, 2))
    assert after.objects == (scene.objects[1], scene.objects[0], scene.objects[2])
    both = (scene.full_mask(0) > 0) & (scene.full_mask(1) > 0)
    difference = changed(scene, after)
    assert difference.any() and not difference[~both].any()
    in_front = both & (after.visible_mask(1) == 1)
    assert in_front.sum() > 500 and (after.image()[in_front] == scene.objects[0].rgb).all()


# the world through a window


@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_the_identity_window_is_the_picture(seed, width, height):
    scene = random_scene(seed, width, height, objects=(2, 4))
    window = Window(0.0, 0.0, 1.0)
    assert np.array_equal(scene.image(window), scene.image())
    assert np.array_equal(scene.full_mask(0, window), scene.full_mask(0))
    # and what it shows is the frame: pixel (i, j) lies at ((j + ½) / unit, (i + ½) / unit)
    mask = Scene(width, height, PLAIN, (SceneObject("circle", "red", 0.4, 0.6, 0.3),)).full_mask(0)
    assert centroid(mask) == pytest.approx((0.4 * min(width, height), 0.6 * min(width, height)), abs=0.05)


@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_that_sees_twice_as_much_holds_the_picture_in_its_middle(kind, width, height):
    scene = crowd(width, height, kind)
    far = scene.image(Window(zoom=0.5))
    middle = far[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    difference = np.abs(middle - halved(scene.image()))
    assert difference.mean() < 2e-3 and difference.max() < 0.15
    seen = scene.full_mask(1, Window(zoom=0.5))
    assert seen.sum() == pytest.approx(scene.full_mask(1).sum() / 4, rel=0.02)
    if kind != "plain":  # around it the world goes on: more background, not a border
        assert far[: height // 4].std((0, 1)).max() > 0.01


@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_shifted_window_sees_the_shifted_picture(kind, width, height):
    scene = crowd(width, height, kind)
    right, down = width // 8, height // 4
    seen = scene.image(Window(x=1 / 8, y=1 / 4))
    difference = np.abs(seen[:-down, :-right] - scene.image()[down:, right:])
    assert difference.max() < 0.06 and difference.mean() < 1e-4
    mask = scene.visible_mask(1, Window(x=1 / 8, y=1 / 4))
    assert np.abs(mask[:-down, :-right] - scene.visible_mask(1)[down:, right:]).max() < 0.15


def test_a_window_shows_layers_that_make_its_picture():
    scene, window = crowd(), Window(0.1, -0.2, 0.6)
    layers = [scene.layer(i, window) for i in range(3)]
    assert np.abs(composited(scene.background_image(window), layers) - scene.image(window)).max() < 1e-5


# captions


def counted(caption: str) -> tuple[dict[tuple[str, str], int], str]:
    """What a caption says, read by its grammar: how many of each (colour, shape), and the background."""
    things, _, place = caption.rpartition(" on ") if " on " in caption else ("", "", caption)
    background = re.fullmatch(r"a (\w+) background", place)
    assert background, caption
    found: dict[tuple[str, str], int] = {}
    for phrase in re.split(r", | and ", things) if things else []:
        match = re.fullmatch(r"(an?|two|three|four) (?:(?:small|large) )?(\w+) (letters? [A-Z]|\w+)", phrase)
        assert match, phrase
        number, colour, shape = match.groups()
        count = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}[number]
        if count > 1:
            shape = shape.replace("letters", "letter").replace("crosses", "cross")
            shape = shape if shape in SHAPES else shape[:-1]
        found[colour, shape] = found.get((colour, shape), 0) + count
    return found, background.group(1)


@pytest.mark.parametrize("first", [0, 100, 10000])
def test_captions_name_every_colour_shape_count_and_background(first):
    for seed in range(first, first + 100):
        scene = random_scene(seed)
        found, background = counted(scene.caption())
        truth: dict[tuple[str, str], int] = {}
        for thing in scene.objects:
            truth[thing.colour, thing.shape] = truth.get((thing.colour, thing.shape), 0) + 1
        assert (found, background) == (truth, scene.background.kind)


def test_captions_of_known_scenes():
    scene = crowd()
    assert scene.caption() == "a green ring, a red star and a blue square on a checkered background"
    assert scene.without(0).without(0).caption() == "a green ring on a checkered background"
    assert dataclasses.replace(scene, objects=()).caption() == "a checkered background"
    assert one("cross").duplicated(0, 90, 0).caption() == "two red crosses on a plain background"
    assert one("letter H").edited(0, colour="orange").caption() == "an orange letter H on a plain background"
    letters = one("letter H").duplicated(0, 90, 0).duplicated(0, 0, 90)
    assert letters.caption() == "three red letters H on a plain background"


def test_captions_name_the_size_that_an_edit_gave():
    scene = dataclasses.replace(one("heart", size=0.2), name_sizes=True)
    assert scene.caption() == "a small red heart on a plain background"
    assert scene.resized(0, 2.0).caption() == "a large red heart on a plain background"
    assert scene.resized(0, 1.6).caption() == "a red heart on a plain background"
    assert scene.resized(0, 2.0, 0.5).caption() == scene.caption()
    pair = scene.duplicated(0, 80, 0).resized(1, 2.0)
    assert pair.caption() == "a large red heart and a small red heart on a plain background"
