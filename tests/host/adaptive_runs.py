"""Runs of the Adaptive Attention Guider on the narrow models, with prompts and timings made by hand."""

from typing import Any

import comfy.samplers
import torch
import torch.nn.functional as F

from latent_layers.attention.adaptive_host import adaptive_guider
from latent_layers.attention.alignment import Alignment
from latent_layers.attention.timings import Timing, WordTimings
from latent_layers.attention.words import Prompt, Word
from latent_layers.inversion.host import model_family, sample_recording
from latent_layers.inversion.trajectory import Trajectory

from . import layouts

SIZE = (9, 13)  # grids 9x13, 5x7, 3x4, 2x2
BLOCKS = {"sd15": (("output", 11, 0), 32), "sdxl": (("output", 5, 1), 64)}  # (key, channels) in the narrow models
NEVER, ALWAYS, SOME = (0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.1, 0.0, 0.6)


def difference(a, b):
    return (a - b).abs().max().item()


def relative(a, b):
    """Rounding is relative to the largest number: those of random weights reach hundreds."""
    return difference(a, b) / b.abs().max().item()


def prompt(*texts, length):
    """Start token, one token for each word, end token and padding."""
    return Prompt(tuple(Word(t, (n,)) for n, t in enumerate(texts, start=1)), (0,), (len(texts) + 1,), length)


def timings(taus=SOME, name="sd15", lengths=(7, 7), grid=(6, 8)):
    """`a red star` becomes `a blue star`; the random embeddings of the conditionings stand for both."""
    block, width = BLOCKS[name]
    generator = torch.Generator().manual_seed(3)
    alignment = Alignment(
        prompt("a", "red", "star", length=lengths[0]), prompt("a", "blue", "star", length=lengths[1]), (0, None, 2)
    )
    rows = tuple(Timing(word.text, 0.0, tau) for word, tau in zip(alignment.edit.words, taus, strict=True))
    keyword = F.normalize(torch.randn(width, generator=generator), dim=0)
    return WordTimings(alignment, rows, keyword, None, block, torch.rand(*grid, generator=generator))


def schedule(model, steps=4):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def trajectory(model, batch=1, size=SIZE, steps=4):
    """Some source, with fresh noise at every sigma, so that only an exact look-up can match."""
    clean = layouts.latents(batch, *size, seed=20)
    sigmas = schedule(model, steps)
    latents = [clean + s * layouts.latents(batch, *size, seed=i) for i, s in enumerate(sigmas.tolist())]
    return Trajectory(sigmas, latents, model_family(model, "test"), model.get_model_object("latent_format"))


def conditionings(name="sd15", lengths=(7, 7)):
    return layouts.conditioning(name, 1, lengths[0]), layouts.conditioning(name, 2, lengths[1])


def negative(name="sd15"):
    return layouts.conditioning(name, 9)


def guider(model, found=None, name="sd15", cfg=3.0, lengths=(7, 7), guide="negative", conds=None, **settings):
    source, edit = conditionings(name, lengths) if conds is None else conds
    found = timings(name=name, lengths=lengths) if found is None else found
    return adaptive_guider(model, source, edit, negative(name) if guide else None, cfg, found, **settings)


def plain(model, positive, against, cfg=3.0):
    made = comfy.samplers.CFGGuider(model)
    made.inner_set_conds({"positive": positive} if against is None else {"positive": positive, "negative": against})
    made.set_cfg(cfg)
    return made


def along(made, source, sampler="euler"):
    """What the node Sample does: (recorded trajectory, latents)."""
    return sample_recording(made, comfy.samplers.sampler_object(sampler), source.sigmas, source)


def beside(made, batch=1, size=SIZE, sampler="euler", steps=4, callback=None, denoise_mask=None, seed=1):
    """What SamplerCustomAdvanced does."""
    return made.sample(
        layouts.latents(batch, *size, seed=5),
        layouts.latents(batch, *size),
        comfy.samplers.sampler_object(sampler),
        schedule(made.model_patcher, steps),
        denoise_mask,
        callback,
        disable_pbar=True,
        seed=seed,
    )


class Attentions:
    """What every cross-attention was given and gave, call by call: q, k, v as projected, and the output."""

    def __init__(self, model):
        self.calls: list[dict[str, list[torch.Tensor]]] = []
        self.handles = []
        unet: Any = model.model.diffusion_model
        self.handles.append(unet.register_forward_pre_hook(lambda *_: self.calls.append({})))
        self.heads = {}
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                self.heads[name] = module.heads
                for part in (module.to_q, module.to_k, module.to_v):
                    self.handles.append(part.register_forward_hook(self._note(name)))
                self.handles.append(module.to_out.register_forward_pre_hook(self._note(name)))

    def _note(self, name):
        def hook(module, given, out=None):
            # a hook before sees what it is given, one after it what came out
            self.calls[-1].setdefault(name, []).append((given[0] if out is None else out).clone())

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
