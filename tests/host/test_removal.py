"""Removal end to end on the shipped weights: the object goes, the rest stays."""

import pytest
import torch

from latent_layers.attention.host import apply_keep_source, apply_key_mask
from latent_layers.toyscenes.bench_removal import difference_outside, failures, node_defaults
from latent_layers.toyscenes.pipeline import Toy
from latent_layers.toyscenes.removal import composite, removal_set, remove

SEEDS = range(304, 308)  # none with a twin of the removed object
TWINS = 40  # a seed with two of them


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(scope="module")
def data(toy):
    with torch.inference_mode():
        return removal_set(toy, SEEDS)


def mean(values):
    return sum(values) / len(values)


def test_the_object_is_gone_and_nothing_else_has_changed(toy, data):
    pictures = remove(toy, data, **node_defaults())
    inside, source = data.psnrs(pictures), data.psnrs(data.sources)
    assert mean(inside) > mean(source) + 12
    assert failures(inside) == 0
    assert difference_outside(data, pictures) == 0.0


def test_twins_are_not_copied_into_the_hole(toy):
    data = removal_set(toy, [TWINS])
    (forgotten,) = data.psnrs(remove(toy, data, steps=20, **node_defaults()))
    (copied,) = data.psnrs(remove(toy, data, steps=20, **node_defaults(), artifact_mask=None))
    assert forgotten > copied + 10


def test_the_key_mask_does_it(toy, data):
    """Without it the trajectory leads straight back to the object."""
    trajectory = data.trajectory(toy)
    kept = apply_keep_source(toy.model, trajectory, data.masks)
    unmasked = composite(data, toy.decode(toy.sample(kept, trajectory)))
    assert mean(data.psnrs(unmasked)) < mean(data.psnrs(data.sources)) + 6


def test_every_picture_of_a_batch_gets_its_own_mask(toy, data):
    """Four pictures at once are the same four pictures one by one, but for rounding."""
    together = remove(toy, data, **node_defaults())
    for index, seed in enumerate(SEEDS):
        alone = removal_set(toy, [seed])
        picture = remove(toy, alone, **node_defaults())
        assert float((picture[0] - together[index]).abs().max()) < 0.02


def test_evaluations_are_those_of_the_formula(toy, data):
    data.trajectory(toy)
    for guidance, expected in ((1.0, 50), (7.5, 90)):
        before = toy.samples
        trajectory = data.trajectory(toy)
        toy.sample(apply_key_mask(toy.model, data.masks, guidance=guidance, end=0.8), trajectory)
        assert (toy.samples - before) / len(SEEDS) == pytest.approx(expected, abs=1)
