"""The toy checkpoint, as the host runs it: its parts, its file, and the host's own nodes with it."""

import importlib
import sys
from dataclasses import asdict
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.supported_models
import comfy.supported_models_base
import pytest
import torch
from safetensors import safe_open

from latent_layers.nodes.toy import ToyModel
from latent_layers.toyscenes import bench_model
from latent_layers.toyscenes import model as toy_model
from latent_layers.toyscenes.host import image_tensor
from latent_layers.toyscenes.measure import psnr
from latent_layers.toyscenes.pipeline import Toy
from latent_layers.toyscenes.scenes import COLOURS, SHAPES, random_scene
from latent_layers.toyscenes.training import Settings, Trainee
from latent_layers.toyscenes.training_data import Vocabulary

# by name, since a type checker takes the pack's own folder for the host's module
host_nodes: Any = importlib.import_module("nodes")


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def registry() -> dict:
    return snapshot()


@pytest.fixture(scope="module")
def toy(registry):
    """MODEL, CLIP, VAE as the node gives them; without its weights the pack is broken, so nothing is skipped."""
    return ToyModel.execute().args


@pytest.fixture(scope="module")
def clip(toy):
    return toy[1]


@pytest.fixture(scope="module")
def vae(toy):
    return toy[2]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    with safe_open(toy_model.WEIGHTS, "pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def trainee(tensors) -> Trainee:
    """The module that was trained, with the file's weights."""
    special = ("text.token_rows", "text.unknown_row", "text.token_ids")
    weights = {k: v for k, v in tensors.items() if not k.startswith("vae.") and k not in special}
    weights["tokens.weight"] = torch.cat([tensors["text.unknown_row"], tensors["text.token_rows"]])
    trainee = Trainee(len(Vocabulary()))
    missing, unexpected = trainee.load_state_dict(weights, strict=False)
    # the heads of the second task are not part of the file
    assert not unexpected and all(name.startswith("shapes.") for name in missing)
    return trainee.requires_grad_(False).eval()


def snapshot() -> dict:
    """What loaders consult, and the classes that ours derive from."""
    base, latents = comfy.supported_models_base.BASE, comfy.latent_formats.LatentFormat
    return {
        "models": list(comfy.supported_models.models),
        "base": dict(vars(base)),
        "latents": dict(vars(latents)),
        "formats": {k: v for k, v in vars(comfy.latent_formats).items() if isinstance(v, type)},
    }


def encode(clip, text: str) -> torch.Tensor:
    return host_nodes.CLIPTextEncode().encode(clip, text)[0][0][0]


def scenes(width: int, height: int, count: int, first: int = 0) -> torch.Tensor:
    return torch.cat([image_tensor(random_scene(first + i, width, height).image()) for i in range(count)])


# the file


def test_the_weights_file_is_small_and_says_how_it_was_trained():
    assert toy_model.WEIGHTS.stat().st_size <= 24 * 2**20
    training = toy_model.settings()
    assert set(training) == set(asdict(Settings())) | {"seconds", "machine"}
    assert training["steps"] >= 1000 and training["seconds"] > 60 and training["machine"]


def test_a_missing_weights_file_is_named_with_its_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Toy Model: weights file toy\.safetensors is missing.*dev\.py train"):
        toy_model.load(tmp_path / "toy.safetensors")


def test_the_file_knows_the_vocabulary_of_the_captions(tensors):
    vocabulary = Vocabulary()
    assert tensors["text.token_ids"].int().tolist() == vocabulary.ids
    assert tensors["text.token_rows"].shape == (len(vocabulary.ids), toy_model.WIDTH)


def test_all_weights_are_finite(tensors):
    assert all(tensor.isfinite().all() for tensor in tensors.values())


# what loading leaves of the host


def test_loading_touches_nothing_of_the_hosts_registry(registry, toy):
    assert snapshot() == registry
    ours = [
        f"{name}.{key}"
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in ("comfy", "comfy_extras", "nodes", "folder_paths")
        for key, value in list(vars(module).items())
        if str(getattr(value, "__module__", "")).startswith("latent_layers")
    ]
    assert ours == []


def test_two_loads_share_nothing(toy):
    again = toy_model.load()
    assert again[0].model is not toy[0].model
    assert again[2].first_stage_model is not toy[2].first_stage_model
    x = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again[2].encode(x), toy[2].encode(x))


# autoencoder


@pytest.mark.parametrize("width, height, batch", [(256, 256, 1), (384, 256, 1), (256, 448, 1), (256, 256, 2)])
def test_the_autoencoder_returns_what_it_was_given(vae, width, height, batch):
    pictures = scenes(width, height, batch, first=10)
    latent = host_nodes.VAEEncode().encode(vae, pictures)[0]
    assert latent["samples"].shape == (batch, 8, height // 8, width // 8)
    decoded = host_nodes.VAEDecode().decode(vae, latent)[0]
    assert decoded.shape == pictures.shape and decoded.min() >= 0 and decoded.max() <= 1
    for picture, truth in zip(decoded.numpy(), pictures.numpy(), strict=True):
        assert psnr(picture, truth) >= 28


def test_a_batch_is_its_pictures(vae):
    pictures = scenes(256, 256, 2)
    latents = vae.encode(pictures)
    assert torch.allclose(latents[1:], vae.encode(pictures[1:]), atol=1e-5)
    assert torch.allclose(vae.decode(latents)[1:], vae.decode(latents[1:]), atol=1e-5)


def test_latents_are_of_about_unit_variance(vae):
    latents = vae.encode(scenes(256, 256, 6, first=20))
    assert 0.6 < latents.square().mean() < 1.5


def test_the_autoencoder_calls_itself_what_it_is(vae):
    assert vae.latent_channels == 8 and vae.output_channels == 3
    assert vae.spacial_compression_encode() == vae.spacial_compression_decode() == 8


def test_tiles_make_the_same_picture(vae):
    pictures = scenes(256, 256, 1)
    latents = vae.encode(pictures)
    assert torch.allclose(vae.encode_tiled(pictures, tile_x=128, tile_y=128, overlap=32), latents, atol=1e-4)
    tiled = vae.decode_tiled(latents, tile_x=16, tile_y=16, overlap=4)
    # within three latents of a tile's border the touch-up lacks some neighbours
    assert psnr(tiled[0].numpy(), vae.decode(latents)[0].numpy()) > 35


def test_odd_sizes_are_cropped_as_the_host_does(vae):
    picture = torch.rand(1, 67, 93, 3, generator=torch.Generator().manual_seed(0))
    assert vae.encode(picture).shape == (1, 8, 8, 11)


# text encoder


@pytest.mark.parametrize(
    "text", ["", "a red star on a plain background", random_scene(7).caption(), "two purple zebras, a blue ring"]
)
def test_the_text_encoder_is_the_one_that_was_trained(clip, trainee, text):
    expected = trainee.context(Vocabulary().encode(text)[None])
    got = encode(clip, text)
    assert got.shape == (1, 77, toy_model.WIDTH)
    assert (got - expected).abs().max() < 1e-3


def test_unknown_words_are_all_the_same_and_none_of_the_known(clip):
    zebra, tiger, star = (encode(clip, f"a red {word} on a plain background") for word in ("zebra", "tiger", "star"))
    assert torch.equal(zebra, tiger) and zebra.isfinite().all()
    assert (zebra - star).abs().max() > 0.05
    assert encode(clip, "Ein völlig unbekannter Satz … 漢字 🦓 " * 30).isfinite().all()


def test_known_words_differ(clip):
    for words, sentence in [(COLOURS, "a {} circle on a plain background"), (SHAPES, "a red {} on a plain background")]:
        embeddings = torch.cat([encode(clip, sentence.format(word)) for word in words])
        distances = (embeddings[:, None] - embeddings[None]).abs().amax((2, 3))
        assert (distances + torch.eye(len(embeddings))).min() > 0.05


def test_weights_of_words_work_as_the_hosts(clip):
    plain, empty = encode(clip, "a red star"), encode(clip, "")
    weighted = encode(clip, "a (red:1.3) star")
    expected = plain.clone()
    expected[:, 2] = empty[:, 2] + 1.3 * (plain[:, 2] - empty[:, 2])  # after the start token and "a"
    assert (weighted - expected).abs().max() < 1e-4
    assert (weighted - plain).abs().max() > 0.01
    assert torch.allclose(encode(clip, "a (red:1.0) star"), plain, atol=1e-6)


# UNet


def sample(model, positive, latent: torch.Tensor, steps: int = 2) -> torch.Tensor:
    return host_nodes.KSampler().sample(
        model, 5, steps, 3.0, "euler", "normal", positive, positive, {"samples": latent}, denoise=1.0
    )[0]["samples"]


def test_self_and_cross_attention_at_16_and_8(toy, clip):
    model, seen = toy[0].clone(), {"attn1": [], "attn2": []}

    def record(name):
        def patch(q, k, v, extra_options):
            seen[name].append((tuple(extra_options["activations_shape"][-2:]), q.shape[1], k.shape[1]))
            return q, k, v

        return patch

    model.set_model_attn1_patch(record("attn1"))
    model.set_model_attn2_patch(record("attn2"))
    sample(model, host_nodes.CLIPTextEncode().encode(clip, "a red star")[0], torch.zeros(1, 8, 32, 32), steps=1)
    for side in (16, 8):
        assert ((side, side), side * side, side * side) in seen["attn1"]
        assert ((side, side), side * side, 77) in seen["attn2"]
    assert {shape for shape, *_ in seen["attn1"]} == {(16, 16), (8, 8)}


@pytest.mark.parametrize("height, width", [(32, 32), (40, 24)])
def test_the_model_predicts_the_noise_that_it_was_trained_to(toy, trainee, height, width):
    """Denoised by the host equals x − σ·ε of the trained module at SD's noise schedule."""
    ids = torch.stack([Vocabulary().encode(text) for text in ("a red star", "")])
    generator = torch.Generator().manual_seed(0)
    model = toy[0]
    comfy.model_management.load_models_gpu([model])
    device = model.load_device
    sampling = model.get_model_object("model_sampling")
    context = trainee.context(ids)
    for step in (0, 300, 700, 999):
        sigma = sampling.sigmas[step].cpu()
        x = torch.randn(2, 8, height, width, generator=generator) * (1 + sigma**2).sqrt()
        noise = trainee.unet(x / (1 + sigma**2).sqrt(), torch.full((2,), float(step)), context)
        got = model.model.apply_model(x.to(device), sigma.expand(2).to(device), c_crossattn=context.to(device))
        expected = x - sigma * noise
        assert (got.cpu() - expected).abs().max() < 1e-3 * max(1.0, float(sigma))
    assert float(sampling.sigma_max) == pytest.approx(14.6146, abs=1e-3)
    assert float(sampling.sigma_min) == pytest.approx(0.0292, abs=1e-3)


def test_the_model_knows_its_data(toy, clip, vae):
    """ε of a half-noised scene is predicted far better than by the constant 0."""
    model = toy[0]
    comfy.model_management.load_models_gpu([model])
    sampling = model.get_model_object("model_sampling")
    pictures = scenes(256, 256, 2, first=40)
    z = vae.encode(pictures)
    texts = [random_scene(40 + i).caption() for i in range(2)]
    context = torch.cat([encode(clip, text) for text in texts]).to(model.load_device)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    for step, least in [(500, 0.4), (200, 0.9)]:
        sigma = sampling.sigmas[step].cpu()
        x = (z + sigma * noise).to(model.load_device)
        denoised = model.model.apply_model(x, sigma.expand(2).to(x), c_crossattn=context).cpu()
        assert (denoised - z).square().mean() < 0.35 * (z - z.mean((2, 3), keepdim=True)).square().mean(), step
        assert ((x.cpu() - denoised) / sigma - noise).square().mean() < least


def test_the_hosts_own_nodes_run_with_it(toy):
    model, clip, vae = toy
    positive = host_nodes.CLIPTextEncode().encode(clip, random_scene(0, 256, 448).caption())[0]
    negative = host_nodes.CLIPTextEncode().encode(clip, "")[0]
    latent = host_nodes.VAEEncode().encode(vae, scenes(256, 448, 1))[0]
    assert latent["samples"].shape == (1, 8, 56, 32)

    def run(start, seed=1, denoise=1.0):
        node = host_nodes.KSampler()
        out = node.sample(model, seed, 2, 3.0, "euler", "normal", positive, negative, start, denoise)[0]
        return host_nodes.VAEDecode().decode(vae, out)[0]

    picture = run(latent)
    assert picture.shape == (1, 448, 256, 3) and picture.isfinite().all() and picture.std() > 0.02
    assert torch.equal(run(latent), picture)
    assert not torch.equal(run(latent, seed=2), picture)
    near = psnr(run(latent, denoise=0.1)[0].numpy(), scenes(256, 448, 1)[0].numpy())
    assert near > 20 > psnr(picture[0].numpy(), scenes(256, 448, 1)[0].numpy())
    # the host's empty latents have four channels, which it widens to the model's
    empty = host_nodes.EmptyLatentImage().generate(256, 448, 1)[0]
    assert run(empty).shape == (1, 448, 256, 3)


def test_the_benchmarks_pictures_are_those_of_the_hosts_sampler(toy, monkeypatch):
    """Each of its own seed, whatever else is drawn beside it, also with a sampler that adds noise on the way."""
    monkeypatch.setattr(bench_model, "STEPS", 3)
    model, clip, vae = toy
    captions, seeds = ["a red star on a plain background", "two blue rings on a dotted background"], [3, 8]
    empty = host_nodes.EmptyLatentImage().generate(256, 256, 1)[0]
    conditions = [host_nodes.CLIPTextEncode().encode(clip, text)[0] for text in [*captions, ""]]
    pictures = bench_model.generate(Toy(), captions, seeds)
    for picture, positive, seed in zip(pictures, conditions, seeds, strict=False):
        out = host_nodes.KSampler().sample(
            model, seed, 3, 4.0, "dpmpp_2s_ancestral", "normal", positive, conditions[-1], empty, 1.0
        )[0]
        assert (host_nodes.VAEDecode().decode(vae, out)[0][0] - picture).abs().max() < 1e-4
    assert (pictures[0] - pictures[1]).abs().max() > 0.1
