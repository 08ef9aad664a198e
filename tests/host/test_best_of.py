"""Best Of inside the real host: CLIP embeddings of its own models, against plain float64 transformers."""

import comfy.clip_model
import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import pytest
import torch
import torch.nn.functional as F
from comfy_extras.nodes_images import ImageFromBatch
from comfy_extras.nodes_post_processing import BatchImagesNode

from latent_layers.masks.candidates import agreement, direction, prepare
from latent_layers.masks.candidates_host import picture_embeddings, text_embedding, text_encoders, text_scores
from latent_layers.nodes.candidates import BestOf
from latent_layers.toyscenes import model as toy

from . import layouts

SMALL = {"num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
WIDTHS = {"clip_l": 24, "clip_g": 40}
PATCH, SIDE = 8, 32
TEXT, SOURCE_TEXT = "a green ball on a striped table", "a red ball on a striped table"


def small_clip(kind: str) -> comfy.sd.CLIP:
    """The host's text encoders of SD 1.x or SDXL, narrow, with random weights."""
    tokenizer, model = {
        "sd1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }[kind]
    sizes = {f"{name}_model_config": {**SMALL, "hidden_size": width} for name, width in WIDTHS.items()}
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    for seed, name in enumerate(text_encoders(clip)):
        layouts.fill(getattr(clip.cond_stage_model, name).transformer, seed)
    return clip


def small_vision(width: int, seed: int = 5, **changes) -> comfy.clip_vision.ClipVisionModel:
    """The host's vision model, narrow, with random weights."""
    config = {
        **SMALL,
        "hidden_size": 32,
        "num_channels": 3,
        "patch_size": PATCH,
        "image_size": SIDE,
        "projection_dim": width,
        "hidden_act": "quick_gelu",
        "model_type": "clip_vision_model",
        **changes,
    }
    vision = comfy.clip_vision.ClipVisionModel(config)
    layouts.fill(vision.model, seed)
    with torch.no_grad():
        embedding = vision.model.vision_model.embeddings.class_embedding
        if embedding is not None:
            embedding.copy_(torch.randn(embedding.shape, generator=torch.Generator().manual_seed(seed)))
    return vision


@pytest.fixture(scope="module")
def clips():
    return {kind: small_clip(kind) for kind in ("sd1", "sdxl")}


@pytest.fixture(scope="module")
def visions():
    return {width: small_vision(width) for width in WIDTHS.values()}


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


def pictures(batch: int = 3, height: int = SIDE, width: int = SIDE, seed: int = 0) -> torch.Tensor:
    """Random pictures in whole steps of 1/255, as the host rounds them for CLIP."""
    values = torch.randint(0, 256, (batch, height, width, 3), generator=torch.Generator().manual_seed(seed))
    return values.float() / 255


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def plain_transformer(x: torch.Tensor, weights: dict, activation, causal: bool) -> torch.Tensor:
    """CLIP's encoder layers on one sequence (N, D), float64: pre-norm attention and MLP, as in the paper."""
    for number in range(SMALL["num_hidden_layers"]):

        def linear(values, name, layer=f"encoder.layers.{number}"):
            return values @ weights[f"{layer}.{name}.weight"].T + weights[f"{layer}.{name}.bias"]

        def norm(values, name, layer=f"encoder.layers.{number}"):
            return plain_norm(values, weights, f"{layer}.{name}")

        seen = norm(x, "layer_norm1")
        heads = SMALL["num_attention_heads"]
        q, k, v = (linear(seen, f"self_attn.{name}_proj").unflatten(1, (heads, -1)).transpose(0, 1) for name in "qkv")
        logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            logits = logits + torch.full_like(logits[0], -torch.inf).triu(1)
        mixed = (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + linear(mixed, "self_attn.out_proj")
        x = x + linear(activation(linear(norm(x, "layer_norm2"), "mlp.fc1")), "mlp.fc2")
    return x


def plain_norm(x: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def doubles(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    return {key.removeprefix(prefix): value.double() for key, value in state.items() if key.startswith(prefix)}


def plain_text(clip, name: str, text: str) -> torch.Tensor:
    """Projected output at the end token, of length 1."""
    transformer = getattr(clip.cond_stage_model, name).transformer
    weights = doubles(transformer, "text_model.")
    (pairs,) = clip.tokenize(text)[name.removeprefix("clip_")]
    tokens = torch.tensor([token for token, _ in pairs])
    x = weights["embeddings.token_embedding.weight"][tokens] + weights["embeddings.position_embedding.weight"]
    activation = {"clip_l": quick_gelu, "clip_g": F.gelu}[name]
    x = plain_norm(plain_transformer(x, weights, activation, causal=True), weights, "final_layer_norm")
    end = tokens.tolist().index(49407)
    pooled = transformer.text_projection.weight.double() @ x[end]
    return pooled / pooled.norm()


def plain_picture(vision, picture: torch.Tensor) -> torch.Tensor:
    """Projected output of the class token, of length 1, for a picture of the model's own size."""
    weights = doubles(vision.model, "vision_model.")
    colours = (picture.double() - torch.tensor(vision.image_mean).double()) / torch.tensor(vision.image_std).double()
    patches = colours.movedim(-1, 0).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (3, rows, columns, y, x)
    patches = patches.movedim(0, 2).flatten(0, 1).flatten(1)
    x = patches @ weights["embeddings.patch_embedding.weight"].flatten(1).T
    x = torch.cat([weights["embeddings.class_embedding"][None], x]) + weights["embeddings.position_embedding.weight"]
    x = plain_transformer(plain_norm(x, weights, "pre_layrnorm"), weights, quick_gelu, causal=False)
    pooled = vision.model.visual_projection.weight.double() @ plain_norm(x[0], weights, "post_layernorm")
    return pooled / pooled.norm()


KINDS = [("sd1", "clip_l"), ("sdxl", "clip_l"), ("sdxl", "clip_g")]


@pytest.mark.parametrize("kind, name", KINDS)
def test_scores_are_the_cosines_of_a_plain_float64_clip(clips, visions, kind, name):
    clip, vision = clips[kind], visions[WIDTHS[name]]
    candidates, source = pictures(3), pictures(1, seed=7)
    got = text_scores(prepare(candidates, source), clip, vision, TEXT, SOURCE_TEXT)
    images = torch.stack([plain_picture(vision, one) for one in [*candidates, *source]])
    text, before = (plain_text(clip, name, words) for words in (TEXT, SOURCE_TEXT))
    assert list(got) == ["text", "direction"]
    assert torch.allclose(got["text"], images[:3] @ text, atol=1e-5)
    steps, wanted = images[:3] - images[3], text - before
    want = (steps @ wanted) / steps.norm(dim=1) / wanted.norm()
    assert torch.allclose(got["direction"], want, atol=1e-4)
    assert got["text"].std() > 1e-3 and got["direction"].std() > 1e-3  # they do tell the candidates apart


def test_the_second_text_encoder_of_sdxl_gives_what_the_host_gives(clips):
    clip = clips["sdxl"]
    _, pooled = clip.encode_from_tokens(clip.tokenize(TEXT), return_pooled=True)
    assert torch.allclose(text_embedding(clip, "clip_g", TEXT), F.normalize(pooled[0], dim=0), atol=1e-6)


def test_clip_encodes_prompts_as_before(clips):
    for clip in clips.values():
        clip = clip.clone()
        for layer in (None, -2):
            clip.clip_layer(layer)
            before = clip.encode_from_tokens(clip.tokenize(TEXT), return_pooled=True)
            for name in text_encoders(clip):
                text_embedding(clip, name, TEXT)
            after = clip.encode_from_tokens(clip.tokenize(TEXT), return_pooled=True)
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_long_text_is_the_mean_direction_of_its_parts(clips):
    clip = clips["sd1"]
    parts = ["red " * 75, "a green star"]  # 75 tokens fill the first part
    assert len(clip.tokenize(parts[0])["l"]) == 1 and len(clip.tokenize("".join(parts))["l"]) == 2
    want = F.normalize(torch.stack([plain_text(clip, "clip_l", part) for part in parts]).sum(0), dim=0)
    assert torch.allclose(text_embedding(clip, "clip_l", "".join(parts)).double(), want, atol=1e-5)
    assert (want - plain_text(clip, "clip_l", parts[0])).abs().max() > 1e-2


def test_the_whole_picture_is_seen_at_any_size_and_in_any_batch(visions):
    vision = visions[24]
    wide = pictures(10, 40, 88)
    got = picture_embeddings(vision, wide)
    assert got.shape == (10, 24)
    one_by_one = torch.cat([picture_embeddings(vision, one[None]) for one in wide])
    assert torch.allclose(got, one_by_one, atol=1e-5)
    painted = wide.clone()
    painted[:, :, :8] = 0  # a centre crop would not see it
    assert (picture_embeddings(vision, painted) - got).abs().amax(1).min() > 1e-2


def test_the_toy_clip_takes_part():
    _, clip, _ = toy.load()
    vision = small_vision(toy.WIDTH)
    got = text_scores(prepare(pictures(2), pictures(1, seed=3)), clip, vision, "a red ring")
    images = torch.stack([plain_picture(vision, one) for one in pictures(2)])
    assert torch.allclose(got["text"], agreement(images, text_embedding(clip, "clip_l", "a red ring")), atol=1e-5)


def execute(candidates, source, keep=1, text="", source_text="", text_weight=0.5, **others):
    return BestOf.execute(candidates, source, keep, text, source_text, text_weight, **others).args


def test_the_node_ranks_by_fidelity_without_models():
    source = pictures(1, 40, 56)
    mask = layouts.box(40, 56, 0.2, 0.6, 0.3, 0.9)
    candidates = torch.cat([(source + error * pictures(1, 40, 56, 1)).clamp(0, 1) for error in (0.2, 0.05, 0.4, 0.1)])
    candidates[:, 10:20, 20:40] = pictures(4, 10, 20, 2)
    best, indices, ranking, sheet = execute(candidates, source, 3, mask=mask)
    assert indices == [1, 3, 0] and torch.equal(best, candidates[[1, 3, 0]])
    assert [line[5:16] for line in ranking.splitlines()[1:]] == [f"candidate {n}" for n in (2, 4, 1, 3)]
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3 and sheet.dtype == torch.float32
    everything, order, *_ = execute(candidates, source, 99, mask=mask)
    assert order == [1, 3, 0, 2] and len(everything) == 4


def test_the_node_weighs_the_text(clips, visions):
    candidates, source = pictures(4), pictures(1, seed=7)
    models = {"clip": clips["sdxl"], "clip_vision": visions[40]}
    images = torch.stack([plain_picture(visions[40], one) for one in [*candidates, *source]])
    text, before = (plain_text(clips["sdxl"], "clip_g", words) for words in (TEXT, SOURCE_TEXT))
    _, order, ranking, _ = execute(candidates, source, 4, TEXT, text_weight=1.0, **models)
    assert order == agreement(images[:4], text).argsort(descending=True).tolist()
    assert "direction" not in ranking
    _, order, ranking, _ = execute(candidates, source, 4, TEXT, SOURCE_TEXT, 1.0, **models)
    parts = [agreement(images[:4], text), direction(images[:4], images[4], text, before)]
    levels = [(part - part.min()) / (part.max() - part.min()) for part in parts]
    assert order == (levels[0] + levels[1]).argsort(descending=True).tolist()
    assert "(text + direction) / 2" in ranking
    assert execute(candidates, source, 4, TEXT, text_weight=0.0, **models)[1] == execute(candidates, source, 4)[1]


def test_with_the_hosts_batch_nodes():
    one, two, other = pictures(1), pictures(1, seed=1), pictures(1, 20, 44, seed=2)
    (batch,) = BatchImagesNode.execute({"image0": one, "image1": two, "image2": other}).args
    best, indices, _, _ = execute(batch, two)
    assert indices == [1]
    (picked,) = ImageFromBatch.execute(batch, indices[0], 1).args
    assert torch.equal(picked, best) and torch.equal(best, two)


def test_one_candidate_and_equal_ones():
    source = pictures(1)
    assert execute(pictures(1, seed=1), source)[1] == [0]
    _, order, ranking, _ = execute(pictures(1, seed=1).expand(4, -1, -1, -1), source, 4)
    assert order == [0, 1, 2, 3]
    assert "composited already" in ranking


def test_errors_before_a_model_is_loaded(clips, visions, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", None)
    monkeypatch.setattr(comfy.model_management, "load_model_gpu", None)
    sd1, sdxl, vision = clips["sd1"], clips["sdxl"], visions[40]
    siglip = small_vision(24, model_type="siglip_vision_model")
    del siglip.model.visual_projection
    siglip.model.visual_projection = lambda a: a
    for options, text in [
        ({"text": "x"}, "text is given, clip and clip_vision missing; connect clip"),
        ({"text": "x", "clip": sd1}, "text is given, clip_vision missing"),
        ({"text": "x", "clip_vision": vision}, "text is given, clip missing"),
        ({"source_text": "x"}, "source_text is given, text is empty; write what the result should show"),
        ({"text": "  ", "clip": sd1, "clip_vision": vision}, "text is empty, clip and clip_vision given"),
        ({"clip_vision": vision}, "text is empty, clip_vision given; .* or disconnect clip_vision"),
        (
            {"text": "x", "source_text": " x", "clip": sd1, "clip_vision": vision},
            "source_text says the same as text",
        ),
        (
            {"text": "x", "clip": sd1, "clip_vision": vision},
            r"clip_vision is 40 wide \(unknown\), clip is 24 \(clip_l\); load the vision model that belongs to clip",
        ),
        (
            {"text": "x", "clip": sdxl, "clip_vision": small_vision(768)},
            r"clip_vision is 768 wide \(CLIP ViT-L/14\), clip is 24 \(clip_l\) and 40 \(clip_g\)",
        ),
        ({"text": "x", "clip": sd1, "clip_vision": siglip}, "clip_vision is a siglip_vision_model, whose pictures"),
    ]:
        with pytest.raises(ValueError, match=f"Best Of: {text}"):
            execute(pictures(2), pictures(1), **options)
    with pytest.raises(ValueError, match="Best Of: candidates are 32x32, source is 40x32"):
        execute(pictures(2), pictures(1, 32, 40), text="x", clip=sd1, clip_vision=visions[24])


@pytest.mark.parametrize("value", [0.0, float("nan"), 3e4])
def test_an_encoder_without_its_projection(visions, value):
    clip = small_clip("sd1")
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(value)
    with pytest.raises(ValueError, match="clip's encoder clip_l has come without its text projection.*Load CLIP"):
        execute(pictures(2), pictures(1), text="x", clip=clip, clip_vision=visions[24])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_checkpoint_never_has_the_projection_of_vit_l(visions, kind):
    clip = small_clip(kind)
    # what the host writes down when it loads a checkpoint
    clip.patcher.cached_patcher_init = (comfy.sd.load_checkpoint_clip_patcher, ("x.safetensors", None, {}, {}))
    with pytest.raises(ValueError, match="clip_l has come without its text projection"):
        execute(pictures(2), pictures(1), text="x", clip=clip.clone(), clip_vision=visions[24])
    if kind == "sdxl":
        assert len(execute(pictures(2), pictures(1), 2, text="x", clip=clip, clip_vision=visions[40])[1]) == 2


def test_load_clip_takes_the_projection_from_a_complete_clip(clips, visions):
    weights = clips["sd1"].cond_stage_model.clip_l.transformer.state_dict()
    file = {**{key: value.clone() for key, value in weights.items()}, "vision_model.x": torch.zeros(1)}
    sizes = {"model_config": {**SMALL, "hidden_size": 24}, "dtype": torch.float32}
    loaded = comfy.sd.load_text_encoder_state_dicts([file], model_options=sizes)
    want = text_embedding(clips["sd1"], "clip_l", TEXT)
    assert torch.allclose(text_embedding(loaded, "clip_l", TEXT), want, atol=1e-6)
    assert len(execute(pictures(2), pictures(1), 2, TEXT, clip=loaded, clip_vision=visions[24])[1]) == 2


def test_a_text_encoder_that_is_no_clip(clips, visions):
    clip = clips["sd1"].clone()
    clip.cond_stage_model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"clip has no CLIP text encoder \(it is a Linear\)"):
        execute(pictures(2), pictures(1), text="x", clip=clip, clip_vision=visions[24])


def test_an_interrupted_run_stops_between_the_pictures(visions):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        picture_embeddings(visions[24], pictures(2))
    assert picture_embeddings(visions[24], pictures(2)).shape == (2, 24)
