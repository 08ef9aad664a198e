"""Soft edits of toy scenes: one attribute changes, captions say so, and outcomes are read off pixels."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from latent_layers.toyscenes.background_kind import background_kind, object_labels
from latent_layers.toyscenes.backgrounds import KINDS, PALETTE, Background
from latent_layers.toyscenes.measure import find_objects
from latent_layers.toyscenes.scenes import COLOURS, Scene, SceneObject, random_scene
from latent_layers.toyscenes.soft_edits import TASKS, Outcome, SoftEdit, shown, silhouette, soft_edit
from latent_layers.toyscenes.word_edits import words

DRAWN = [(0, 128, 128), (1, 128, 112), (2, 112, 136), (3, 128, 128), (4, 128, 128), (8, 144, 128), (9, 128, 128)]
EVERY_DRAWN = pytest.mark.parametrize("seed, width, height", DRAWN)
STRIPES = Background("striped", PALETTE["mist"], PALETTE["stone"], 0.13, np.pi / 6, 0.5, 0.5)
CIRCLE = SceneObject("circle", "red", 0.3, 0.4, 0.3)
SQUARE = SceneObject("square", "blue", 0.75, 0.7, 0.26)


@cache
def drawn(seed: int, width: int, height: int) -> SoftEdit:
    return soft_edit(seed, (width, height))


def scene(*objects, background=STRIPES, name_sizes=False) -> Scene:
    return Scene(160, 160, background, objects, name_sizes=name_sizes)


def changes(edit: SoftEdit, result: Scene, before: Scene | None = None) -> bool:
    return Outcome(edit, (before or edit.scene).image(), result.image()).changed


@EVERY_DRAWN
def test_the_truth_is_a_success_and_the_source_is_none(seed, width, height):
    edit = drawn(seed, width, height)
    source, truth = edit.source_image[0].numpy(), edit.truth_image[0].numpy()
    assert source.shape == (height, width, 3)
    assert shown(edit, source) and not shown(edit, truth)
    assert Outcome(edit, source, truth).changed and not Outcome(edit, source, source).changed


@EVERY_DRAWN
def test_one_attribute_changes_and_the_prompts_say_so(seed, width, height):
    edit = drawn(seed, width, height)
    assert edit.task == TASKS[seed % len(TASKS)]
    before, after = words(edit.caption), words(edit.prompt)
    assert before != after and set(before) & set(after)
    if edit.task == "background":
        assert edit.truth.objects == edit.scene.objects
        assert edit.truth.background.kind != edit.scene.background.kind
        assert (edit.truth.background.first, edit.truth.background.second) == (
            edit.scene.background.first,
            edit.scene.background.second,
        )
    elif edit.task == "count":
        more, less = sorted((edit.scene.objects, edit.truth.objects), key=len, reverse=True)
        assert less == more[:-1] and abs(edit.number(edit.truth) - edit.number(edit.scene)) == 1
    else:
        field = {"colour": "colour", "shape": "shape", "size": "size"}[edit.task]
        old, new = edit.scene.objects[edit.index], edit.truth.objects[edit.index]
        assert dataclasses.replace(new, **{field: getattr(old, field)}) == old != new
    if edit.task == "size":
        sizes = {"small": "large", "large": "small"}
        assert [sizes[w] for w, v in zip(before, after, strict=True) if w != v] == [
            v for w, v in zip(before, after, strict=True) if w != v and v in sizes
        ]


@EVERY_DRAWN
def test_what_should_be_kept_is_the_same_in_the_truth(seed, width, height):
    edit = drawn(seed, width, height)
    source, truth = edit.source_image[0].numpy(), edit.truth_image[0].numpy()
    kept = Outcome(edit, source, truth).kept
    assert kept.dtype == bool and kept.any() and not kept.all()
    assert np.abs(truth - source).max(-1)[kept].max() < 0.02
    differs = np.abs(truth - source).max(-1) > 0.02
    assert not differs[ndimage.binary_erosion(edit.area[0].numpy() == 0, iterations=2)].any()
    assert edit.area.shape == (1, height, width) and set(edit.area.unique().tolist()) <= {0.0, 1.0}


def test_draws_are_one_in_their_seed():
    again = soft_edit(3, (128, 128))
    assert again == drawn(3, 128, 128)
    assert soft_edit(3, (128, 128), "colour").task == "colour"


def test_an_object_counts_where_it_was():
    edit = SoftEdit("colour", scene(CIRCLE, SQUARE), scene(CIRCLE, SQUARE).edited(0, colour="green"), 0)
    assert changes(edit, edit.truth) and not changes(edit, edit.scene)
    assert changes(edit, edit.truth.moved(0, 10, 0))
    assert not changes(edit, edit.truth.moved(0, 70, 0))
    assert not changes(edit, edit.truth.resized(0, 0.5))
    assert not changes(edit, edit.scene.edited(1, colour="green"))
    assert not changes(edit, edit.scene.edited(0, colour="purple"))


def test_the_source_that_counts_is_the_picture_and_not_the_scene():
    edit = SoftEdit("colour", scene(CIRCLE, SQUARE), scene(CIRCLE, SQUARE).edited(0, colour="green"), 0)
    elsewhere = edit.scene.moved(0, 60, -10)
    assert shown(edit, elsewhere.image()) and not shown(edit, elsewhere.without(0).image())
    assert changes(edit, elsewhere.edited(0, colour="green"), before=elsewhere)
    assert not changes(edit, edit.truth, before=elsewhere)


@pytest.mark.parametrize("before, after", [(0.25, 0.41), (0.41, 0.25)])
def test_a_size_has_to_go_half_of_the_way(before, after):
    source = scene(dataclasses.replace(CIRCLE, size=before, x=0.4), name_sizes=True)
    edit = SoftEdit("size", source, source.edited(0, size=after), 0)
    assert edit.growth == pytest.approx((after / before) ** 2, rel=0.02)
    for share in (0.0, 0.4, 0.6, 1.0):
        area = before**2 + share * (after**2 - before**2)
        found = Outcome(edit, source.image(), source.edited(0, size=area**0.5).image())
        assert found.progress == pytest.approx(share, abs=0.05)
        assert found.changed == (share > 0.5)
    assert not changes(edit, edit.truth.edited(0, colour="green"))


def test_a_count_is_of_one_name():
    edit = SoftEdit("count", scene(CIRCLE, SQUARE), scene(CIRCLE, SQUARE, dataclasses.replace(CIRCLE, x=0.8, y=0.3)), 0)
    assert (edit.caption, edit.prompt) == (
        "a blue square and a red circle on a striped background",
        "two red circles and a blue square on a striped background",
    )
    assert changes(edit, edit.truth)
    assert not changes(edit, edit.truth.edited(2, colour="green"))
    assert not changes(edit, edit.truth.edited(2, shape="star"))
    assert edit.area[0].sum() == pytest.approx(np.pi * 24**2, rel=0.03)  # of the second circle alone


def test_what_is_kept_leaves_both_places_and_a_margin_out():
    source = scene(CIRCLE, SQUARE)
    edit = SoftEdit("shape", source, source.edited(0, shape="cross"), 0)
    kept = Outcome(edit, source.image(), edit.truth.image()).kept
    y, x = np.mgrid[:160, :160] + 0.5
    away = np.hypot(x - 0.3 * 160, y - 0.4 * 160)
    assert not kept[away < 24 + 7].any() and kept[away > 24 + 13].all()


def test_silhouettes_and_their_overlap():
    source = scene(CIRCLE, SQUARE)
    found = next(thing for thing in find_objects(source.image()) if thing.colour == "red")
    mask = silhouette(source.image(), found)
    truth = source.full_mask(0) > 0.5
    assert (mask != truth).sum() < 0.03 * truth.sum()
    edit = SoftEdit("colour", source, source.edited(0, colour="green"), 0)
    assert Outcome(edit, source.image(), edit.truth.image()).overlap > 0.95
    assert Outcome(edit, source.image(), edit.truth.moved(0, 12, 0).image()).overlap == pytest.approx(0.53, abs=0.05)
    assert Outcome(edit, source.image(), edit.truth.without(0).image()).overlap == 0


@pytest.mark.parametrize("size", [(192, 192), (224, 160)])
def test_the_kind_of_a_background_is_told(size):
    seen, wrong = set(), []
    for seed in range(24):
        drawn_scene = random_scene(seed, *size, objects=(1, 3))
        kind = drawn_scene.background.kind
        seen.add(kind)
        if background_kind(drawn_scene.image()) != kind:
            wrong.append((seed, kind))
    assert seen == set(KINDS) and not wrong


def test_noise_is_no_pattern_and_a_covered_background_is_plain():
    rng = np.random.default_rng(0)
    plain = scene(CIRCLE, background=Background("plain", PALETTE["clay"], PALETTE["clay"])).image()
    assert background_kind(np.clip(plain + 0.05 * rng.standard_normal(plain.shape), 0, 1)) == "plain"
    striped = np.clip(scene(CIRCLE).image() + 0.05 * rng.standard_normal(plain.shape), 0, 1)
    assert background_kind(striped) == "striped"
    assert background_kind(np.broadcast_to(CIRCLE.rgb, (160, 160, 3))) == "plain"


def test_labels_are_of_objects_and_not_of_rims():
    image = scene(CIRCLE, SQUARE).image()
    labels = object_labels(image)
    for index, thing in enumerate((CIRCLE, SQUARE)):
        inside = ndimage.binary_erosion(scene(CIRCLE, SQUARE).full_mask(index) > 0.5, iterations=2)
        assert set(np.where(inside, labels, -2).ravel().tolist()) == {-2, list(COLOURS).index(thing.colour)}
    assert (labels[:20] == -1).all()
