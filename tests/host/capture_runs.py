"""Capture runs on the narrow models, and what the attention of the chosen blocks was really given."""

from typing import Any, cast

import comfy.ldm.modules.attention as host_attention
import comfy.samplers
import torch

from latent_layers.attention.capture import Capture
from latent_layers.attention.capture_host import apply_capture, blocks_near

from . import layouts

SIZE = (17, 25)  # grids 17x25, 9x13, 5x7: the middle one is nearest to 8 cells
TOKENS = 7


def near(model, size=SIZE):
    return blocks_near(model, (1, 4, *size), "test", cells=8)


def captured(model, tokens=TOKENS, size=SIZE):
    """A patched clone and its capture."""
    capture = Capture(near(model, size), tokens)
    return apply_capture(model, capture, "test"), capture


def guider(model, name="sd15", cfg=1.0, positive=None, negative=None):
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(
        layouts.conditioning(name) if positive is None else positive,
        layouts.conditioning(name, seed=9) if negative is None else negative,
    )
    made.set_cfg(cfg)
    return made


def sample(made, batch=1, size=SIZE, sampler="euler", sigmas=(5.0, 1.0, 0.0), callback=None):
    return made.sample(
        layouts.latents(batch, *size, seed=5),
        layouts.latents(batch, *size),
        comfy.samplers.sampler_object(sampler),
        torch.tensor(sigmas),
        callback=callback,
        disable_pbar=True,
        seed=1,
    )


def maps_of(made, capture, **settings):
    """What `take` gives after each step."""
    taken = []
    sample(made, callback=lambda *_: taken.append(capture.take()), **settings)
    return taken


class Watch:
    """Outputs of `to_q` and `to_k` of the chosen blocks, call by call, and which rows are whose.

    rows  (q, k) by block, for every call of the UNet
    order `cond_or_uncond` of every call
    """

    def __init__(self, model, size=SIZE):
        self.calls, self.handles, self.model = [], [], model
        unet = model.model.diffusion_model
        self.handles.append(unet.register_forward_pre_hook(self._begin, with_kwargs=True))
        for block in near(model, size):
            module = (
                unet.middle_block if block.side == "middle" else getattr(unet, f"{block.side}_blocks")[block.number]
            )
            transformer = next(m for m in module.children() if isinstance(m, host_attention.SpatialTransformer))
            attention: Any = cast(Any, transformer.transformer_blocks[block.depth]).attn2
            for name in ("to_q", "to_k"):
                hook = getattr(attention, name).register_forward_hook(
                    lambda _, given, out, key=(block.key, name): self.calls[-1][1].__setitem__(key, out.clone())
                )
                self.handles.append(hook)
            self.heads = attention.heads

    def _begin(self, module, args, kwargs):
        self.calls.append((kwargs["transformer_options"]["cond_or_uncond"], {}))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()

    def maps(self, call, tokens=TOKENS, grid=(9, 13), context=None, positive=0):
        """The mean over heads and layers of softmax(q k^T / sqrt(d)) of one call's positive rows, (B, tokens, h, w)."""
        order, outputs = self.calls[call]
        total, blocks = 0, {key for key, _ in outputs}
        for key in blocks:
            q, k = (outputs[key, name].double().chunk(len(order))[order.index(positive)] for name in ("to_q", "to_k"))
            size = q.shape[2] // self.heads
            for head in range(self.heads):
                part = slice(head * size, (head + 1) * size)
                weights = (q[..., part] @ k[..., part].mT / size**0.5).softmax(-1)[..., : context or k.shape[1]]
                total = total + sum(weights.split(tokens, dim=2)) / self.heads / len(blocks)
        assert isinstance(total, torch.Tensor)
        return total.mT.unflatten(2, grid)


def difference(a, b):
    return (a - b).abs().max().item()
