"""What a step of a soft edit needs of memory: an SD 1.5-size UNet, random weights, against a step of CFG."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pack
import torch
import torch.nn.functional as F
from bench_attention import LATENT, TOKENS, WHO, full_size_model, peak_bytes
from torch import Tensor

pack.load_pack()
from latent_layers.attention.adaptive_host import adaptive_guider  # noqa: E402
from latent_layers.attention.alignment import Alignment  # noqa: E402
from latent_layers.attention.timings import Timing, WordTimings  # noqa: E402
from latent_layers.attention.words import Prompt, Word  # noqa: E402
from latent_layers.inversion.host import model_family  # noqa: E402
from latent_layers.inversion.trajectory import Trajectory  # noqa: E402

SIGMAS = (7.0, 3.0, 0.0)
BLOCK, WIDTH = ("output", 8, 0), 640  # the last of the 32x32 level


def _prompt(*texts: str) -> Prompt:
    return Prompt(tuple(Word(text, (n,)) for n, text in enumerate(texts, start=1)), (0,), (len(texts) + 1,), TOKENS)


def _timings() -> WordTimings:
    """All shared words held, the whole padding too: the step that keeps most."""
    alignment = Alignment(_prompt("a", "red", "star"), _prompt("a", "blue", "star"), (0, None, 2))
    rows = tuple(Timing(word.text, 0.0, 1.0) for word in alignment.edit.words)
    return WordTimings(alignment, rows, F.normalize(torch.randn(WIDTH), dim=0), None, BLOCK, torch.rand(32, 32))


def run() -> dict[str, float]:
    """Peak of a step on top of weights: of CFG (MiB), and the soft edit's in ratio to it."""
    with torch.inference_mode():
        model = full_size_model()
        source, edit, empty = ([[torch.randn(1, TOKENS, 768), {}]] for _ in range(3))
        latents = [torch.randn(1, 4, LATENT, LATENT) * max(sigma, 1.0) for sigma in SIGMAS]
        trajectory = Trajectory(list(SIGMAS), latents, model_family(model, WHO))
        plain: Any = comfy.samplers.CFGGuider(model)
        plain.set_conds(edit, empty)
        plain.set_cfg(7.5)
        soft = adaptive_guider(model, source, edit, None, 7.5, _timings(), trajectory=trajectory)
        cfg, edited = (_peak(guider, latents[0]) for guider in (plain, soft))
    return {"soft_memory_ratio": edited / cfg, "cfg_peak_mib": cfg / 2**20}


def _peak(guider: Any, noise: Tensor) -> int:
    """Bytes of one step, after one to warm up."""
    peaks: list[int] = []

    def twice(wrap: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        level = sigmas[:1]
        wrap(x, level, **extra_args)
        peaks.append(peak_bytes(lambda: wrap(x, level, **extra_args), x.device))
        return x

    sampler = comfy.samplers.KSAMPLER(twice)
    guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(SIGMAS), disable_pbar=True)
    return peaks[0]
