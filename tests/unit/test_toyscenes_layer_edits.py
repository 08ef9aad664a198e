"""Layered edits of toy scenes: truth and layers mean the same edit, in every task and frame."""

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch

from latent_layers.fusion.layered import Layout, lay_out
from latent_layers.fusion.layers import Layer
from latent_layers.masks.grid import dilate
from latent_layers.toyscenes.host import image_tensor
from latent_layers.toyscenes.layer_edits import FARTHEST, TASKS, SceneEdit
from latent_layers.toyscenes.scenes import SHAPES, Scene, SceneObject

from .test_toyscenes_scenes import PLAIN

SIZES = [(256, 256), (384, 256), (256, 448)]
EVERY_SIZE = pytest.mark.parametrize("width, height", SIZES)
EXACT = {"move", "duplicate", "swap", "occlusion"}  # moves by whole pixels only


@cache
def laid_out(task: str, width: int, height: int, seed: int) -> tuple[SceneEdit, Layout]:
    edit = TASKS[task](seed, (width, height))
    return edit, lay_out(edit.source_image, edit.layers)


def truth_mask(edit: SceneEdit, number: int) -> np.ndarray:
    """Where the truth has what layer `number` becomes, less what nobody has seen of it."""
    counts = [max(1, len(layer.moves)) for layer in edit.layers]
    first = sum(counts[:number])
    new = [index for _, index in edit.edited[first : first + counts[number]] if index is not None]
    mask = np.max([edit.truth.full_mask(index) for index in new] or [np.zeros(edit.area.shape)], axis=0)
    return mask if edit.hidden is None else mask * (1 - edit.hidden.numpy())


@EVERY_SIZE
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(4))
def test_truth_and_layers_are_the_same_edit(task, width, height, seed):
    edit, layout = laid_out(task, width, height, seed)
    assert (edit.scene.width, edit.scene.height) == (edit.truth.width, edit.truth.height) == (width, height)
    assert [layer.name for layer in layout.layers] == [layer.name for layer in edit.layers]
    for number, (layer, mask) in enumerate(zip(edit.layers, layout.final_masks().numpy(), strict=True)):
        expected = truth_mask(edit, number)
        if not layer.moves:
            assert mask.max() == 0 and expected.max() == 0
            continue
        ours, theirs = mask > 0.5, expected > 0.5
        assert (ours & theirs).sum() > 0.97 * (ours | theirs).sum()
        if task in EXACT - {"occlusion"}:
            assert np.abs(mask - expected).max() < 1e-6


@EVERY_SIZE
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(2))
def test_layers_laid_on_the_true_background_are_the_truth(task, width, height, seed):
    edit, layout = laid_out(task, width, height, seed)
    edited = {old for old, _ in edit.edited}
    others = tuple(thing for index, thing in enumerate(edit.scene.objects) if index not in edited)
    background = image_tensor(dataclasses.replace(edit.scene, objects=others).image())
    error = (layout.laid_on(background) - edit.truth_image)[0].numpy().astype(np.float64)
    there = np.max([edit.truth.full_mask(new) for _, new in edit.edited if new is not None], axis=0) > 0
    if edit.hidden is not None:
        there &= dilate(edit.hidden[None], 2)[0].numpy() == 0
    assert -10 * math.log10((error[there] ** 2).mean() + 1e-12) > (45 if task in EXACT else 29)


@EVERY_SIZE
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(2))
def test_what_may_change_is_where_source_and_truth_differ(task, width, height, seed):
    edit, layout = laid_out(task, width, height, seed)
    differs = (edit.source_image != edit.truth_image).any(-1)
    assert differs.any()
    kept = layout.edited == 0
    for layer in edit.layers:
        if layer.occluder is not None:  # its rim still shows a little of what it hid
            kept = kept & ~((layer.occluder > 0.5) & (layer.occluder < 1))
    assert not (differs & kept).any()
    assert not (differs[0] & (dilate(edit.area[None], 1)[0] == 0)).any()


@pytest.mark.parametrize("task", TASKS)
def test_an_edit_is_one_edit_in_its_seed_and_task(task):
    a, b, other = (TASKS[task](seed, (256, 256)) for seed in (5, 5, 6))
    assert (a.scene, a.truth, a.edited) == (b.scene, b.truth, b.edited)
    for one, same in zip(a.layers, b.layers, strict=True):
        for field in dataclasses.fields(Layer):
            x, y = getattr(one, field.name), getattr(same, field.name)
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    assert a.scene != other.scene and a.truth != a.scene


@EVERY_SIZE
@pytest.mark.parametrize("task", TASKS)
def test_edited_objects_are_whole_before_and_after(task, width, height):
    for seed in range(4):
        edit, _ = laid_out(task, width, height, seed)
        for scene, indices in ((edit.scene, [a for a, _ in edit.edited]), (edit.truth, [b for _, b in edit.edited])):
            for mask in (scene.full_mask(index) for index in indices if index is not None):
                assert mask.max() == 1 and mask[[0, -1]].max() == 0 and mask[:, [0, -1]].max() == 0


@EVERY_SIZE
def test_what_the_tasks_promise(width, height):
    for seed in range(4):
        edits = {task: laid_out(task, width, height, seed)[0] for task in TASKS}
        for task in ("move", "flip"):
            (right, down), *none = edits[task].layers[0].moves
            assert not none and abs(right) <= FARTHEST * width + 1 and abs(down) <= FARTHEST * height + 1
            assert right % 8 or down % 8
        assert min(edits["resize"].layers[0].scale_x, edits["resize"].layers[0].scale_y) >= 0.6
        assert 15 <= abs(edits["rotate"].layers[0].rotation) <= 165
        assert edits["flip"].layers[0].flip_x != edits["flip"].layers[0].flip_y
        assert len(edits["duplicate"].layers[0].moves) == 2 and edits["duplicate"].layers[0].stays
        one, other = edits["swap"].layers
        assert one.moves == (tuple(-v for v in other.moves[0]),)
        assert len(edits["multi"].truth.objects) == len(edits["multi"].scene.objects) == 4
        hidden = edits["occlusion"]
        assert hidden.hidden is not None and hidden.hidden.any() and hidden.layers[0].occluder is not None
        assert edits["cross"].layers[0].image is not None and edits["cross"].layers[0].image.shape == (1, 240, 320, 3)


@pytest.mark.parametrize("x, y", [(-3.0, 0.5), (4.0, 0.5), (0.5, -3.0), (0.5, 4.0), (-3.0, -3.0), (-0.16, 0.5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_outside_the_frame_covers_nothing(shape, x, y):
    scene = Scene(64, 48, PLAIN, (SceneObject(shape, "red", x, y, 0.3),))
    assert scene.full_mask(0).max() == 0 and np.array_equal(scene.image(), scene.background_image())
