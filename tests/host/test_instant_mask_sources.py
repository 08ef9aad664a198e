"""Instant Attention Mask with the source's text: where what goes is looked for, and what is added."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from latent_layers.attention.capture import Capture
from latent_layers.attention.capture_host import apply_capture, blocks_near, read_prompt
from latent_layers.masks.instant import Refinement, Settings
from latent_layers.masks.instant_words import Given, gone_and_added, led_by, phrases
from latent_layers.nodes.toy import ToyModel
from latent_layers.toyscenes.host import image_tensor
from latent_layers.toyscenes.scenes import random_scene

from .instant_runs import GRID, HEIGHT, WIDTH, condition, edit


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


@pytest.fixture(scope="module")
def scene():
    return random_scene(12, WIDTH, HEIGHT, (1, 1))


@pytest.fixture(scope="module")
def latent(toy, scene):
    with torch.inference_mode():
        return toy[2].encode(image_tensor(scene.image()))


def swapped(scene):
    """The scene's caption, and one with another colour."""
    colour = scene.objects[0].colour
    return scene.caption(), scene.caption().replace(colour, "purple" if colour != "purple" else "green")


def test_what_goes_is_looked_for_in_the_sources_words(toy, scene, latent):
    """The mask is of the negative conditioning, which is the source's text; nothing more is evaluated."""
    before, after = swapped(scene)
    prompt = read_prompt(toy[1], before, "test")
    other, seen = Capture(blocks_near(toy[0], latent.shape, "test"), prompt.length, "negative"), []

    def look(executor, *args, **kwargs):
        result = executor(*args, **kwargs)
        seen.append(other.take())
        return result

    model = toy[0].clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    found = edit(toy, latent, after, apply_capture(model, other, "test"), source_text=before)
    gone, added = gone_and_added(read_prompt(toy[1], after, "test"), prompt)
    assert added == () and found.evaluations == 3 * 2 * 2
    given = led_by(Given(), phrases(prompt, gone))
    refinement = Refinement(prompt, GRID, Settings(), given, guide=latent[0])
    for step, attention in enumerate(seen):
        mask, refined = refinement(attention.mean(0))
        assert (refined - found.maps[step]).abs().max() < 1e-4
    assert found.roles == {"source_text": refinement.roles} and torch.equal(mask, found.masks[-1])
    assert found.roles_text().startswith("source_text:\n")
    thing = torch.from_numpy(scene.visible_mask(0))[None] > 0.5
    assert ((found.hard > 0.5) & thing).sum() / ((found.hard > 0.5) | thing).sum() > 0.6


def test_guidance_leads_from_the_sources_text(toy, scene, latent):
    """Where no mask has acted yet, it is the same as with its conditioning as the negative one."""
    before, after = swapped(scene)
    predictions = []
    for options in ({"source_text": before}, {"negative": condition(toy, before)}, {}):
        model, found = toy[0].clone(), []

        def look(given, found=found):
            found.append(given["denoised"].clone())
            return given["denoised"]

        model.set_model_sampler_post_cfg_function(look)
        edit(toy, latent, after, model, seeds=1, **options)
        predictions.append(found[0])
    assert torch.equal(predictions[0], predictions[1]) and not torch.equal(predictions[0], predictions[2])


def test_what_is_added_is_looked_for_in_the_texts_words(toy, scene, latent):
    before = scene.caption()
    added = edit(toy, latent, f"{before}, a red star", source_text=before)
    assert set(added.roles) == {"text"}
    replaced, after = swapped(scene)
    both = edit(toy, latent, f"{after}, a red star", source_text=replaced)
    assert set(both.roles) == {"source_text", "text"}


def test_roles_that_the_user_gives_are_of_the_text_alone(toy, scene, latent):
    before, after = swapped(scene)
    found = edit(toy, latent, after, source_text=before, words="+background")
    assert set(found.roles) == {"text"}
    assert next(role for role in found.roles["text"] if role.word == "background").position == 1


def test_without_guidance_the_text_is_asked(toy, scene, latent):
    before, after = swapped(scene)
    found = edit(toy, latent, after, source_text=before, cfg=1.0, seeds=1)
    assert set(found.roles) == {"text"} and found.evaluations == 3
