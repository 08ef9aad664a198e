"""Toy scenes: one seed, one world; every layer is known and every edit changes what it should and nothing else."""

import numpy as np
import pytest

from latent_layers.toyscenes.backgrounds import KINDS, PALETTE, Background, random_background
from latent_layers.toyscenes.scenes import COLOURS, SHAPES, Scene, SceneObject, random_scene

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
