"""Tiny models of the host's own classes, for the host tier: real code paths, random weights."""

from typing import ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

CONTEXT_DIM = 32


class NoisePredictor(UNetModel):
    """Adds its input to the output: for unit data that is near the right ε, so that x grows with σ.

    A v-model needs no such help, its right answer for unit data is near 0.
    """

    def _forward(self, x, *args, **kwargs):
        return x + super()._forward(x, *args, **kwargs)


def tiny_model(prediction: str = "eps", latent_channels: int = 4, seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """A UNet of the SD family with random weights, as checkpoint loaders return it.

    Two levels, one residual block each, self- and cross-attention on both and in the
    middle; SD's noise schedule. `prediction` is "eps" or "v".
    """

    class Config(comfy.supported_models_base.BASE):
        unet_extra_config: ClassVar = {"num_heads": 2, "num_head_channels": -1}
        latent_format = comfy.latent_formats.SD15

    config = Config(
        {
            "image_size": 32,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "model_channels": 32,
            "channel_mult": (1, 2),
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1],
            "use_spatial_transformer": True,
            "context_dim": CONTEXT_DIM,
            "legacy": False,
            "dtype": torch.float32,
        }
    )
    config.latent_format.latent_channels = latent_channels
    kind, unet = {
        "eps": (comfy.model_base.ModelType.EPS, NoisePredictor),
        "v": (comfy.model_base.ModelType.V_PREDICTION, UNetModel),
    }[prediction]
    model = comfy.model_base.BaseModel(config, model_type=kind, unet_model=unet)
    _initialise(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def tiny_conditioning(batch: int = 1, tokens: int = 7, seed: int = 1) -> list:
    """A CONDITIONING as CLIP Text Encode returns it, with random embeddings (batch, tokens, dim)."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(batch, tokens, CONTEXT_DIM, generator=generator), {}]]


@torch.no_grad()
def _initialise(module: UNetModel, seed: int) -> None:
    """Random weights that keep activations near unit size: the host leaves them uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    # A small output keeps x(σ) a gentle curve, as a trained model's is: inversion converges.
    module.get_parameter("out.2.weight").mul_(0.1)
