"""The toy checkpoint's parts, built of ComfyUI's own classes without touching its registry."""

import json
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors import safe_open

from .autoencoder import CHANNELS, PatchAutoencoder

WEIGHTS = Path(__file__).parent / "toy_scenes.safetensors"
WIDTH = 128  # of the text encoder, and so of the cross-attention's context

UNET = {
    "image_size": 32,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": 64,
    "channel_mult": (1, 2, 3),
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "num_head_channels": 32,
    "context_dim": WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}

TEXT_ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
}


class ToyLatents(comfy.latent_formats.LatentFormat):
    """Eight channels of about unit variance."""

    latent_channels = CHANNELS


class ToyScenes(comfy.supported_models_base.BASE):
    """ε-prediction with Stable Diffusion's noise schedule."""

    unet_config = UNET
    unet_extra_config = {}
    latent_format = ToyLatents
    memory_usage_factor = 0.5


class ToyTextEncoder(comfy.sd1_clip.SDClipModel):
    """CLIP's text transformer, narrow and three layers deep."""

    def __init__(self, **options):
        super().__init__(textmodel_json_config=TEXT_ENCODER, return_projected_pooled=False, **options)


class ToyClip(comfy.sd1_clip.SD1ClipModel):
    """What the host's CLIP object drives: one text encoder under the name of SD 1.x's."""

    def __init__(self, **options):
        encoder: Any = ToyTextEncoder
        super().__init__(clip_model=encoder, **options)


def load(path: Path = WEIGHTS) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Load the toy checkpoint as the host's MODEL, CLIP and VAE.

    Raises:
        FileNotFoundError: the weights file is missing; says how to get it back.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Toy Model: weights file {path.name} is missing from the pack's folder toyscenes; "
            "install the pack again, or run `python dev.py train`"
        )
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text": {}, "vae": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor.float()
    model = _model(parts["unet"])
    # previews while sampling: the mean colour of the patch that a latent stands for
    latents = model.model.latent_format
    latents.latent_rgb_factors = parts["vae"]["synthesis.weight"].mean((2, 3)).tolist()
    latents.latent_rgb_factors_bias = parts["vae"]["synthesis.bias"].tolist()
    return model, _clip(parts["text"]), _vae(parts["vae"])


def settings(path: Path = WEIGHTS) -> dict:
    """How the weights were trained, from the file's metadata."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["training"])


def _model(weights: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    config = ToyScenes(UNET)
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(device, model_params=11_000_000)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = comfy.model_base.BaseModel(config)
    model.diffusion_model.load_state_dict(weights)
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload)


def _clip(weights: dict[str, torch.Tensor]) -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, ToyClip)
    weights = dict(weights)
    rows, row_of, other = (weights.pop(name) for name in ("token_rows", "token_ids", "unknown_row"))
    # only the words of the captions are in the file; every other token gets the row that stands for "unknown"
    embedding = other.repeat(49408, 1)
    embedding[row_of.long()] = rows
    weights["text_model.embeddings.token_embedding.weight"] = embedding
    weights["text_projection.weight"] = torch.eye(WIDTH)
    clip = comfy.sd.CLIP(target, parameters=sum(w.numel() for w in weights.values()))
    clip.load_sd(weights)
    return clip


def _vae(weights: dict[str, torch.Tensor]) -> comfy.sd.VAE:
    # built around the host's smallest KL autoencoder, which ours then replaces
    small = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
             "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    params = {"ddconfig": small, "embed_dim": 4}
    vae: Any = comfy.sd.VAE(sd=AutoencoderKL(**params).state_dict(), config={"params": params}, dtype=torch.float32)
    autoencoder = PatchAutoencoder()
    autoencoder.load_state_dict(weights)
    vae.first_stage_model = autoencoder.eval().requires_grad_(False)
    vae.latent_channels = CHANNELS
    # the activations at full size are the picture itself; inside, 64 channels at an eighth
    vae.memory_used_encode = lambda shape, dtype: 16 * shape[2] * shape[3] * 4
    vae.memory_used_decode = lambda shape, dtype: 16 * shape[2] * shape[3] * 64 * 4
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        autoencoder, load_device=vae.device, offload_device=vae.patcher.offload_device
    )
    return vae
