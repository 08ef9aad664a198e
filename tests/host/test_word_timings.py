"""Word Timings on the toy model and on narrow SD 1.5 and SDXL layouts, under the real host."""

from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from latent_layers.attention.capture import Capture
from latent_layers.attention.capture_host import apply_capture, blocks_near, read_prompt
from latent_layers.attention.host import apply_key_mask
from latent_layers.attention.timings import keyword_embedding, saliency, similarities, tau_of, word_embeddings
from latent_layers.attention.timings_host import Reading, seen_words, word_timings
from latent_layers.inversion.host import invert, model_family
from latent_layers.inversion.trajectory import Trajectory
from latent_layers.masks.instant import word_maps
from latent_layers.nodes.soft_edit import WordTimings
from latent_layers.nodes.toy import ToyModel
from latent_layers.toyscenes.host import image_tensor
from latent_layers.toyscenes.word_edits import word_edit

from . import layouts

SEED = 0  # a colour is changed
SIZE = (136, 200)  # pixels, (height, width): grids 17x25, 9x13 ...


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
def edit():
    return word_edit(SEED)


@pytest.fixture(scope="module")
def trajectory(toy, edit):
    with torch.inference_mode():
        return invert(toy[0], condition(toy[1], ""), toy[2].encode(edit.source_image), schedule(toy[0]))


def condition(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def schedule(model, steps=6):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def read(toy, edit, trajectory, **options) -> Reading:
    return word_timings(toy[0], toy[1], edit.caption, edit.prompt, trajectory, **options)


def plain(toy, trajectory):
    """What the model's own sampling makes of a trajectory's last step."""
    guider: Any = comfy.samplers.CFGGuider(toy[0])
    guider.inner_set_conds({"positive": condition(toy[1], "a star")})
    guider.set_cfg(1.0)
    x = trajectory.latents[-2]
    return guider.sample(
        torch.zeros_like(x), x, comfy.samplers.sampler_object("euler"), trajectory.sigmas[-2:], disable_pbar=True
    )


# The reading


def evaluated(toy, trajectory, text, block):
    """One evaluation at the last step: word maps by a capture of our own, E_V by a hook on the module itself."""
    model, clip, _ = toy
    prompt = read_prompt(clip, text, "test")
    blocks = blocks_near(model, trajectory.shape, "test", cells=32)
    side, number, depth = block
    assert side == "output" and number == max(block.number for block in blocks if block.side == "output")
    capture = Capture(blocks, prompt.length)
    unet: Any = model.model.diffusion_model
    transformer = next(m for m in unet.output_blocks[number] if isinstance(m, host_attention.SpatialTransformer))
    module: Any = transformer.transformer_blocks[depth]
    seen, attention = [], []

    def once(wrap, x, sigmas, extra_args, **_):
        wrap(x, sigmas[:1], **extra_args)
        attention.append(capture.take())
        return x

    guider: Any = comfy.samplers.CFGGuider(apply_capture(model, capture, "test"))
    guider.inner_set_conds({"positive": condition(clip, text)})
    guider.set_cfg(1.0)
    x = trajectory.latents[-2]
    hook = module.norm2.register_forward_hook(lambda _, given, out: seen.append(out.clone()))
    try:
        guider.sample(torch.zeros_like(x), x, comfy.samplers.KSAMPLER(once), trajectory.sigmas[-2:], disable_pbar=True)
    finally:
        hook.remove()
    maps = word_maps(attention[0][0], [word.tokens for word in prompt.words])
    return prompt, maps, seen[0].float().mT.unflatten(2, maps.shape[1:])


@pytest.mark.parametrize("shows", ["source", "edit"])
def test_against_the_equations_on_what_the_attention_was_given(toy, edit, trajectory, shows):
    reading = read(toy, edit, trajectory, lambda_tau=0.9, shows=shows)
    found = reading.timings
    prompt, maps, values = evaluated(toy, trajectory, edit.prompt, found.block)
    source, their_maps, their_values = evaluated(toy, trajectory, edit.caption, found.block)
    if shows == "source":
        values = their_values
    centre = values[0].flatten(1).mean(1)
    embeddings = word_embeddings(maps, values[0], 0.03, centre)
    new = [n for n, partner in enumerate(found.alignment.partners) if partner is None]
    assert [prompt.words[n].text for n in new] == ["an", *edit.changed]
    assert maps[new[0]].max() < 0.03 < maps[new[1]].max()  # so that "an" has no say in what the edit is about
    keyword = keyword_embedding(embeddings, new[1:])
    if shows == "source":
        phrase = [n for n, word in enumerate(source.words) if word.text in reading.looked_for]
        assert phrase and set(reading.looked_for) <= set(edit.named)
        keyword = keyword_embedding(word_embeddings(their_maps, values[0], 0.03, centre), phrase)
    else:
        assert reading.looked_for == tuple(edit.changed)
    alike = similarities(embeddings, keyword)
    assert torch.allclose(found.keyword, keyword, atol=1e-5)
    assert [t.similarity for t in found.timings] == pytest.approx(alike.tolist(), abs=1e-5)
    assert [t.tau for t in found.timings] == pytest.approx(tau_of(alike, new, 0.9).tolist(), abs=1e-5)
    marked = saliency(keyword, values, 1.0, centre)[0]
    if shows == "source":  # the words' own map counts as well, scaled
        place = their_maps[phrase].mean(0)
        marked = torch.maximum(marked, (place - place.min()) / (place.max() - place.min()))
        whole = read(toy, edit, trajectory, grow=0.0).timings.saliency
        assert torch.allclose(whole, marked, atol=1e-5)
        # 0.0625 of 16 cells is one: the largest of each cell and its neighbours
        marked = torch.nn.functional.max_pool2d(marked[None], 3, stride=1, padding=1)[0]
        assert (marked - whole).max() > 0.1
    assert torch.allclose(found.saliency, marked, atol=1e-5)
    assert found.centre is not None and torch.allclose(found.centre, centre, atol=1e-5)


def test_cost_and_what_it_leaves(toy, edit, trajectory):
    before = [latent.clone() for latent in trajectory.latents]
    reference = plain(toy, trajectory)
    one = read(toy, edit, trajectory)
    assert one.evaluations == 2 and read(toy, edit, trajectory, shows="edit").evaluations == 1
    assert one.timings.alignment.edit == read_prompt(toy[1], edit.prompt, "test")
    assert one.maps.shape == (len(one.timings.timings), *one.timings.saliency.shape)
    again = read(toy, edit, trajectory)
    assert again.timings.timings == one.timings.timings and torch.equal(again.maps, one.maps)
    assert all(torch.equal(a, b) for a, b in zip(before, trajectory.latents, strict=True))
    assert torch.equal(plain(toy, trajectory), reference)
    assert "attn2_patch" not in toy[0].model_options["transformer_options"].get("patches", {})


def test_words_of_the_edited_object_go_first_and_it_is_marked(toy):
    """On the scenes of four seeds, all of which name other things too."""
    own, others, inside, outside = [], [], [], []
    for seed in (0, 2, 4, 6):
        edit = word_edit(seed)
        picture = toy[2].encode(edit.source_image)
        trajectory = invert(toy[0], condition(toy[1], ""), picture, schedule(toy[0], 10))
        found = read(toy, edit, trajectory, grow=0.0).timings
        for kind, timing, partner in zip(edit.kinds(), found.timings, found.alignment.partners, strict=True):
            if partner is not None and kind in ("shape", "other", "place"):
                (own if kind == "shape" else others).append(timing.tau)
        marked = torch.nn.functional.interpolate(found.saliency[None, None], edit.mask.shape[-2:])[0, 0]
        inside.append(marked[edit.mask[0] > 0.5].mean().item())
        outside.append(marked[edit.mask[0] < 0.5].mean().item())
    assert sum(own) / len(own) < 0.7 * sum(others) / len(others)
    assert sum(inside) > 3 * sum(outside)


def test_correlation_spreads_what_cosine_does_not(toy, edit, trajectory):
    def spread(**options):
        similarity = [timing.similarity for timing in read(toy, edit, trajectory, **options).timings.timings]
        return max(similarity) - min(similarity)

    assert spread() > spread(correlation=False)


def test_options(toy, edit, trajectory):
    usual = read(toy, edit, trajectory).timings
    half = read(toy, edit, trajectory, lambda_tau=0.5).timings
    assert [t.tau for t in half.timings] == pytest.approx([t.tau / 2 for t in usual.timings])
    noisy = read(toy, edit, trajectory, percent=0.0).timings
    assert [t.similarity for t in noisy.timings] != [t.similarity for t in usual.timings]
    word = edit.named_after[1]
    named = read(toy, edit, trajectory, keywords=word).timings
    row = next(t for t in named.timings if t.word == word)
    assert row.tau == 0.0 and row.similarity == pytest.approx(1.0)
    assert not torch.equal(named.keyword, usual.keyword)
    own = read(toy, edit, trajectory, taus=f"{word} 0.75").timings
    assert {t.word: t.tau for t in own.timings} == {**{t.word: t.tau for t in usual.timings}, word: 0.75}
    named = read(toy, edit, trajectory, keywords="an, orange").timings
    assert not torch.equal(named.keyword, usual.keyword)  # faint words that the user names do count
    whole = read(toy, edit, trajectory, alpha_m=0.9)
    assert whole.faint == tuple(t.word for t in usual.timings)


def test_the_level_that_is_read(toy, edit, trajectory):
    model, seen = toy[0].clone(), []

    def look(executor, x, t, *args, **kwargs):
        seen.append((float(t[0]), x.clone()))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", look)
    sampling: Any = model.get_model_object("model_sampling")
    levels = trajectory.sigmas.tolist()
    for percent, index in ((1.0, -2), (0.0, 0), (0.5, None)):
        seen.clear()
        read((model, *toy[1:]), edit, trajectory, percent=percent)
        assert seen[0][0] == seen[1][0] and torch.equal(seen[0][1], seen[1][1])  # both texts on the same latent
        (level, x) = seen[0]
        wanted = float(sampling.percent_to_sigma(percent))
        if index is None:
            index = min(range(len(levels) - 1), key=lambda i: abs(torch.tensor(levels[i] / wanted).log()))
        assert level == pytest.approx(levels[index]) and len(seen) == 2
        assert torch.equal(x, trajectory.latents[index].to(x))


# Models, sizes and precisions


def noisy(model, height, width, batch=1):
    """A trajectory of two levels, of noise."""
    latents = [layouts.latents(batch, height, width, seed) for seed in (3, 4, 5)]
    return Trajectory([2.0, 0.5, 0.0], latents, model_family(model, "test"))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("size", "dtype"),  # latent pixels; 520x776 is the second
    [((16, 16), torch.float32), ((65, 97), torch.float32), ((16, 16), torch.bfloat16)],
)
def test_layouts_sizes_and_precisions(name, size, dtype):
    model = layouts.narrow(name, dtype)
    found = word_timings(model, layouts.OneTextEncoder(name), "a blue star", "a red star, shiny", noisy(model, *size))
    timings = found.timings
    # 512 pixels and less: the finest grid; 520x776: 65x97 halves to 33x49, which SDXL's finest is anyway
    grid = (8, 8) if name == "sdxl" else (16, 16)
    grid = grid if size == (16, 16) else (33, 49)
    assert timings.saliency.shape == grid and found.maps.shape == (4, *grid)
    up = [block for block in blocks_near(model, (1, 4, *size), "test", 32) if block.side == "output"]
    assert timings.block == max(block.key for block in up)
    assert timings.keyword.dtype == torch.float32 and timings.keyword.norm() == pytest.approx(1.0, abs=1e-5)
    assert all(-1 <= t.similarity <= 1 and 0 <= t.tau <= 1 for t in timings.timings)
    assert timings.token_taus().shape == (77,)


# What cannot be read


def test_errors_come_before_any_work(toy, edit, trajectory):
    model = toy[0].clone()

    def never(executor, *args, **kwargs):
        raise AssertionError("the model was evaluated")

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", never)

    def refused(message, **options):
        given = {"source_text": "a blue star", "edit_text": "a red star", "clip": toy[1], **options}
        with pytest.raises(ValueError, match=f"^Word Timings: {message}"):
            word_timings(model, trajectory=given.pop("trajectory", trajectory), **given)

    refused("source_text is empty", source_text=" ")
    refused("edit_text is empty", edit_text="")
    refused("edit_text: text is an empty prompt", edit_text=", .")
    refused("edit_text has the same words", edit_text="a, blue star!")
    refused("edit_text .* shares no word with source_text", edit_text="red moon")
    refused("edit_text only leaves out blue.*name in keywords .* of a, star", edit_text="a star", shows="edit")
    refused("shows is 'both'; use source or edit", shows="both")
    refused("keywords: words has 'moon', but the prompt has the words a, red, star", keywords="moon")
    refused("taus has the line 'blue 0.3'", taus="blue 0.3")
    refused("lambda_tau is -1", lambda_tau=-1.0)
    refused("grow is 0.3; use a number from 0 to 0.25", grow=0.3)
    refused("alpha_m is nan", alpha_m=float("nan"))
    refused("percent is 1.5", percent=1.5)
    refused("clip is empty", clip=None)
    refused("trajectory has no noise level above 0", trajectory=trajectory.part(0.0))
    batch = Trajectory(trajectory.sigmas, [x.repeat(2, 1, 1, 1) for x in trajectory.latents], trajectory.family)
    refused("trajectory holds 2 pictures.*one", trajectory=batch)
    other = Trajectory([2.0, 0.5], [torch.zeros(1, 4, 8, 8)] * 2, model_family(layouts.narrow("sdxl"), "test"))
    refused("trajectory: the model is of another family", trajectory=other)


def test_a_word_that_is_left_out_alone_is_looked_for_or_needs_a_keyword(toy, edit, trajectory):
    texts = ("a blue star", "a star")
    found = word_timings(toy[0], toy[1], *texts, trajectory, keywords="star", shows="edit")
    assert [t.tau == 0.0 for t in found.timings.timings] == [False, True] and found.looked_for == ("star",)
    found = word_timings(toy[0], toy[1], *texts, trajectory)
    assert set(found.looked_for) <= {"blue", "star"} and found.evaluations == 2
    assert "looked for: " in found.text()


def test_what_is_only_added_is_looked_for_by_its_own_words(toy, trajectory):
    found = word_timings(toy[0], toy[1], "a star", "a star and a ring", trajectory)
    assert found.evaluations == 1 and "ring" in found.looked_for and "star" not in found.looked_for


def test_what_is_added_beside_a_word_that_goes_is_looked_for_too(toy, trajectory):
    gone = word_timings(toy[0], toy[1], "a star on a background", "a ring on a background", trajectory)
    both = word_timings(toy[0], toy[1], "a star on a background", "a ring on a striped background", trajectory)
    assert gone.looked_for == ("star",) and {"star", "striped"} <= set(both.looked_for)
    assert both.evaluations == 2 and (both.timings.saliency - gone.timings.saliency).max() > 0.2


def test_seen_words():
    """The clearest of the phrase leads, what looks elsewhere stays out, and each thing that goes has its own phrase."""
    prompt = read_prompt(ToyModel.execute().args[1], "a small red star and a blue ring", "test")
    here, there = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    here[2:5, 2:5] += 1.0
    there[5:7, 5:7] += 1.0
    faint = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    maps = torch.stack([faint, faint, here, here * 0.5, faint, faint, there, there])
    assert [prompt.words[n].text for n in seen_words(prompt, (1,), maps)] == ["red", "star"]
    assert [prompt.words[n].text for n in seen_words(prompt, (2, 6), maps)] == ["red", "star", "blue", "ring"]


def test_an_interrupted_run_leaves_nothing(toy, edit, trajectory):
    reference = read(toy, edit, trajectory).timings.timings
    model = toy[0].clone()

    def interrupt(executor, *args, **kwargs):
        executor(*args, **kwargs)
        raise comfy.model_management.InterruptProcessingException

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        read((model, *toy[1:]), edit, trajectory)
    assert read(toy, edit, trajectory).timings.timings == reference


def test_other_patches_at_the_same_point_are_read_as_well(toy, edit, trajectory):
    """E_V is what the attention gets: after the patches of others that were there before."""
    model = toy[0].clone()
    model.set_model_attn2_patch(lambda n, context, value, extra: (n * 2, context, value))
    doubled, usual = read((model, *toy[1:]), edit, trajectory), read(toy, edit, trajectory)
    assert [p.timings.timings for p in (doubled, usual)]
    assert not torch.equal(doubled.timings.keyword, usual.timings.keyword)
    assert doubled.timings.centre is not None


def test_the_pass_of_a_guidance_is_not_read(toy, edit, trajectory):
    """Key-masked guidance evaluates the positive conditioning a second time, with other hidden states."""
    guided = apply_key_mask(toy[0], layouts.box(256, 256, 0.2, 0.8, 0.2, 0.8), guidance=3.0, end=1.0)
    found, usual = read((guided, *toy[1:]), edit, trajectory), read(toy, edit, trajectory)
    assert found.evaluations == 4
    assert found.timings.timings == usual.timings.timings and torch.equal(found.timings.keyword, usual.timings.keyword)


def test_a_patch_that_merges_tokens_is_named(toy, edit, trajectory):
    model = toy[0].clone()
    model.set_model_attn2_patch(lambda n, context, value, extra: (n[:, ::2], context, value))
    model.set_model_attn2_output_patch(lambda n, extra: n.repeat_interleave(2, 1)[:, : n.shape[1] * 2])
    with pytest.raises(RuntimeError, match="take .*patch"):
        read((model, *toy[1:]), edit, trajectory)


# The node


def test_node(toy, edit, trajectory):
    result = WordTimings.execute(toy[0], toy[1], edit.caption, edit.prompt, trajectory, 1.0, 0.03)
    timings, table, alignment, strip = result.args
    words = [timing.word for timing in timings.timings]
    assert [line.split()[0] for line in table.splitlines()] == words
    assert timings.with_table(table, "test").table() == table
    assert f"{edit.changed[0]}  " in alignment and "new" in alignment
    assert strip.ndim == 4 and strip.shape[0] == 1 and strip.shape[-1] == 3
    assert strip.dtype == torch.float32 and 0 <= strip.min() < 0.2 and strip.max() <= 1
    assert result.ui is not None
    schema = WordTimings.define_schema()
    assert schema.node_id == "LatentLayersWordTimings"
    assert [one.get_io_type() for one in schema.outputs] == [
        "LATENT_LAYERS_WORD_TIMINGS", "STRING", "STRING", "IMAGE"
    ]  # fmt: skip


def test_a_picture_of_the_edit_prompt_can_be_read_too(toy, edit):
    """The article's own way: the last step of a pass with the edit prompt."""
    picture = toy[2].encode(image_tensor(edit.truth.image()))
    made = invert(toy[0], condition(toy[1], ""), picture, schedule(toy[0]))
    found = read(toy, edit, made, shows="edit")
    assert found.evaluations == 1 and found.looked_for == tuple(edit.changed)
