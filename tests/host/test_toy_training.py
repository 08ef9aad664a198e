"""Training in small: a file that loads, a stopped run that goes on as if it had not stopped, schedules."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latent_layers.toyscenes import model as toy_model
from latent_layers.toyscenes import training, training_data
from latent_layers.toyscenes.mistakes import mistaken
from latent_layers.toyscenes.scenes import SHAPES, random_scene
from latent_layers.toyscenes.shape_hint import shape_shares
from latent_layers.toyscenes.training import Settings, Stage, loss_weight, mending_timesteps, noised, train
from latent_layers.toyscenes.training_data import Pictures, Vocabulary

# No warm-up and large steps, so that a lost optimiser state or a repeated picture shows in the weights.
TINY = Settings(
    steps=4, batch=2, learning_rate=4e-3, warm_up=1, decay=0.25, shape_hint_from=1, linear_pictures=8,
    refinement_steps=2, mending_steps=2, mending_rate=4e-3,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """Compiling takes longer than these few steps."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary()


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """Folder of a run of four steps at one go; its weights are `toy.safetensors`."""
    folder = tmp_path_factory.mktemp("through")
    train(TINY, folder, folder / "toy.safetensors")
    return folder


def test_a_run_writes_a_file_that_loads(through):
    path = through / "toy.safetensors"
    model, clip, vae = toy_model.load(path)
    assert {k: v for k, v in toy_model.settings(path).items() if k in asdict(TINY)} == asdict(TINY)
    assert model.model.diffusion_model is not None
    encoded: Any = clip.encode_from_tokens(clip.tokenize("a red star"))
    assert encoded.shape == (1, 77, toy_model.WIDTH)
    with torch.inference_mode():
        picture = torch.from_numpy(random_scene(0).image())[None]
        rebuilt = vae.decode(vae.encode(picture))
    assert -10 * math.log10((rebuilt - picture).square().mean()) > 22  # components of 8 pictures say a lot already
    assert path.stat().st_mode & 0o444 == 0o444  # readable by whom the pack is installed for
    assert not list(through.glob("*.part"))


def test_every_part_of_the_model_was_trained(through):
    state, mended = (torch.load(through / f"{name}.pt") for name in ("diffusion", "mending"))
    torch.manual_seed(TINY.seed)
    fresh = training.Trainee(len(Vocabulary())).state_dict()
    moved = {name.partition(".")[0] for name, tensor in state["model"].items() if not torch.equal(tensor, fresh[name])}
    assert moved == {"unet", "text", "tokens", "shapes"}
    still = [name for name, tensor in state["model"].items() if torch.equal(tensor, fresh[name])]
    # what silent branches hide at first is reached within a few steps
    assert len(still) < 0.02 * len(fresh), still
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    # the second stage goes on from the first one's average, not from new weights, and what it learned is in the file
    gone_on, anew = (
        sum(float((mended["ema"][k] - other[k]).abs().sum()) for k in fresh) for other in (state["ema"], fresh)
    )
    assert 1.0 < gone_on < anew
    written = load_file(through / "toy.safetensors")
    assert all((written[k].float() - mended["ema"][k]).abs().max() < 1e-3 for k in written if k.startswith("unet."))


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(through, tmp_path, capsys):
    shorter = replace(TINY, steps=2)
    # neither decays before its last step, so the first two steps of both are the same
    rates = [[Stage(s).learning_rate(i) for i in range(2)] for s in (shorter, TINY)]
    assert rates[0] == rates[1]
    train(shorter, tmp_path, tmp_path / "toy.safetensors")
    half = torch.load(tmp_path / "diffusion.pt")
    assert half["step"] == 2
    for name in ("mending", "refined"):  # a run that was stopped has not come so far
        (tmp_path / f"{name}.pt").unlink()
    capsys.readouterr()
    train(TINY, tmp_path, tmp_path / "toy.safetensors")
    assert "going on from step 2" in capsys.readouterr().out
    one, two = torch.load(through / "diffusion.pt"), torch.load(tmp_path / "diffusion.pt")
    assert one["step"] == two["step"] == 4 and two["seconds"] > half["seconds"]
    for part in ("model", "ema"):
        assert max((one[part][k] - two[part][k]).abs().max() for k in one[part]) < 1e-6
        assert max((half[part][k] - two[part][k]).abs().max() for k in two[part]) > 1e-3
    files = [load_file(folder / "toy.safetensors") for folder in (through, tmp_path)]
    assert max((files[0][k].float() - files[1][k].float()).abs().max() for k in files[0]) < 1e-3


def test_a_finished_run_is_not_trained_again(through, monkeypatch, tmp_path):
    monkeypatch.setattr(Pictures, "__getitem__", None)
    monkeypatch.setattr(training, "_pictures", None)
    monkeypatch.setattr(training_data, "mistaken", None)
    train(TINY, through, tmp_path / "again.safetensors")
    before, after = load_file(through / "toy.safetensors"), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_pictures_go_on_where_they_stopped(vocabulary):
    whole, rest = Pictures(10, vocabulary, 0.15), Pictures(10, vocabulary, 0.15, first=6)
    assert (len(whole), len(rest)) == (10, 4)
    for position in range(4):
        parts = rest[position]
        assert all(torch.equal(a, b) for a, b in zip(parts, whole[6 + position], strict=True))
        picture = parts[0]
    assert picture.shape == (3, 256, 256) and picture.dtype == torch.uint8


def test_pictures_are_of_the_training_stream_with_their_captions(vocabulary):
    pictures = Pictures(40, vocabulary, 0.0)
    for index in (0, 17):
        picture, seen, ids, shares = pictures[index]
        assert seen is picture
        scene = random_scene(index, stream="training")
        assert torch.equal(ids, vocabulary.encode(scene.caption()))
        shown = torch.from_numpy(scene.image()).movedim(2, 0)
        assert (picture.float() / 255 - shown).abs().max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(shares.numpy(), shape_shares(scene))


def test_the_asked_share_of_captions_is_empty(vocabulary):
    nothing = vocabulary.encode("")
    for share in (0.0, 0.15, 1.0):
        pictures = Pictures(100, vocabulary, share)
        empty = [torch.equal(pictures[i][2], nothing) for i in range(100)]
        assert abs(sum(empty) - 100 * share) <= 2
        assert all(abs(sum(empty[i : i + 20]) - 20 * share) <= 2 for i in range(0, 100, 20))  # evenly spread


def test_every_second_picture_of_the_second_stage_shows_a_mistake(vocabulary):
    pictures, scenes = Pictures(48, vocabulary, 1.0, with_mistakes=True), []
    nothing = vocabulary.encode("")
    for index in range(48):
        picture, seen, ids, _ = pictures[index]
        assert torch.equal(picture, seen) == torch.equal(ids, nothing) == (index % 2 == 0)
        if index % 2:
            scenes.append(random_scene(index, objects=(1, 4) if index % 4 == 1 else (2, 4), stream="training"))
            shown = torch.from_numpy(scenes[-1].image()).movedim(2, 0)
            assert (picture.float() / 255 - shown).abs().max() <= 0.5 / 255 + 1e-6  # the true one is as captioned
            assert torch.equal(ids, vocabulary.encode(scenes[-1].caption()))
    assert all(torch.equal(a, b) for a, b in zip(pictures[5], pictures[5], strict=True))  # the same in every run


@pytest.mark.parametrize("objects", [1, 2, 4])
def test_mistakes_are_of_what_the_caption_names(objects):
    kinds = set()
    for seed in range(60):
        scene = random_scene(seed, objects=(objects, objects), stream="training")
        wrong = mistaken(scene, np.random.default_rng(seed))
        named, shown = (sorted((o.colour, o.shape) for o in s.objects) for s in (scene, wrong))
        assert named != shown or len(scene.objects) > 1  # a second mistake may undo the first one of several
        assert wrong.background == scene.background
        kinds.add(len(wrong.objects) - len(scene.objects))
        assert wrong == mistaken(scene, np.random.default_rng(seed))
    assert {-1, 0, 1} <= kinds  # missing, another one, one too many


def test_the_target_of_a_mistake_leads_to_the_true_picture():
    torch.manual_seed(0)
    z, seen, noise = (torch.randn(3, 8, 5, 7, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64).view(-1, 1, 1, 1)
    x, target = noised(z, seen, noise, sigma)
    assert (x * (1 + sigma**2).sqrt() - seen - sigma * noise).abs().max() < 1e-12
    assert (x * (1 + sigma**2).sqrt() - sigma * target - z).abs().max() < 1e-12
    assert torch.equal(noised(z, z, noise, sigma)[1], noise)
    t = mending_timesteps(10_000, 1000, torch.Generator().manual_seed(0))
    assert t.min() == 400 and t.max() == 949


def test_the_vocabulary_covers_every_caption(vocabulary):
    for stream in ("scenes", "training"):
        for seed in range(300):
            caption = random_scene(seed, stream=stream).caption()
            ids = vocabulary.encode(caption)
            assert ids.shape == (77,) and (ids > 0).all(), caption
            assert ids.max() < len(vocabulary)
    assert (vocabulary.encode("a zebra") == 0).sum() == 1
    assert len(vocabulary) < 100


def test_the_learning_rate_warms_up_stays_and_falls():
    settings = Settings(steps=1000, learning_rate=4e-4, warm_up=100, decay=0.25)
    rates = [Stage(settings).learning_rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(4e-6) and rates[49] == pytest.approx(2e-4)
    assert all(rate == 4e-4 for rate in rates[99:751])
    assert all(a > b for a, b in zip(rates[751:], rates[752:], strict=False))
    assert rates[875] == pytest.approx(2e-4) and 0 < rates[-1] < 1e-7
    stage = Stage(replace(settings, mending_steps=500, mending_rate=1e-4), mending=True)
    rates = [stage.learning_rate(step) for step in range(500)]
    assert rates[49] == pytest.approx(5e-5, rel=0.03) and all(
        a > b for a, b in zip(rates[99:], rates[100:], strict=False)
    )
    assert rates[250] == pytest.approx(5e-5) and 0 < rates[-1] < 1e-7


def test_the_loss_weighs_as_v_prediction_up_to_sigma_5_and_levels_off():
    sigma = torch.tensor([0.0, 0.03, 1.0, 5.0, 14.6, 1e4])
    weights = loss_weight(sigma)
    assert weights[:3] == pytest.approx([1.0, 1.0009, 2 / 1.04], rel=1e-3)
    assert float(weights[3]) == pytest.approx(13.0) and float(weights[5]) == pytest.approx(25.0, rel=1e-3)
    assert (weights.diff() > 0).all()


def test_the_second_task_names_what_each_cell_shows():
    """The shares are the visible masks' averages over 16 by 16 pixels, and add up to one."""
    for seed in (3, 17, 40):
        scene = random_scene(seed, stream="training")
        shares = shape_shares(scene)
        assert np.abs(shares.sum(0) - 1).max() < 1e-5
        expected = np.zeros_like(shares)
        for index, thing in enumerate(scene.objects):
            cells = scene.visible_mask(index).reshape(16, 16, 16, 16).mean((1, 3))
            expected[SHAPES.index(thing.shape)] += cells
        # cells that two objects share in part differ: their overlap is not known at this size
        assert np.abs(shares - expected)[:-1].mean() < 2e-3


def test_the_second_task_teaches_the_unet_and_can_wait(vocabulary):
    """Its gradient reaches the encoder, and the loss is a plain cross-entropy of both levels."""
    torch.manual_seed(0)
    model: Any = training.Trainee(len(vocabulary))
    _, _, ids, shares = (part[None] for part in Pictures(1, vocabulary, 0.0)[0])
    _, hint = model(torch.randn(1, 8, 32, 32), torch.tensor([500.0]), ids, shares)
    uniform = 2 * math.log(len(SHAPES) + 1)
    assert 0.3 * uniform < float(hint) < 3 * uniform
    hint.backward()
    assert model.unet.input_blocks[0][0].weight.grad.abs().max() > 0
    assert model.unet.out[2].weight.grad is None  # nothing after the finer level is touched
