"""Instant Attention Mask and Word Mask beside other nodes and with input that is not meant for them."""

import pytest
import torch

from latent_layers.attention.host import apply_keep_source
from latent_layers.inversion.host import invert
from latent_layers.masks.instant_host import word_mask
from latent_layers.nodes.toy import ToyModel
from latent_layers.toyscenes.host import image_tensor
from latent_layers.toyscenes.scenes import random_scene

from .instant_runs import HEIGHT, WIDTH, condition, edit, schedule


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def toy():
    """MODEL, CLIP, VAE as the node gives them."""
    with torch.inference_mode():
        return ToyModel.execute().args


def latent_of(toy, seed):
    return toy[2].encode(image_tensor(random_scene(seed, WIDTH, HEIGHT, (1, 1)).image()))


def test_word_mask_does_not_write_into_the_trajectory(toy):
    """Keep Source, here of another picture, writes into the x that the model is asked with."""
    one, other = (invert(toy[0], condition(toy), latent_of(toy, seed), schedule(toy[0])) for seed in (11, 12))
    before = [x.clone() for x in one.latents]
    half = torch.zeros(1, HEIGHT, WIDTH)
    half[..., : WIDTH // 2] = 1
    text = random_scene(11, WIDTH, HEIGHT, (1, 1)).caption()
    word_mask(apply_keep_source(toy[0], other, half), toy[1], one, text, "background", steps=3)
    assert all(torch.equal(x, y) for x, y in zip(one.latents, before, strict=True))


def test_an_empty_source_text_is_named(toy):
    with pytest.raises(ValueError, match="^Instant Attention Mask: source_text"):
        edit(toy, latent_of(toy, 11), source_text=" , ")
