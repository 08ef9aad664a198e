"""Instant Attention Mask and Word Mask under ComfyUI's own guiders and samplers.

Both run through `CFGGuider.sample`, so that model loading, low-VRAM offloading, other packs'
wrappers, interrupts, previews and progress are the host's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.k_diffusion.sampling
import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.capture import Capture
from ..attention.capture_host import apply_capture, blocks_near, read_prompt
from ..attention.keep_source import blend
from ..attention.schedule import PercentRange, check_range
from ..attention.words import Prompt, Word, find_words, listing
from ..inversion.host import intermediate, model_family, sample_counted
from ..inversion.trajectory import Trajectory
from .edges import GuidedFilter
from .instant import (
    AUTOMATIC,
    Refinement,
    Refinements,
    Role,
    Settings,
    check_threshold,
    min_max,
    named_map,
    otsu,
    resize,
    strip,
)
from .instant_words import Given, changed_words, gone_and_added, led_by, phrases, read_roles

INSTANT = "Instant Attention Mask"
WORD = "Word Mask"
_KEY = "latent_layers_instant_mask"
_CONDITIONINGS = {"text": "positive", "source_text": "negative"}


@dataclass(frozen=True)
class InstantMask:
    """What one run of Instant Attention Mask leaves.

    hard, soft    the last M_t and its map before the threshold, (1, H, W) at image size
    edited        the first seed's edit, (1, C, h, w) as a LATENT holds it
    roles         of the words of each text that was asked, in its order
    masks, maps   M_t and the refined map of every evaluation, (S, h, w) on the latent grid
    evaluations   pictures that went through the UNet
    """

    hard: Tensor
    soft: Tensor
    edited: Tensor
    roles: dict[str, tuple[Role, ...]]
    masks: Tensor
    maps: Tensor
    evaluations: int

    def roles_text(self) -> str:
        """A line for each text, and one for each of its words: `red +1 (similarity 1.00)`."""
        return "\n".join(line for text, roles in self.roles.items() for line in (f"{text}:", *map(str, roles)))

    def strip(self) -> Tensor:
        """M_t over the steps, IMAGE (1, H, W, 3)."""
        return strip(self.maps, self.masks)


class InstantBlend:
    """One run: the mask is made from every evaluation and holds the source outside it in the next.

    InstDiffEdit, section 4.3: x <- x_src + M_t * (x - x_src), x_src the source with the picture's
    own noise at the level that x is at now. It happens where the model is asked, so any sampler
    works, and the prediction is the source where M_t is 0. (UniPC asks with a copy of its x: there
    a cell that comes back into the mask goes on from near the source, not from it.)
    """

    def __init__(self, captures: Sequence[Capture], refinement: Refinements) -> None:
        """One capture for each text that the refinement takes."""
        self.captures = captures
        self.refinement = refinement
        self.masks: list[Tensor] = []
        self.maps: list[Tensor] = []
        self._source: Callable[[Tensor], Tensor] | None = None
        self._clean: Tensor | None = None

    def attach(self, model: ModelPatcher) -> None:
        """Put the wrappers on a model clone of one's own."""
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, _KEY, self.sampler_sample)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _KEY, self.predict_noise)

    def sampler_sample(
        self, executor: Callable[..., Tensor], guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any,
        noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Around the sampler: note the source, and blend what is returned."""
        sampling = guider.inner_model.model_sampling
        self._source = lambda sigma: sampling.noise_scaling(sigma, noise, latent_image)
        self._clean = latent_image
        end = sigmas[-1:].clone()  # uni_pc writes into the schedule that it is given
        samples = executor(guider, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs)
        if not self.masks:
            raise ValueError(
                f"{INSTANT}: the sampler has not asked the model once; raise strength or steps, or take another sampler"
            )
        return blend(samples, sampling.inverse_noise_scaling(end, self._source(end)), self._mask())

    def predict_noise(
        self, executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Around every evaluation: the last mask before, the next one after."""
        assert self._source is not None and self._clean is not None
        if self.masks:
            x = x.copy_(blend(x, self._source(timestep.flatten()[:1]), self._mask()))
        denoised = executor(x, timestep, *args, **kwargs)
        # where a cache has spared the evaluation the last mask is good still
        if not (self.masks and all(capture.skipped for capture in self.captures)):
            mask, refined = self.refinement([capture.take().mean(0).to(x.device) for capture in self.captures])
            self.masks.append(mask)
            self.maps.append(refined)
        return torch.where(self._mask() > 0, denoised, self._clean)

    def _mask(self) -> Tensor:
        """The latest M_t, (1, 1, h, w)."""
        return self.masks[-1][None, None]


def instant_mask(
    model: ModelPatcher,
    clip: Any,
    text: str,
    latent: Tensor,
    negative: list,
    *,
    seed: int = 0,
    seeds: int = 1,
    steps: int = 20,
    cfg: float = 7.5,
    sampler: str = "euler",
    scheduler: str = "normal",
    strength: float = 0.5,
    words: str = "",
    source_text: str = "",
    settings: Settings | None = None,
) -> InstantMask:
    """InstDiffEdit's first stage: edit a picture by a prompt, and find the mask on the way.

    text       the edit prompt: what the picture shows after the edit
    latent     the source (1, C, h, w) in LATENT's units
    seeds      pictures that are noised and denoised together; their attention is averaged
    strength   r, the share of `steps` that is noised and denoised, 0 < r < 1
    words      roles that the user gives to the words of `text`, see `instant_words.read_roles`
    source_text  what the source shows. It takes the place of `negative`, so that guidance leads from it
               to `text`, and what `text` replaces is looked for in its attention

    The UNet is evaluated as often as the plain edit would, and not once more. Raises ValueError
    for inputs that do not fit, before anything is encoded or loaded.
    """
    settings = settings if settings is not None else Settings()
    settings.check(INSTANT)
    if not 0.0 < strength < 1.0:
        raise ValueError(
            f"{INSTANT}: strength is {strength:g}; it has to be between 0 and 1: at 0 nothing is edited, at 1 nothing "
            "of the source is left (0.5 is a good start)"
        )
    if seeds < 1 or steps < 2:
        raise ValueError(f"{INSTANT}: seeds is {seeds} and steps is {steps}; use at least 1 seed and 2 steps")
    _check_latent(model, latent)
    blocks, grid = blocks_near(model, latent.shape, INSTANT), (latent.shape[-2], latent.shape[-1])
    prompt, source_prompt = _read(clip, text, INSTANT), None
    given = read_roles(words, prompt, INSTANT)
    if source_text.strip():
        source_prompt = _read(clip, source_text, f"{INSTANT}: source_text")
    asked = _asked(prompt, source_prompt, given, guided=cfg != 1)
    if source_prompt is not None:
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(source_text))
    captures = {name: Capture(blocks, one.length, _CONDITIONINGS[name]) for name, (one, _) in asked.items()}
    parts = [Refinement(one, grid, settings, roles, latent[0]) for one, roles in asked.values()]
    run = InstantBlend(tuple(captures.values()), Refinements(parts))

    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, sampler, scheduler).sigmas
    noised = min(max(round(strength * (len(sigmas) - 1)), 1), len(sigmas) - 2)
    source = latent.repeat(seeds, 1, 1, 1)
    patched = model
    for capture in captures.values():
        patched = apply_capture(patched, capture, INSTANT)
    run.attach(patched)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(clip.encode_from_tokens_scheduled(clip.tokenize(text)), negative)
    guider.set_cfg(cfg)
    noise: Any = comfy.sample.prepare_noise(source, seed)
    levels = sigmas[-(noised + 1) :].tolist()
    samples, evaluations = sample_counted(
        guider, noise, source, comfy.samplers.sampler_object(sampler), levels, seed, INSTANT, pictures=1
    )
    masks, maps = (torch.stack(planes).cpu() for planes in (run.masks, run.maps))
    height, width = _image_size(model, latent.shape)
    return InstantMask(
        hard=F.interpolate(masks[None, -1:], (height, width))[0],
        soft=resize(maps[-1:], height, width).clamp(0.0, 1.0),
        edited=intermediate(samples[:1]),
        roles={name: part.roles for name, part in zip(asked, parts, strict=True)},
        masks=masks,
        maps=maps,
        evaluations=evaluations,
    )


def _asked(prompt: Prompt, source: Prompt | None, given: Given, guided: bool) -> dict[str, tuple[Prompt, Given]]:
    """Which texts say where the edit is, by the name of their input, and what is known of their words.

    Roles that the user gives are roles of `text`, which is then asked alone. Without guidance the
    host does not evaluate the source's text.
    """
    if source is None:
        return {"text": (prompt, given)}
    gone, added = gone_and_added(prompt, source)
    if not gone and not added:
        raise ValueError(
            f"{INSTANT}: text has the same words as source_text ({listing(prompt.words)}); write into text what the "
            "edit should show"
        )
    if given != Given() or not guided:
        return {"text": (prompt, led_by(given, phrases(prompt, changed_words(prompt, source))))}
    asked = {}
    if gone:
        asked["source_text"] = (source, led_by(Given(), phrases(source, gone)))
    if added:
        asked["text"] = (prompt, led_by(Given(), phrases(prompt, added)))
    return asked


def _check_latent(model: ModelPatcher, latent: Tensor) -> None:
    latent_format: Any = model.get_model_object("latent_format")
    channels = latent_format.latent_channels
    if latent.is_nested or latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(
            f"{INSTANT}: latent has shape {tuple(latent.shape)}, the model takes (batch, {channels}, height, width); "
            "encode the picture with the VAE of this checkpoint"
        )
    if len(latent) != 1:
        raise ValueError(
            f"{INSTANT}: latent holds {len(latent)} pictures; give one at a time (Get Latent From Batch takes one out)"
        )


@dataclass(frozen=True)
class WordMask:
    """What one run of Word Mask leaves.

    hard, soft    (B, H, W) at image size: above the threshold, and before it in [0, 1]
    maps          of every evaluated level, noisiest first, (S, B, h, w) in [0, 1] on the attention's grid
    thresholds    of each picture
    evaluations   pictures that went through the UNet
    """

    hard: Tensor
    soft: Tensor
    maps: Tensor
    thresholds: tuple[float, ...]
    evaluations: int

    def strip(self) -> Tensor:
        """The maps over the levels, and what of each exceeds the threshold; IMAGE (B, H, W, 3)."""
        rows = zip(self.maps.unbind(1), self.thresholds, strict=True)
        return torch.cat([strip(maps, (maps > threshold).float()) for maps, threshold in rows])


class WordReading(comfy.samplers.Sampler):
    """The host's sampler interface: no sampling, one evaluation at each of the trajectory's own latents."""

    def __init__(self, trajectory: Trajectory, capture: Capture, words: Sequence[Word]) -> None:
        self.trajectory, self.capture, self.words = trajectory, capture, words
        self.attention: Tensor | None = None  # summed over the levels, (B, tokens, h, w)
        self.maps: list[Tensor] = []

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Evaluate the model at every sigma; returns the cleanest latent as it is.

        `latent_image` and `denoise_mask` belong to the interface and are not used.
        """
        x = noise
        per_image = noise.new_ones([len(noise)])
        levels = sigmas.tolist()
        for step in comfy.k_diffusion.sampling.trange(len(levels), disable=disable_pbar):
            x = self.trajectory.at(levels[step]).to(noise, copy=True)  # what is asked with it may write into it
            denoised = model_wrap(x, levels[step] * per_image, **extra_args)
            attention = self.capture.take()
            self.attention = attention if self.attention is None else self.attention + attention
            self.maps.append(named_map(attention, self.words))
            if callback is not None:
                callback(step, denoised, x, len(levels))
        return x


def word_mask(
    model: ModelPatcher,
    clip: Any,
    trajectory: Trajectory,
    text: str,
    words: str,
    *,
    steps: int = 10,
    start: float = 0.5,
    end: float = 0.9,
    threshold: float = AUTOMATIC,
    edges: bool = True,
) -> WordMask:
    """Where the named words are in a picture, read along its own trajectory.

    text        prompt that describes the picture
    words       the words of it that make the mask, see `attention.words.find_words`
    steps       levels of the trajectory that are read, spread evenly from `start` to `end`
                (percent of the schedule, 0 = pure noise); all of them where there are fewer
    threshold   on the map in [0, 1]; -1 is Otsu's, for each picture of its own
    edges       the map follows the edges of the trajectory's cleanest latent, see `masks.edges`

    One evaluation of the UNet, without guidance, for each level. Raises ValueError for inputs
    that do not fit, before anything is encoded or loaded.
    """
    check_threshold(threshold, WORD, "threshold")
    blocks = blocks_near(model, trajectory.shape, WORD)
    trajectory.check_model(model_family(model, WORD), f"{WORD}: trajectory")
    prompt = _read(clip, text, WORD)
    named = find_words(prompt, words, WORD)
    levels = _levels(model, trajectory, steps, start, end)

    capture = Capture(blocks, prompt.length)
    reading = WordReading(trajectory, capture, named)
    guider: Any = comfy.samplers.CFGGuider(apply_capture(model, capture, WORD))
    guider.inner_set_conds({"positive": clip.encode_from_tokens_scheduled(clip.tokenize(text))})
    guider.set_cfg(1.0)
    # Without a negative and at scale 1 the host evaluates the positive condition only.
    nothing = torch.zeros_like(trajectory.noisiest)
    _, evaluations = sample_counted(guider, nothing, nothing, reading, levels, 0, WORD)
    assert reading.attention is not None
    height, width = _image_size(model, trajectory.shape)
    plane = named_map(reading.attention.cpu(), named)
    if edges:
        plane = resize(plane, *trajectory.size)
        guides = trajectory.latents[-1].float()
        plane = min_max(torch.stack([GuidedFilter(g)(p) for g, p in zip(guides, plane, strict=True)]))
    soft = min_max(resize(plane, height, width))
    thresholds = tuple(otsu(plane) if threshold == AUTOMATIC else threshold for plane in soft)
    hard = torch.stack([(plane > value).float() for plane, value in zip(soft, thresholds, strict=True)])
    maps = torch.stack(reading.maps).cpu()
    return WordMask(hard, soft, maps, thresholds, evaluations)


def _levels(model: ModelPatcher, trajectory: Trajectory, steps: int, start: float, end: float) -> list[float]:
    """`steps` sigmas of a trajectory, noisiest first, spread evenly over those in the range."""
    check_range(start, end, WORD, ("start_percent", "end_percent"))
    if steps < 1:
        raise ValueError(f"{WORD}: steps is {steps}; read at least one level")
    sampling, span = model.get_model_object("model_sampling"), PercentRange(start, end)
    inside = [sigma for sigma in trajectory.sigmas.tolist() if sigma > 0 and span.contains(sampling, sigma)]
    if not inside:
        high, low = span.bounds(sampling)
        raise ValueError(
            f"{WORD}: the trajectory ({trajectory.steps} steps, sigma {float(trajectory.sigmas[0]):.4g} to "
            f"{float(trajectory.sigmas[-1]):.4g}) has no level from start_percent {start:g} to end_percent {end:g} "
            f"(sigma {high:.4g} to {low:.4g}); widen the range, or invert with the whole schedule"
        )
    chosen = torch.linspace(0, len(inside) - 1, min(steps, len(inside))).round().int().tolist()
    return [inside[position] for position in chosen]


def _read(clip: Any, text: str, where: str) -> Prompt:
    if clip is None:
        raise ValueError(f"{where}: clip is empty; this checkpoint has no text encoder, load one with Load CLIP")
    return read_prompt(clip, text, where)


def _image_size(model: ModelPatcher, latent: Sequence[int]) -> tuple[int, int]:
    """(H, W) of the picture that a latent (B, C, h, w) stands for."""
    latent_format: Any = model.get_model_object("latent_format")
    ratio = latent_format.spacial_downscale_ratio
    return latent[-2] * ratio, latent[-1] * ratio
