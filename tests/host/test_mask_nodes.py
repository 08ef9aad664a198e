"""Soft Mask and Change Threshold as the host runs them, beside its own nodes and Keep Source."""

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_compositing import SplitImageWithAlpha
from comfy_extras.nodes_mask import ImageCompositeMasked

from latent_layers.attention.host import apply_keep_source
from latent_layers.inversion.trajectory import Trajectory
from latent_layers.masks.grid import cover
from latent_layers.nodes.layer_file import LoadLayers
from latent_layers.nodes.masks import ChangeThreshold, LookalikeMask, SoftMask
from latent_layers.nodes.sam import LoadSegmentAnything
from latent_layers.toyscenes.host import draw_scene
from latent_layers.toyscenes.pipeline import Toy
from latent_layers.toyscenes.removal import removal_set

from . import layouts


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def scene():
    return draw_scene(7, 256, 256, 2, 1)


def execute(node, **given):
    """As a node does that was just dropped into a graph."""
    defaults = {
        entry.id: entry.default for entry in node.define_schema().inputs if getattr(entry, "default", None) is not None
    }
    return node.execute(**{**defaults, **given}).args


def test_lookalike_mask_finds_the_twins_of_what_is_removed():
    toy = Toy()
    data = removal_set(toy, [12])  # three black squares, one of which goes
    (found,) = execute(LookalikeMask, latent={"samples": data.latents}, mask=data.masks)
    assert found.shape == data.masks.shape and not (found * data.masks).any()
    solid = data.others > 0.5
    assert found[solid].mean() > 0.6 and found[~solid].mean() < 0.05
    shadow = layouts.box(256, 256, 0.0, 0.2, 0.0, 0.2)
    (more,) = execute(LookalikeMask, latent={"samples": data.latents}, mask=data.masks, artifact_mask=shadow)
    assert torch.equal(more, torch.maximum(found, shadow))
    assert not execute(LookalikeMask, latent={"samples": data.latents}, mask=data.masks, likeness=0.0)[0].any()


def test_lookalike_mask_refuses_what_does_not_fit():
    latent, mask = {"samples": torch.zeros(2, 8, 32, 32)}, layouts.box(256, 256, 0.2, 0.5, 0.2, 0.5)
    for given, text in (
        (torch.zeros(1, 256, 256), "mask is empty"),
        (torch.ones(1, 256, 256), "mask is full"),
        (mask[:, :, :128], "mask"),
        (mask.repeat(3, 1, 1), "mask has a batch of 3 for 2"),
    ):
        with pytest.raises(ValueError, match=f"^Lookalike Mask: {text}"):
            execute(LookalikeMask, latent=latent, mask=given)


def test_soft_mask_as_it_is_dropped_into_a_graph(scene):
    (soft,) = execute(SoftMask, mask=scene.mask)
    assert soft.shape == scene.mask.shape and soft.dtype == torch.float32
    assert soft[scene.mask == 1].min() > 0.99 and soft.min() == 0 and soft.max() <= 1
    assert ((soft > 0.2) & (soft < 0.8)).any()


def test_soft_mask_passes_every_input_on(scene):
    (plain,) = execute(SoftMask, mask=scene.mask)
    for name, value in {
        "precise_weight": 1.0,
        "box_weight": 1.0,
        "radius": 0.1,
        "blur": 0.01,
    }.items():
        assert not torch.equal(execute(SoftMask, mask=scene.mask, **{name: value})[0], plain), name
    boxes = [
        execute(SoftMask, mask=scene.mask, spread_weight=0.0, box_weight=1.0, padding=p)[0].sum() for p in (0.0, 9.0)
    ]
    assert boxes[1] > boxes[0]


def test_keep_source_keeps_what_a_soft_mask_leaves_at_0():
    model, sizes = layouts.narrow("sd15"), (16, 24)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    clean = layouts.latents(1, *sizes, seed=20)
    source = Trajectory(sigmas, [clean + s * layouts.latents(1, *sizes, seed=30) for s in sigmas.tolist()])
    (soft,) = execute(SoftMask, mask=layouts.box(128, 192, 0.4, 0.6, 0.4, 0.6))
    patched = apply_keep_source(model, source, soft)
    result = comfy.samplers.sample(
        patched, layouts.latents(1, *sizes, seed=5), layouts.conditioning("sd15"), layouts.conditioning("sd15", seed=9),
        1.0, model.load_device, comfy.samplers.sampler_object("euler"), sigmas, patched.model_options,
        latent_image=layouts.latents(1, *sizes), disable_pbar=True, seed=1,
    )  # fmt: skip
    off = (result - model.model.process_latent_out(clean.clone())).abs().amax(1)
    strength = cover(soft, *sizes)
    kept, whole = strength == 0, strength > 0.99
    between = ~kept & ~whole
    assert kept.any() and between.any() and whole.any()
    assert off[kept].max() == 0.0
    assert off[whole].mean() > off[between].mean() > 0


def test_turns_through_the_autoencoder_drift_only_where_they_edit(scene):
    toy = Toy()
    box = torch.zeros(1, 256, 256)
    box[:, 180:220, 20:60] = 1.0
    picture = scene.image
    for colour in (0.1, 0.9):
        # each turn paints the box, and encodes and decodes everything
        before = picture
        painted = ImageCompositeMasked.execute(before, torch.full_like(before, colour), 0, 0, True, box).args[0]
        decoded = toy.decode(toy.encode(painted))
        picture, mask, _ = execute(ChangeThreshold, previous=before, new=decoded)
        kept, taken = mask == 0, mask == 1
        assert (kept | taken).all() and kept.double().mean() > 0.5 and taken[:, 185:215, 25:55].all()
        assert torch.equal(picture[kept], before[kept]) and torch.equal(picture[taken], decoded[taken])
        assert (decoded - before)[kept].abs().max() > 0
    confined, changed, _ = execute(ChangeThreshold, previous=scene.image, new=decoded, mask=box)
    assert torch.equal(confined[box == 0], scene.image[box == 0]) and not changed[box == 0].any()


def test_change_threshold_passes_every_input_on(scene):
    new = scene.truth + 0.02
    image, mask, heat = execute(ChangeThreshold, previous=scene.image, new=new, alpha=0.1)
    assert image.shape == heat.shape == scene.image.shape and mask.shape == scene.image.shape[:3]
    assert torch.equal(image[mask == 0], scene.image[mask == 0]) and torch.equal(image[mask == 1], new[mask == 1])
    assert 0 < mask.mean() < 0.5 and mask[scene.mask == 1].double().mean() > 0.9
    red, _, blue = heat.unbind(-1)
    assert (red >= blue)[mask == 1].all() and (blue > red)[mask == 0].all()
    for name, value in {"alpha": 0.5, "low_pass": 6.0, "soft_edge": 5.0, "mask": scene.mask}.items():
        other = execute(ChangeThreshold, previous=scene.image, new=new, **{"alpha": 0.1, name: value})
        assert not torch.equal(other[1], mask), name
    assert not torch.equal(execute(ChangeThreshold, previous=scene.image, new=new, alpha=0.5)[2], heat)


def test_the_remedy_for_rgba_is_one(scene):
    layered = torch.cat([scene.image, torch.ones(1, 256, 256, 1)], dim=-1)
    with pytest.raises(
        ValueError, match=r"new has 4 channels \(RGBA\); take the alpha off with Split Image with Alpha"
    ):
        execute(ChangeThreshold, previous=scene.image, new=layered)
    assert SplitImageWithAlpha.define_schema().display_name == "Split Image with Alpha"
    image = execute(ChangeThreshold, previous=scene.image, new=SplitImageWithAlpha.execute(layered).args[0])[0]
    assert torch.equal(image, scene.image)


def test_a_file_that_another_node_will_name_is_left_to_loading():
    """The host asks with None where the input is linked."""
    assert LoadSegmentAnything.validate_inputs(None) is True
    assert LoadLayers.validate_inputs(None) is True and LoadLayers.fingerprint_inputs(None) == ""
    assert "nothing.zip" in str(LoadLayers.validate_inputs("nothing.zip"))
