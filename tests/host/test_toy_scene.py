"""The node Toy Scene: tensors as the host wants them, of a scene of which everything is known."""

import numpy as np
import pytest
import torch

from latent_layers.nodes.toy import ToyScene
from latent_layers.toyscenes.scenes import random_scene

OUTPUTS = ("image", "mask", "truth", "caption", "masks", "truth_caption")


def draw(seed=7, width=256, height=256, objects=3, object=1) -> dict:
    values = ToyScene.execute(seed=seed, width=width, height=height, objects=objects, object=object).args
    return dict(zip(OUTPUTS, values, strict=True))


def test_the_schema_names_its_outputs_in_this_order():
    schema = ToyScene.define_schema()
    assert tuple(output.display_name for output in schema.outputs) == OUTPUTS
    assert [output.io_type for output in schema.outputs] == ["IMAGE", "MASK", "IMAGE", "STRING", "MASK", "STRING"]


@pytest.mark.parametrize("width, height, objects", [(256, 256, 3), (384, 256, 2), (256, 448, 4), (72, 64, 1)])
def test_outputs_are_the_hosts_tensors(width, height, objects):
    out = draw(width=width, height=height, objects=objects)
    assert out["image"].shape == out["truth"].shape == (1, height, width, 3)
    assert out["mask"].shape == (1, height, width) and out["masks"].shape == (objects, height, width)
    for name in ("image", "mask", "truth", "masks"):
        assert out[name].dtype == torch.float32 and out[name].min() >= 0 and out[name].max() <= 1
    levels = out["image"] * 255
    assert (levels - levels.round()).abs().max() < 1e-4  # what a saved picture would hold


@pytest.mark.parametrize("number", [1, 2, 3])
def test_object_1_is_in_front(number):
    out, scene = draw(object=number), random_scene(7, objects=(3, 3))
    index = 3 - number
    assert np.abs(out["mask"][0].numpy() - scene.visible_mask(index)).max() <= 0.5 / 255 + 1e-6  # in 8 bits, too
    assert torch.equal(out["mask"][0], out["masks"][index])
    assert np.abs(out["image"][0].numpy() - scene.image()).max() <= 0.5 / 255 + 1e-6
    assert np.abs(out["truth"][0].numpy() - scene.without(index).image()).max() <= 0.5 / 255 + 1e-6
    assert (out["caption"], out["truth_caption"]) == (scene.caption(), scene.without(index).caption())


def test_the_truth_differs_inside_the_mask_only():
    out = draw(seed=12, objects=4, object=2)
    difference = (out["image"] != out["truth"]).any(dim=3)
    assert not difference[out["mask"] == 0].any()
    assert difference[out["mask"] > 0.9].float().mean() > 0.99


def test_seeds_and_runs():
    assert torch.equal(draw()["image"], draw()["image"])
    assert not torch.equal(draw()["image"], draw(seed=8)["image"])


@pytest.mark.parametrize("objects, chosen", [(1, 2), (3, 4), (2, 0)])
def test_an_object_that_is_not_there_is_named(objects, chosen):
    with pytest.raises(
        ValueError, match=rf"Toy Scene: object is {chosen}, .* has {objects} objects; choose 1 to {objects}"
    ):
        draw(objects=objects, object=chosen)
