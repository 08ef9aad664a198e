"""Random-weight, narrow models of the real SD 1.5 and SDXL layouts, from the host's own classes.

Every block, depth and resolution is where it is in the real checkpoints (16 and 70
self-attentions); only the channels are few, so that a pass takes milliseconds.
"""

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import torch
from torch import Tensor

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
SD15 = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 24,
    "num_heads": 4,
    "num_head_channels": -1,
    "adm_in_channels": None,
}
SDXL = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "context_dim": 24,
    "num_heads": -1,
    "num_head_channels": 16,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
CONTEXT = 24
SELF_ATTENTIONS = {"sd15": 16, "sdxl": 70}


def narrow(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> comfy.model_patcher.ModelPatcher:
    """A model of a layout, `sd15` or `sdxl`, with random weights; `changes` go into its UNet's settings."""
    family, layout = {"sd15": (comfy.supported_models.SD15, SD15), "sdxl": (comfy.supported_models.SDXL, SDXL)}[name]
    config = family({**COMMON, **layout, "dtype": dtype, **changes})
    config.unet_config.update({key: layout[key] for key in ("num_heads", "num_head_channels")}, **changes)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    fill(model.diffusion_model, seed)
    model.eval()
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations near 1 (the host leaves them uninitialised)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            # peaked attention, so that masking it makes a difference that can be measured
            scale = 1.4 if name.endswith(("to_q.weight", "to_k.weight")) else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / fan_in**0.5)
        elif name.endswith("weight"):
            parameter.fill_(1.0)
        else:
            parameter.zero_()


def conditioning(name: str, seed: int = 1, tokens: int = 7, **options) -> list:
    """A random prompt for a layout, in the host's form; SDXL's has a pooled part."""
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, 1280, generator=generator)} if name == "sdxl" else {}
    return [[torch.randn(1, tokens, CONTEXT, generator=generator), {**extra, **options}]]


def latents(batch: int = 1, height: int = 16, width: int = 16, seed: int = 2) -> Tensor:
    """A random latent (B, 4, height, width)."""
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))


def box(height: int, width: int, top: float, bottom: float, left: float, right: float) -> Tensor:
    """A mask (1, height, width) with one box of ones, its sides in parts of the picture."""
    mask = torch.zeros(1, height, width)
    mask[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 1.0
    return mask


class OneTextEncoder:
    """The host's tokenizer, and random embeddings of the narrow models' width for what it makes."""

    def __init__(self, name):
        self.tokenizer = {"sd15": comfy.sd1_clip.SD1Tokenizer, "sdxl": comfy.sdxl_clip.SDXLTokenizer}[name]()
        self.name = name

    def tokenize(self, text, return_word_ids=False):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)

    def encode_from_tokens_scheduled(self, tokens):
        return conditioning(self.name, tokens=77 * len(tokens["l"]))
