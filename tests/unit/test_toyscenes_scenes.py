"""Toy scenes: one seed, one world; every layer is known and every edit changes what it should and nothing else."""

import dataclasses
import re

import numpy as np
import pytest

from latent_layers.toyscenes.backgrounds import KINDS, PALETTE, Background, random_background
from latent_layers.toyscenes.scenes import COLOURS, SHAPES, Scene, SceneObject, Window, random_scene

SIZES = [(256, 256), (384, 256), (256, 448)]
PLAIN = Background("plain", (200, 200, 200), (0, 0, 0))


def one(shape: str, size: float = 0.3, x: float = 0.5, y: float = 0.5, **more) -> Scene:
    return Scene(256, 256, PLAIN, (SceneObject(shape, "red", x, y, size, **more),))


def crowd(width: int = 256, height: int = 256, kind: str = "checkered") -> Scene:
    """Three objects, of which the middle one is partly hidden and partly hides the first."""
    centre = width / min(width, height) / 2
    background = Background(kind, PALETTE["sand"], PALETTE["steel"], 0.13, 0.3, centre, 0.5)
    objects = (
        SceneObject("square", "blue", centre - 0.13, 0.42, 0.33, rotation=9),
        SceneObject("star", "red", centre, 0.5, 0.34, rotation=-7, tint=(5, -3, 2)),
        SceneObject("ring", "green", centre + 0.12, 0.6, 0.3, scale_x=1.1),
    )
    return Scene(width, height, background, objects)


def centroid(mask: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    return np.array([(x * mask).sum(), (y * mask).sum()]) / mask.sum(dtype=np.float64)


def halved(picture: np.ndarray) -> np.ndarray:
    """Area average of 2 × 2 pixels."""
    height, width = picture.shape[:2]
    return picture.reshape(height // 2, 2, width // 2, 2, -1).mean((1, 3))


def changed(a: Scene, b: Scene) -> np.ndarray:
    return (a.image() != b.image()).any(axis=2)


def composited(picture: np.ndarray, layers: list[np.ndarray]) -> np.ndarray:
    """Straight-alpha "over", back to front, in double precision."""
    result = picture.astype(np.float64)
    for layer in layers:
        alpha = layer[..., 3:].astype(np.float64)
        result = alpha * layer[..., :3] + (1 - alpha) * result
    return result


# drawing a scene


@pytest.mark.parametrize("seed", range(0, 40, 5))
def test_a_seed_is_one_scene_at_every_size(seed):
    scene, again, large = random_scene(seed), random_scene(seed), random_scene(seed, 512, 512)
    assert scene == again and np.array_equal(scene.image(), again.image())
    assert (large.objects, large.background) == (scene.objects, scene.background)
    difference = np.abs(halved(large.image()) - scene.image())
    assert difference.mean() < 1e-3 and difference.max() < 0.15


def test_seeds_differ():
    assert len({random_scene(seed).background for seed in range(50)}) == 50


def test_training_never_sees_the_scenes_that_judge_it():
    judged = {random_scene(seed) for seed in range(200)}
    trained = {random_scene(seed, stream="training") for seed in range(200)}
    assert len(judged) == len(trained) == 200 and not judged & trained
    assert random_scene(3, stream="training") == random_scene(3, stream="training")
    with pytest.raises(KeyError):
        random_scene(3, stream="elsewhere")


@pytest.mark.parametrize(
    "least, most", [(0, 0), (0, 4), (1, 1), (2, 3), (3, 3), (4, 4), (1, 3)], ids=lambda value: str(value)
)
def test_the_number_of_objects_is_as_asked(least, most):
    counts = {len(random_scene(seed, objects=(least, most)).objects) for seed in range(150)}
    assert counts == set(range(least, most + 1))
    narrow = {len(random_scene(seed, 512, 128, objects=(least, most)).objects) for seed in range(60)}
    assert narrow == set(range(least, most + 1))


def test_the_world_is_rich():
    scenes = [random_scene(seed) for seed in range(300)]
    assert len({s.background.kind for s in scenes}) == len(KINDS) >= 6
    assert len({o.shape for s in scenes for o in s.objects}) == len(SHAPES) >= 7
    assert sum(name.startswith("letter ") for name in SHAPES) >= 2
    assert len({o.colour for s in scenes for o in s.objects}) == len(COLOURS) >= 8
    overlaps = sum((s.full_mask(0) * s.full_mask(1)).sum() > 20 for s in scenes[:100] if len(s.objects) > 1)
    assert overlaps > 5  # depth order matters in some of them


@pytest.mark.parametrize("seeds", [range(0, 600), range(10000, 10064)], ids=["development", "benchmark"])
def test_like_colours_never_touch(seeds):
    pairs = 0
    for scene in map(random_scene, seeds):
        for back, thing in enumerate(scene.objects):
            for front in range(back + 1, len(scene.objects)):
                if scene.objects[front].colour == thing.colour:
                    pairs += 1
                    assert not (scene.full_mask(back) * scene.full_mask(front)).any()
    assert pairs > 10


@pytest.mark.parametrize("width, height", SIZES)
def test_objects_lie_in_the_frame_and_are_mostly_seen(width, height):
    for seed in range(24):
        scene = random_scene(seed, width, height)
        assert scene.image().shape == (height, width, 3)
        for index in range(len(scene.objects)):
            x, y = centroid(scene.full_mask(index))
            assert 20 < x < width - 20 and 20 < y < height - 20
            assert scene.visible_mask(index).sum() > 0.35 * scene.full_mask(index).sum()


def test_wide_frames_are_used_to_their_edges():
    for width, height, axis in [(512, 128, 0), (128, 512, 1)]:
        places = [(o.x, o.y)[axis] for seed in range(60) for o in random_scene(seed, width, height).objects]
        assert min(places) < 0.6 and max(places) > 3.4


# layers


@pytest.mark.parametrize("width, height", SIZES)
def test_a_scene_is_its_layers_over_its_background(width, height):
    for scene in [random_scene(seed, width, height, objects=(2, 4)) for seed in range(6)] + [crowd(width, height)]:
        image = scene.image()
        assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
        layers = [scene.layer(i) for i in range(len(scene.objects))]
        assert layers[0].shape == (height, width, 4) and layers[0].dtype == np.float32
        assert np.abs(composited(scene.background_image(), layers) - image).max() < 1e-5


@pytest.mark.parametrize("width, height", SIZES)
def test_what_is_seen_of_the_objects_and_of_the_background_makes_one(width, height):
    for scene in [random_scene(seed, width, height, objects=(2, 4)) for seed in range(6)] + [crowd(width, height)]:
        background = np.prod([1 - scene.full_mask(i) for i in range(len(scene.objects))], axis=0, dtype=np.float64)
        visible = [scene.visible_mask(i) for i in range(len(scene.objects))]
        assert np.abs(sum(visible) + background - 1).max() < 1e-5
        parts = sum(m[..., None] * o.rgb for m, o in zip(visible, scene.objects, strict=True))
        assert np.abs(parts + background[..., None] * scene.background_image() - scene.image()).max() < 1e-5


def test_the_visible_mask_is_the_full_one_less_what_is_in_front():
    scene = crowd()
    front, middle = scene.full_mask(2), scene.full_mask(1)
    assert np.array_equal(scene.visible_mask(2), front)
    seen = scene.visible_mask(1)
    assert (seen[front == 1] == 0).all() and np.array_equal(seen[front == 0], middle[front == 0])
    assert 0.3 * middle.sum() < seen.sum() < 0.95 * middle.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_background_goes_on_behind_objects(kind):
    scene = crowd(kind=kind)
    empty = scene.without(2).without(1).without(0)
    assert empty.objects == () and np.array_equal(empty.image(), scene.background_image())
    hidden = scene.full_mask(1) == 1
    if kind != "plain":  # there is structure where the objects were
        assert scene.background_image()[hidden].std(0).max() > 0.01
    assert (scene.image()[hidden] != scene.background_image()[hidden]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_backgrounds_show_both_their_colours(kind):
    first, second = (np.array(PALETTE[name], np.float32) / 255 for name in ("sand", "slate"))
    background = Background(kind, PALETTE["sand"], PALETTE["slate"], 0.15, 0.4, 0.5, 0.5)
    picture = Scene(256, 256, background).image()
    share = ((picture - first) @ (second - first)) / ((second - first) @ (second - first))
    assert np.abs(first + share[..., None] * (second - first) - picture).max() < 1e-5
    expected = {"plain": 0.0, "gradient": 0.5, "striped": 0.5, "checkered": 0.5, "horizon": 0.63}
    expected |= {"dotted": np.pi * 0.28**2, "grid": 1 - 0.78**2}
    assert share.mean() == pytest.approx(expected[kind], abs=0.03)
    assert share.max() > 0.7 or kind == "plain"


@pytest.mark.parametrize("kind", ["striped", "checkered", "horizon", "dotted", "grid"])
def test_every_edge_of_a_background_is_smooth(kind):
    background = Background(kind, (0, 0, 0), (255, 255, 255), 0.17, 0.35, 0.31, 0.43)
    share = Scene(256, 256, background).image()[..., 0]
    fine = Scene(2048, 2048, background).image()[..., 0].reshape(256, 8, 256, 8).mean((1, 3))
    # a box filter of the distance is not the area where two lines cross
    assert np.abs(fine - share).max() < (0.3 if kind == "grid" else 0.07)
    assert np.abs(fine - share).mean() < 2e-3


def test_random_backgrounds_stay_clear_of_the_objects_colours():
    objects = np.array(list(COLOURS.values()))
    for seed in range(60):
        background = random_background(np.random.default_rng(seed))
        assert background.first != background.second
        for colour in (background.first, background.second):
            assert np.abs(objects - colour).sum(axis=1).min() > 60


# coverage


def test_outlines_are_smooth_and_have_their_true_area():
    mask = one("circle", size=100 / 256).full_mask(0)
    assert ((mask > 0) & (mask < 1)).sum() > 200 and len(np.unique(mask)) > 16
    assert mask.max() == 1 and mask.min() == 0
    assert mask.sum() == pytest.approx(np.pi / 4 * 100**2, rel=5e-3)
    ring = one("ring", size=100 / 256).full_mask(0)
    assert ring.sum() == pytest.approx(np.pi * (50**2 - 29**2), rel=1e-2)
    assert ring[128, 128] == 0 and ring[128, 90] == 1
    square = one("square", size=100 / 256, rotation=15).full_mask(0)
    assert square.sum() == pytest.approx(88**2, rel=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_size_around_their_centre(shape):
    mask = one(shape, size=100 / 256).full_mask(0)
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    for low, high in [(rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)]:
        assert 73 <= low <= 92 and 164 <= high <= 183


def test_coverage_outside_the_frame_is_cut_off():
    scene = one("circle", size=0.4)
    whole = scene.full_mask(0)
    for dx, dy in [(-128, 0), (128, 0), (0, -128), (0, 128), (100, -100)]:
        moved = scene.moved(0, dx, dy).full_mask(0)
        expected = np.zeros_like(whole)
        expected[max(0, dy) : 256 + min(0, dy), max(0, dx) : 256 + min(0, dx)] = whole[
            max(0, -dy) : 256 - max(0, dy), max(0, -dx) : 256 - max(0, dx)
        ]
        assert np.abs(moved - expected).max() < 0.1
    gone = scene.moved(0, 400, 0)
    assert not gone.full_mask(0).any() and np.array_equal(gone.image(), gone.background_image())


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
    if shape in ("letter L", "letter E"):
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
    assert scene.resized(0, 1.3).caption() == "a red heart on a plain background"
    assert scene.resized(0, 2.0, 0.5).caption() == scene.caption()
    pair = scene.duplicated(0, 80, 0).resized(1, 2.0)
    assert pair.caption() == "a large red heart and a small red heart on a plain background"
