"""Train the toy checkpoint from nothing: autoencoder, UNet and text encoder, then the decoder's touch-up.

UNet and text encoder learn in two stages: to denoise pictures, then also to mend those
that do not show what the caption says. Each stage writes a checkpoint that a later run
goes on from. The first one's learning rate is constant and decays over the last half, so
a longer run can continue a shorter one's checkpoint from before its decay.
"""

import copy
import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.clip_model
import comfy.ops
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import ModelSamplingDiscrete
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .autoencoder import PatchAutoencoder, fit_linear
from .model import TEXT_ENCODER, UNET, WIDTH
from .scenes import random_scene
from .shape_hint import ShapeHeads
from .training_data import Pictures, Vocabulary

_KERNELS: list[SDPBackend] = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Settings:
    """What `python dev.py train` does; stored in the weights file."""

    steps: int = 18000
    batch: int = 16
    learning_rate: float = 4e-4
    warm_up: int = 100
    decay: float = 0.5  # share of the steps, at the end, over which the learning rate falls to 0
    empty_captions: float = 0.15
    ema: float = 0.999
    shape_hint: float = 0.2  # weight of the second task …
    shape_hint_from: int = 9000  # … and the step from which it is learned
    mending_steps: int = 3600  # of the second stage, which begins with a warm-up and decays from then on
    mending_rate: float = 3e-4
    clip_gradient: float = 1.0
    linear_pictures: int = 512
    refinement_steps: int = 600
    seed: int = 0


class _Layer(comfy.clip_model.CLIPLayer):
    """The host's layer without its in-place additions, which a backward pass cannot cross."""

    def forward(self, x, mask=None, optimized_attention=None):
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))


class Trainee(nn.Module):
    """UNet, text encoder and compact token embedding, in one module."""

    def __init__(self, vocabulary: int):
        super().__init__()
        operations = comfy.ops.disable_weight_init
        self.unet = UNetModel(**UNET, dtype=torch.float32, operations=operations)
        self.text = comfy.clip_model.CLIPTextModel(TEXT_ENCODER, torch.float32, "cpu", operations)
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.shapes = ShapeHeads(self.unet)
        for layer in self.text.text_model.encoder.layers:
            layer.__class__ = _Layer
        # the vocabulary's rows stand for the token embedding, and nothing reads the projection
        self.text.text_model.embeddings.token_embedding = nn.Identity()
        del self.text.text_projection
        self.requires_grad_(True)
        for module in self.modules():
            _initialise(module)
        for name, parameter in self.named_parameters():
            # residual branches begin silent, as in the original UNet
            if name.endswith(("out_layers.3.weight", "proj_out.weight", "unet.out.2.weight")):
                nn.init.zeros_(parameter)

    def context(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, 77, width) of compact token ids (B, 77)."""
        embeds = self.tokens(ids)
        return self.text.text_model(None, embeds=embeds, num_tokens=[1] * len(ids))[0]

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ε (B, C, h, w), and the loss of the second task."""
        return self.unet(x, timesteps, self.context(ids)), self.shapes.loss(shares)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 if module.weight.shape[0] == 77 else 0.5)
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        nn.init.ones_(module.weight)
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        nn.init.zeros_(bias)


@dataclass(frozen=True)
class Stage:
    """One of the two stages of the diffusion model's training."""

    settings: Settings
    mending: bool = False

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return "mending" if self.mending else "diffusion"

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.settings.mending_steps if self.mending else self.settings.steps

    @property
    def first(self) -> int:
        """Number of the first step, over both stages: none sees a picture of the other's."""
        return self.settings.steps if self.mending else 0

    def learning_rate(self, step: int) -> float:
        """Warm-up, plateau, and a half cosine down to 0 at the end; while mending, no plateau."""
        settings = self.settings
        peak, decay = (settings.mending_rate, 1.0) if self.mending else (settings.learning_rate, settings.decay)
        length = self.steps * decay
        fallen = max(0.0, step - self.steps + length) / length if length else 0.0
        fall = 0.5 + 0.5 * math.cos(math.pi * fallen)
        return peak * min(1.0, (step + 1) / settings.warm_up) * fall

    def hint(self, step: int) -> float:
        """Weight of the second task."""
        return self.settings.shape_hint * (not self.mending and step >= self.settings.shape_hint_from)


def loss_weight(sigma: torch.Tensor) -> torch.Tensor:
    """Weight of the squared ε error at σ: that of v-prediction, 1 + σ², damped above σ = 5.

    Layout and colours are settled at high σ, where an ε error is small whatever the
    picture: unweighted, those levels would hardly count. Towards the top of the schedule
    nothing can be known of the picture, so the weight levels off.
    """
    return (1 + sigma**2) / (1 + (sigma / 5) ** 2)


def draw_timesteps(count: int, levels: int, generator: torch.Generator) -> torch.Tensor:
    """Timesteps (count,): two of five from the whole schedule, the others from where shapes are settled.

    On SD's schedule 40 % to 90 % of the timesteps are σ from 1 to 8: where an object lies is
    seen, which one it is not yet.
    """
    device = generator.device
    anywhere = torch.rand(count, generator=generator, device=device)
    middle = 0.4 + 0.5 * torch.rand(count, generator=generator, device=device)
    chosen = torch.rand(count, generator=generator, device=device) < 0.4
    return (torch.where(chosen, anywhere, middle) * levels).long()


def mending_timesteps(count: int, levels: int, generator: torch.Generator) -> torch.Tensor:
    """Timesteps (count,) for pictures with mistakes: from where a thing can still become another one."""
    return ((0.4 + 0.55 * torch.rand(count, generator=generator, device=generator.device)) * levels).long()


def noised(
    z: torch.Tensor, z_seen: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model sees, and the ε that leads from it to z, in that order, all (B, C, h, w); sigma (B, 1, 1, 1).

    With z_seen = z the ε is the noise. Otherwise it also takes away what is wrong in z_seen.
    """
    return (z_seen + sigma * noise) / (sigma**2 + 1).sqrt(), noise + (z_seen - z) / sigma


def train(settings: Settings, folder: Path, output: Path) -> None:
    """Train, or go on training, and write the weights file.

    Args:
        settings: hyper-parameters.
        folder: for checkpoints; what is there is continued.
        output: the safetensors file to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = Vocabulary()
    autoencoder = _autoencoder(settings, folder)
    model, seconds = _diffusion(Stage(settings), folder, vocabulary, autoencoder, device)
    model, more = _diffusion(Stage(settings, mending=True), folder, vocabulary, autoencoder, device, start=model)
    _refine(settings, folder, autoencoder, device)
    export(model, vocabulary, autoencoder, settings, seconds + more, output)
    print(f"wrote {output.name}: {output.stat().st_size / 2**20:.1f} MiB", flush=True)


def _pictures(first: int, count: int) -> torch.Tensor:
    """(count, 3, 256, 256) in [-1, 1] of the training stream."""
    images = [torch.from_numpy(random_scene(i, stream="training").image()) for i in range(first, first + count)]
    return torch.stack(images).movedim(3, 1) * 2 - 1


def _autoencoder(settings: Settings, folder: Path) -> PatchAutoencoder:
    torch.manual_seed(settings.seed)  # the touch-up starts from random weights
    autoencoder = PatchAutoencoder()
    path = folder / "autoencoder.pt"
    if path.exists():
        autoencoder.load_state_dict(torch.load(path))
        return autoencoder
    print("autoencoder: principal components", flush=True)
    fit_linear(autoencoder, _pictures(0, settings.linear_pictures))
    _save(autoencoder.state_dict(), path)
    return autoencoder


def _diffusion(
    stage: Stage,
    folder: Path,
    vocabulary: Vocabulary,
    autoencoder: PatchAutoencoder,
    device: torch.device,
    start: Trainee | None = None,
) -> tuple[Trainee, float]:
    """One stage, from random weights or from those of `start`: averaged weights, and seconds spent."""
    settings = stage.settings
    torch.manual_seed(settings.seed)
    model = Trainee(len(vocabulary)).to(device)  # not a copy of `start`, whose hooks would stay with it
    if start is not None:
        model.load_state_dict(start.state_dict())
    ema = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.99), fused=True)
    path, first, spent = folder / f"{stage.name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, map_location=device)
        for part, name in ((model, "model"), (ema, "ema"), (optimiser, "optimiser")):
            part.load_state_dict(state[name])
        first, spent = state["step"], state["seconds"]
        print(f"{stage.name}: going on from step {first}", flush=True)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    sigmas = torch.as_tensor(ModelSamplingDiscrete().sigmas, device=device)
    # on a CPU the backward pass of the fused attention takes a quarter of the whole step
    attention = [SDPBackend.MATH] if device.type == "cpu" else _KERNELS
    # processors without bfloat16 units emulate it, at a tenth of the speed
    half = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    encoder = copy.deepcopy(autoencoder.analysis).to(device)
    from_, to = ((stage.first + step) * settings.batch for step in (first, stage.steps))
    data = Pictures(to, vocabulary, settings.empty_captions, from_, with_mistakes=stage.mending)
    # a worker that is not forked does not know the pack by its name here
    forks = multiprocessing.get_start_method() == "fork"
    loader = torch.utils.data.DataLoader(
        data, settings.batch, num_workers=int(forks), prefetch_factor=4 if forks else None
    )
    step_model: Callable = torch.compile(model) if shutil.which("c++") else model
    began, losses, hints = time.perf_counter() - spent, [], []
    for step, (pictures, seen, ids, shares) in enumerate(loader, first):
        seed = settings.seed * 1_000_003 + (2_000_003 if stage.mending else 0) + step
        generator = torch.Generator(device).manual_seed(seed)
        with torch.no_grad():
            z, z_seen = (encoder(part.to(device).float() / 127.5 - 1) for part in (pictures, seen))
        late = mending_timesteps(len(z), len(sigmas), generator) if stage.mending else None
        t = draw_timesteps(len(z), len(sigmas), generator)
        if late is not None:
            t = torch.where((pictures != seen).flatten(1).any(1).to(device), late, t)
        noise = torch.randn(z.shape, generator=generator, device=device)
        sigma = sigmas[t].view(-1, 1, 1, 1)
        x, target = noised(z, z_seen, noise, sigma)
        x = x.to(memory_format=torch.channels_last)
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half), sdpa_kernel(attention):
            predicted, hint = step_model(x, t.float(), ids.to(device), shares.to(device))
            loss = (loss_weight(sigma) * (predicted.float() - target) ** 2).mean()
            (loss + stage.hint(step) * hint).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_gradient)
        for group in optimiser.param_groups:
            group["lr"] = stage.learning_rate(step)
        optimiser.step()
        _follow(ema, model, min(settings.ema, (1 + step) / (10 + step)))
        losses.append(loss.item())
        hints.append(hint.item())
        done = step + 1
        if done % 50 == 0:
            spent = time.perf_counter() - began
            recent, named = sum(losses[-50:]) / 50, sum(hints[-50:]) / 50
            print(
                f"{stage.name} {done}/{stage.steps}  loss {recent:.4f}  shapes {named:.3f}  {spent / 60:.1f} min",
                flush=True,
            )
        if done % 200 == 0 or done == stage.steps:
            state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimiser": optimiser.state_dict()}
            state |= {"step": done, "seconds": time.perf_counter() - began}
            _save(state, path)
            if not stage.mending and done <= settings.steps * (1 - settings.decay):
                _save(state, folder / "before_decay.pt")
    return ema, time.perf_counter() - began


@torch.no_grad()
def _follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(parameter, 1 - decay)


def _refine(settings: Settings, folder: Path, autoencoder: PatchAutoencoder, device: torch.device) -> None:
    """Train the decoder's touch-up alone; encoder and latents stay what the UNet learned."""
    path = folder / "refined.pt"
    if path.exists():
        autoencoder.load_state_dict(torch.load(path))
        return
    torch.manual_seed(settings.seed)
    autoencoder.to(device)
    optimiser = torch.optim.AdamW(autoencoder.refinement.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, settings.refinement_steps)
    for step in range(settings.refinement_steps):
        pictures = _pictures(1_000_000 + 8 * step, 8).to(device)
        with torch.no_grad():
            z = autoencoder.encode(pictures)
            z = z + 0.03 * torch.randn_like(z)  # latents come from a sampler, never quite clean
        loss = nn.functional.mse_loss(autoencoder.decode(z), pictures)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            psnr = -10 * math.log10(loss.item() / 4)
            print(f"decoder {step + 1}/{settings.refinement_steps}  {psnr:.1f} dB", flush=True)
    _save(autoencoder.cpu().state_dict(), path)


def export(
    ema: Trainee, vocabulary: Vocabulary, autoencoder: PatchAutoencoder, settings: Settings, seconds: float, path: Path
) -> None:
    """Write half-precision weights, with the settings in the file's metadata."""
    tensors = {f"unet.{k}": v for k, v in ema.unet.state_dict().items()}
    tensors |= {f"text.{k}": v for k, v in ema.text.state_dict().items()}
    rows = ema.tokens.weight.detach()
    tensors |= {"text.token_rows": rows[1:], "text.unknown_row": rows[:1]}
    tensors |= {f"vae.{k}": v for k, v in autoencoder.state_dict().items()}
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}
    tensors["text.token_ids"] = torch.tensor(vocabulary.ids, dtype=torch.int32)
    training = json.dumps({**asdict(settings), "seconds": round(seconds), "machine": _machine()})
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, metadata={"format": "pt", "training": training})
    temporary.chmod(0o644)  # safetensors writes files that only their owner can read
    temporary.replace(path)


def _machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"


def _save(state: dict, path: Path) -> None:
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)
