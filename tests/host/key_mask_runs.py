"""Runs with key masks on the narrow models, and the keys that were hidden in them."""

from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.samplers
import torch

from latent_layers.attention.host import self_attentions

from . import layouts

MODES = ("multiply", "exclude", "soft")
SIGMAS = (14.6, 5.0, 1.0, 0.0)


def sample(model, name="sd15", batch=1, size=(16, 24), cfg=1.0, sigmas=SIGMAS, positive=None, picture=None):
    """Euler from noise, as the host's samplers do it -> latent (B, 4, h, w); `picture`: only that one of the batch."""
    latent, noise = layouts.latents(batch, *size), layouts.latents(batch, *size, seed=5)
    if picture is not None:
        latent, noise = latent[picture : picture + 1], noise[picture : picture + 1]
    with torch.inference_mode():
        return comfy.samplers.sample(
            model,
            noise,
            positive or layouts.conditioning(name),
            layouts.conditioning(name, seed=9),
            cfg,
            model.load_device,
            comfy.samplers.sampler_object("euler"),
            torch.tensor(sigmas),
            model.model_options,
            latent_image=latent,
            disable_pbar=True,
            seed=1,
        )


def mask(height=128, width=192):
    return layouts.box(height, width, 0.25, 0.75, 0.25, 0.75)


def difference(a, b):
    return (a - b).abs().max().item()


def watch_keys(model):
    """Records, per self-attention, the hidden states that its `to_k` is given; -> (records, handles)."""
    seen, handles = {}, []
    for block in self_attentions(model, "test"):
        unet = model.model.diffusion_model
        module = unet.middle_block if block.side == "middle" else getattr(unet, f"{block.side}_blocks")[block.number]
        transformer = next(m for m in module.children() if isinstance(m, host_attention.SpatialTransformer))
        inner: Any = transformer.transformer_blocks[block.depth]
        to_k = inner.attn1.to_k
        handles.append(
            to_k.register_forward_pre_hook(lambda _, given, key=block.key: seen.setdefault(key, []).append(given[0]))
        )
    return seen, handles


def masked_keys(model, **kwargs):
    """Keys of the blocks in which some hidden state was exactly 0 for `to_k`, and tokens per block."""
    seen, handles = watch_keys(model)
    try:
        sample(model, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    hit = {key for key, given in seen.items() if any(bool((g == 0).all(-1).any()) for g in given)}
    return hit, {key: [g.shape[:2] for g in given] for key, given in seen.items()}
