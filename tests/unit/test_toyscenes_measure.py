"""Measurements on pixels: PSNR by its formula, and objects found in pictures of which they are known."""

import math

import numpy as np
import pytest

from latent_layers.toyscenes.backgrounds import KINDS, PALETTE, Background
from latent_layers.toyscenes.measure import find_objects, follows_caption, psnr
from latent_layers.toyscenes.scenes import SHAPES, Scene, SceneObject, random_scene


def scene_of(*objects: SceneObject, kind: str = "plain") -> Scene:
    return Scene(256, 256, Background(kind, PALETTE["mist"], PALETTE["stone"], 0.13, 0.4, 0.5, 0.5), objects)


PAIR = scene_of(
    SceneObject("triangle", "green", 0.3, 0.35, 0.3, rotation=8),
    SceneObject("ring", "blue", 0.7, 0.65, 0.32),
    kind="striped",
)


def test_psnr_is_its_formula():
    rng = np.random.default_rng(0)
    a, b = rng.random((40, 56, 3), np.float32), rng.random((40, 56, 3), np.float32)
    squares = [(float(a[i, j, c]) - float(b[i, j, c])) ** 2 for i in range(40) for j in range(56) for c in range(3)]
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / np.mean(squares)), abs=1e-6)
    assert psnr(np.full((8, 8, 3), 0.1), np.zeros((8, 8, 3))) == pytest.approx(20.0)


def test_psnr_weighs_by_the_mask():
    rng = np.random.default_rng(1)
    a, b, mask = rng.random((16, 24, 3)), rng.random((16, 24, 3)), rng.random((16, 24))
    weighted = sum(mask[i, j] * ((a[i, j] - b[i, j]) ** 2).mean() for i in range(16) for j in range(24)) / mask.sum()
    assert psnr(a, b, mask) == pytest.approx(-10 * math.log10(weighted), abs=1e-9)
    half = np.zeros((16, 24))
    half[:8] = 1
    assert psnr(a, b, half) == pytest.approx(psnr(a[:8], b[:8]))
    other = b.copy()
    other[8:] = 0
    assert psnr(a, other, half) == psnr(a, b, half) != psnr(a, other)


def test_psnr_of_equal_pictures_is_bounded():
    picture = np.random.default_rng(2).random((8, 8, 3))
    assert psnr(picture, picture) == 100.0


def test_true_scenes_follow_their_captions():
    seeds = range(16)
    missed = [seed for seed in seeds if not follows_caption(random_scene(seed), random_scene(seed).image())]
    assert len(missed) <= 0.1 * len(seeds), missed


def test_captions_of_other_scenes_are_not_followed():
    with_objects = [random_scene(seed, objects=(1, 4)) for seed in range(4)]
    for scene, other in zip(with_objects, with_objects[1:], strict=False):
        assert not follows_caption(scene, other.image())


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_found_where_it_is(shape):
    thing = SceneObject(shape, "purple", 0.4, 0.55, 0.3, rotation=-9, tint=(6, -6, 6))
    scene = scene_of(thing, kind="dotted")
    (found,) = find_objects(scene.image())
    assert (found.colour, found.shape) == ("purple", shape)
    mask = scene.full_mask(0)
    y, x = np.mgrid[:256, :256] + 0.5
    assert found.x == pytest.approx((x * mask).sum() / mask.sum(), abs=0.6)
    assert found.y == pytest.approx((y * mask).sum() / mask.sum(), abs=0.6)
    assert found.area == pytest.approx(mask.sum(), rel=0.08)
    assert 0.72 <= found.overlap <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_backgrounds_are_no_objects(kind):
    assert find_objects(scene_of(kind=kind).image()) == []
    assert follows_caption(scene_of(kind=kind), scene_of(kind=kind).image())
    assert not follows_caption(scene_of(kind=kind), PAIR.image())


def test_a_partly_hidden_object_keeps_its_shape():
    behind = SceneObject("square", "blue", 0.45, 0.45, 0.36, rotation=5)
    front = SceneObject("circle", "yellow", 0.6, 0.6, 0.25)
    found = {(f.colour, f.shape) for f in find_objects(scene_of(behind, front).image())}
    assert found == {("blue", "square"), ("yellow", "circle")}


def test_a_shapeless_patch_has_no_shape():
    picture = scene_of().image()
    picture[100:112, 20:240] = np.array((214, 40, 44)) / 255
    (found,) = find_objects(picture)
    assert (found.colour, found.shape) == ("red", None)


def test_specks_are_no_objects():
    picture = scene_of().image()
    picture[100:112, 100:112] = np.array((214, 40, 44)) / 255
    assert find_objects(picture) == []


def test_noise_of_a_sampler_is_no_obstacle():
    noise = np.random.default_rng(3).normal(0, 0.03, (256, 256, 3)).astype(np.float32)
    assert follows_caption(PAIR, np.clip(PAIR.image() + noise, 0, 1))


@pytest.mark.parametrize(
    "shown, follows",
    {
        "itself": (PAIR, True),
        "elsewhere": (PAIR.moved(0, 10, -12), True),
        "missing": (PAIR.without(0), False),
        "all missing": (PAIR.without(0).without(0), False),
        "one too many": (PAIR.duplicated(0, 0, 90), False),
        "recoloured": (PAIR.edited(0, colour="orange"), False),
        "other shape": (PAIR.edited(1, shape="circle"), False),
        "colours swapped": (PAIR.edited(0, colour="blue").edited(1, colour="green"), False),
    }.values(),
    ids=["itself", "elsewhere", "missing", "all", "extra", "recoloured", "reshaped", "swapped"],
)
def test_captions_are_followed_exactly_or_not_at_all(shown, follows):
    assert follows_caption(PAIR, shown.image()) is follows


def test_counts_are_read_exactly():
    two = scene_of(PAIR.objects[0]).duplicated(0, 90, 70)
    three = two.duplicated(0, 90, -20)
    assert follows_caption(two, two.image()) and follows_caption(three, three.image())
    assert not follows_caption(two, three.image()) and not follows_caption(three, two.image())


def test_psnr_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="mask is 0 everywhere"):
        psnr(np.zeros((4, 4, 3)), np.zeros((4, 4, 3)), np.zeros((4, 4)))
