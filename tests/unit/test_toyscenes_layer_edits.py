"""Layered edits of toy scenes: truth and layers mean the same edit, in every task and frame."""

from functools import cache

import numpy as np
import pytest
import torch

from latent_layers.fusion.layered import Layout, lay_out
from latent_layers.toyscenes.host import image_tensor
from latent_layers.toyscenes.layer_edits import TASKS, SceneEdit
from latent_layers.toyscenes.scenes import Scene, random_scene

SIZES = [(256, 256), (384, 256), (256, 448)]
EDITS = [(task, *size) for task in TASKS for size in SIZES]
EXACT = {"move", "duplicate", "swap", "occlusion"}  # moves by whole pixels only


def edit_of(task: str, seed: int, width: int, height: int) -> SceneEdit:
    return TASKS[task](seed, (width, height))


@cache
def laid_out(task: str, seed: int, width: int, height: int) -> tuple[SceneEdit, Layout]:
    edit = edit_of(task, seed, width, height)
    return edit, lay_out(edit.source_image, edit.layers)


def truth_mask(edit: SceneEdit, number: int) -> np.ndarray:
    """Where the truth has what layer `number` becomes, less what nobody has seen of it."""
    counts = [max(1, len(layer.moves)) for layer in edit.layers]
    first = sum(counts[:number])
    mask = np.zeros((edit.scene.height, edit.scene.width), np.float32)
    for _, new in edit.edited[first : first + counts[number]]:
        if new is not None:
            mask = np.maximum(mask, edit.truth.full_mask(new))
    return mask if edit.hidden is None else mask * (1 - edit.hidden[0].numpy() if edit.hidden.ndim == 3 else 1)


@pytest.mark.parametrize("task, width, height", EDITS)
@pytest.mark.parametrize("seed", range(8))
def test_truth_and_layers_are_the_same_edit(task, width, height, seed):
    edit, layout = laid_out(task, seed, width, height)
    final = layout.final_masks().numpy()
    assert layout.layers == edit.layers or [a.name for a in layout.layers] == [b.name for b in edit.layers]
    for number, layer in enumerate(layout.layers):
        expected = truth_mask(edit, number)
        if not layer.moves:
            assert final[number].max() == 0 and expected.max() == 0
            continue
        a, b = final[number] > 0.5, expected > 0.5
        assert (a & b).sum() > 0.97 * (a | b).sum()
        if task in EXACT and edit.hidden is None:
            assert np.abs(final[number] - expected).max() < 1e-6
