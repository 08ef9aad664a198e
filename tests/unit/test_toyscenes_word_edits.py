"""Edits by words: prompts say what changed and nothing else, masks are the object's, outcomes are read off pixels."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from latent_layers.masks.grid import dilate
from latent_layers.toyscenes.backgrounds import PALETTE, Background
from latent_layers.toyscenes.scenes import Scene, SceneObject
from latent_layers.toyscenes.word_edits import Outcome, WordEdit, overlap, word_edit, words

RING = SceneObject("ring", "blue", 0.28, 0.3, 0.34)
LETTERS = (SceneObject("letter H", "red", 0.72, 0.3, 0.32), SceneObject("letter T", "green", 0.5, 0.75, 0.32))
DRAWN = [(0, 128, 128), (1, 128, 96), (2, 96, 136), (3, 104, 96)]  # small: measuring shapes takes its time
EVERY_DRAWN = pytest.mark.parametrize("seed, width, height", DRAWN)


@cache
def drawn(seed: int, width: int, height: int) -> WordEdit:
    return word_edit(seed, (width, height))


def scene(*objects: SceneObject) -> Scene:
    background = Background("striped", PALETTE["mist"], PALETTE["stone"], 0.13, 0.4, 0.5, 0.5)
    return Scene(192, 176, background, objects, name_sizes=True)


def recoloured() -> WordEdit:
    """The H of a ring, an H and a T becomes black."""
    before = scene(RING, *LETTERS)
    return WordEdit("colour", before, before.edited(1, colour="black"), 1)


def reshaped() -> WordEdit:
    """The ring of a ring, an H and a T becomes an L."""
    before = scene(RING, *LETTERS)
    return WordEdit("shape", before, before.edited(0, shape="letter L"), 0)


def test_words_that_name_the_object_are_told_from_the_same_words_elsewhere():
    edit = recoloured()
    assert edit.caption == "a green letter T, a red letter H and a blue ring on a striped background"
    assert edit.prompt == "a green letter T, a black letter H and a blue ring on a striped background"
    assert edit.named == ("red", "letter#2", "H")
    assert edit.named_after == ("black", "letter#2", "H")
    assert edit.changed == ("black",)
    other = reshaped()
    assert other.prompt.endswith("and a blue letter L on a striped background")
    assert other.named == ("blue", "ring") and other.changed == ("letter#3", "L")


def test_every_word_of_the_caption_has_its_kind():
    expected = ["filler", "other", "other", "other", "filler", "colour", "shape", "shape",
                "filler", "filler", "other", "other", "filler", "filler", "place", "place"]  # fmt: skip
    assert recoloured().kinds() == expected
    twins = scene(RING, dataclasses.replace(LETTERS[0], shape="cross"), dataclasses.replace(LETTERS[1], size=0.2))
    twins = dataclasses.replace(twins, objects=(*twins.objects, dataclasses.replace(twins.objects[1], x=0.2, y=0.8)))
    edit = WordEdit("colour", twins, twins.edited(0, colour="white"), 0)
    assert edit.caption == "two red crosses, a small green letter T and a blue ring on a striped background"
    assert edit.kinds() == ["filler", "other", "other", "filler", "filler", "other", "other", "other",
                            "filler", "filler", "colour", "shape", "filler", "filler", "place", "place"]  # fmt: skip


@EVERY_DRAWN
def test_one_object_changes_and_the_words_say_how(seed, width, height):
    edit = drawn(seed, width, height)
    assert (edit.scene.width, edit.scene.height) == (width, height)
    assert edit.task == ("colour", "shape")[seed % 2]
    before, after = edit.scene.objects[edit.index], edit.truth.objects[edit.index]
    assert getattr(before, edit.task) != getattr(after, edit.task)
    assert dataclasses.replace(after, **{edit.task: getattr(before, edit.task)}) == before
    assert edit.truth.without(edit.index) == edit.scene.without(edit.index)
    for objects in (edit.scene.objects, edit.truth.objects):
        thing = objects[edit.index]
        assert [o.colour for o in objects].count(thing.colour) == [o.shape for o in objects].count(thing.shape) == 1
    # without the words that name the object both texts are the same, up to the article
    for text, names in ((edit.caption, edit.named), (edit.prompt, edit.named_after)):
        assert all(name.partition("#")[0] in text for name in names)
    a, b = (f"{o.colour} {o.shape}" for o in (before, after))
    assert edit.caption.replace(a, "?").replace("an ?", "a ?") == edit.prompt.replace(b, "?").replace("an ?", "a ?")
    assert set(edit.changed) <= set(edit.named_after)
    kinds = dict(zip(edit.kinds(), words(edit.caption), strict=True))
    assert kinds["colour"] == before.colour and kinds["place"] == "background"


@EVERY_DRAWN
def test_pictures_differ_in_the_area_only(seed, width, height):
    edit = drawn(seed, width, height)
    differs = (edit.source_image != edit.truth_image).any(-1)
    assert differs.any()
    assert not differs[dilate(edit.area, 1) == 0].any()
    assert bool((edit.area >= edit.mask).all()) and edit.area.shape == edit.mask.shape == (1, height, width)
    if edit.task == "colour":
        assert torch.equal(edit.area, edit.mask) and bool(differs[edit.mask > 0].all())


def test_the_mask_is_what_nothing_in_front_hides():
    square, front = SceneObject("square", "red", 0.4, 0.4, 0.5), SceneObject("square", "blue", 0.62, 0.4, 0.3)
    before = Scene(100, 100, scene().background, (square, front))
    edit = WordEdit("shape", before, before.edited(0, shape="circle"), 0)
    expected = np.zeros((100, 100))
    expected[18:62, 18:62] = 1  # 0.88 of 50 pixels about 40
    expected[27:53, 49:76] = 0  # 0.88 of 30 pixels about 62 and 40: 48.8 to 75.2, 26.8 to 53.2
    assert np.array_equal(edit.mask[0].numpy(), expected)
    y, x = np.mgrid[:100, :100] + 0.5
    circle = (np.hypot(x - 40, y - 40) < 25) & ~((abs(x - 62) < 13.2) & (abs(y - 40) < 13.2))
    assert (edit.area[0].numpy() != np.maximum(expected, circle)).sum() < 12  # a polygon's rim


@EVERY_DRAWN
def test_the_truth_is_a_success_and_the_source_is_none(seed, width, height):
    edit = drawn(seed, width, height)
    done, undone = (Outcome.of(edit, image[0].numpy()) for image in (edit.truth_image, edit.source_image))
    assert done.changed and done.as_prompted
    assert not undone.changed and not undone.as_prompted


def test_outcomes_of_other_pictures():
    before = Scene(112, 96, scene().background, (SceneObject("square", "red", 0.5, 0.5, 0.42),))
    edit = WordEdit("colour", before, before.edited(0, colour="black"), 0)
    other_shape = Outcome.of(edit, edit.truth.edited(0, shape="circle").image())
    assert other_shape.changed and not other_shape.as_prompted
    other_colour = Outcome.of(edit, edit.truth.edited(0, colour="purple").image())
    assert other_colour.found is not None and other_colour.found.colour == "purple" and not other_colour.changed
    assert Outcome.of(edit, edit.truth.moved(0, 16, 4).image()).found is None
    assert Outcome.of(edit, edit.truth.moved(0, 5, -4).image()).as_prompted
    assert Outcome.of(edit, edit.truth.resized(0, 0.55).image()).found is None
    reshaped = WordEdit("shape", before, before.edited(0, shape="triangle"), 0)
    as_cross = Outcome.of(reshaped, reshaped.truth.edited(0, shape="cross").image())
    assert as_cross.found is not None and as_cross.found.shape == "cross" and not as_cross.changed
    recoloured = Outcome.of(reshaped, reshaped.truth.edited(0, colour="green").image())
    assert recoloured.changed and not recoloured.as_prompted


def test_draws_are_one_in_their_seed_and_differ_between_seeds():
    again = word_edit(3, (104, 96))
    assert (again.scene, again.truth, again.index) == (drawn(3, 104, 96).scene, drawn(3, 104, 96).truth, again.index)
    assert len({drawn(*key).prompt for key in DRAWN}) == len(DRAWN)
    assert word_edit(3, (104, 96), "colour").task == "colour"


def test_overlap_is_intersection_over_union():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(37, 23, generator=generator) for _ in range(2))
    pairs = [(x > 0.5, y > 0.5) for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    both, either = sum(x and y for x, y in pairs), sum(x or y for x, y in pairs)
    assert overlap(a, b) == overlap(b.half(), a) == pytest.approx(both / either, abs=1e-12)
    assert overlap(a, a) == 1 and overlap(torch.zeros(3, 4), torch.ones(3, 4)) == 0
    assert overlap(torch.zeros(3, 4), torch.full((3, 4), 0.5)) == 1
    with pytest.raises(ValueError, match=r"masks are \(3, 4\) and \(4, 3\)"):
        overlap(torch.zeros(3, 4), torch.zeros(4, 3))
