"""Key masks and Keep Source on ComfyUI's models: checks, patches, and the extra pass of guidance."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.samplers
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..inversion.host import model_family, pins
from ..inversion.trajectory import Trajectory
from ..masks.grid import Window, as_mask, check_aspect, check_batch, check_painted, union
from .blocks import Block, select
from .keep_source import WHO as KEEP_SOURCE
from .keep_source import KeepSource
from .key_mask import REPLACED_KEY, WINDOWS_KEY, KeyMask, KeyMaskPatch
from .schedule import PercentRange, check_range, guidance_at, guided

KEY_MASK = "Key-Masked Self-Attention"
KEEP_SOURCE_KEY = "latent_layers_keep_source"
KEY_MASK_KEY = "latent_layers_key_mask"

# Attention functions of the host that refuse a mask (flash, and loudly), write it out as a
# whole matrix (xformers) or depend on the version they find (sage). Fused attention of torch
# takes a row of biases as it is.
_NO_BIAS = ("attention_flash", "attention_xformers", "attention_sage", "attention3_sage")


def self_attentions(model: ModelPatcher, who: str) -> list[Block]:
    """Every self-attention of a UNet, in the order of evaluation.

    Raises ValueError for models that have none.
    """
    unet = model.model.diffusion_model
    blocks = list(_self_attentions(unet)) if isinstance(unet, UNetModel) else []
    if not blocks:
        raise ValueError(
            f"{who}: the model is a {type(model.model).__name__} without UNet self-attention; "
            f"use a checkpoint of the SD 1.x, SD 2.x or SDXL family"
        )
    return blocks


def _self_attentions(unet: UNetModel) -> Iterator[Block]:
    level = 0
    middle = [unet.middle_block] if unet.middle_block is not None else []
    for side, modules in (("input", unet.input_blocks), ("middle", middle), ("output", unet.output_blocks)):
        for number, module in enumerate(modules):
            for layer in module.children():
                resizes = isinstance(layer, ResBlock) and layer.updown
                if isinstance(layer, (Downsample, Upsample)) or resizes:
                    level += 1 if side == "input" else -1
                elif isinstance(layer, host_attention.SpatialTransformer):
                    if isinstance(layer, host_attention.SpatialVideoTransformer):
                        continue
                    for depth, block in enumerate(layer.transformer_blocks):
                        if not block.disable_self_attn:
                            yield Block(side, number, depth, level)


def _backend(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The attention function to call where a bias is needed."""
    return host_attention.attention_pytorch if attention.__name__ in _NO_BIAS else attention


def _attend(
    patch: KeyMaskPatch, previous: Callable[..., Tensor] | None, attention: Callable, *args, **kwargs
) -> Tensor:
    """The host's `optimized_attention_override`, in front of the one that was there."""
    if patch.has_pending:
        attention = _backend(attention)
    return patch.attend(attention if previous is None else partial(previous, attention), *args, **kwargs)


def _windows(conds: list[list[dict[str, Any]] | None], x: Tensor) -> dict[Any, Window]:
    """Which part of the latent each conditioning with an area covers, by its uuid."""
    height, width = x.shape[-2:]
    windows = {}
    for cond in (cond for group in conds if group is not None for cond in group):
        if "area" in cond and "uuid" in cond:
            rows, columns, top, left = cond["area"][:4]
            rows, columns = min(rows, height - top), min(columns, width - left)
            windows[cond["uuid"]] = (top / height, (top + rows) / height, left / width, (left + columns) / width)
    return windows


def _patched(model_options: dict[str, Any], patch: "Stack", conds: list, x: Tensor) -> dict[str, Any]:
    """A copy of model options for one evaluation, in which a key mask acts.

    Nothing of the given options is changed, so outside this evaluation nothing is patched.
    """
    options = model_options.copy()
    transformer = options["transformer_options"] = options.get("transformer_options", {}).copy()
    patches = transformer["patches"] = transformer.get("patches", {}).copy()
    present = patches.get("attn1_patch", [])
    ours = next((p for p in present if isinstance(p, KeyMaskPatch)), None)
    joined = patch.joined(ours)
    # last, so that patches of other packs see every key in its place
    patches["attn1_patch"] = [p for p in present if p is not ours] + [joined]
    if joined.may_bias:
        previous = transformer.get("optimized_attention_override")
        transformer["optimized_attention_override"] = partial(_attend, joined, previous)
        patches["attn1_output_patch"] = [joined.forget, *patches.get("attn1_output_patch", [])]
    transformer[WINDOWS_KEY] = _windows(conds, x)
    transformer[REPLACED_KEY] = frozenset(transformer.get("patches_replace", {}).get("attn1", ()))
    return options


class Stack:
    """A key mask, alone or together with those that another node has put on the same pass."""

    def __init__(self, key_mask: KeyMask) -> None:
        self.patch = KeyMaskPatch([key_mask])
        self._joined: dict[int, tuple[KeyMaskPatch, KeyMaskPatch]] = {}

    def joined(self, other: KeyMaskPatch | None) -> KeyMaskPatch:
        """One patch that does what `other` and this one do."""
        if other is None:
            return self.patch
        if id(other) not in self._joined:
            self._joined[id(other)] = (other, KeyMaskPatch([*other.masks, *self.patch.masks]))
        return self._joined[id(other)][1]

    def cleanup(self) -> None:
        """Free what was made for a run."""
        self.patch.cleanup()
        for _, patch in self._joined.values():
            patch.cleanup()
        self._joined.clear()


class KeyMaskGuidance:
    """A key mask on one model clone, as wrappers of the host's sampling.

    Guidance 1: every evaluation in the range is masked. Any other: one more evaluation of
    the positive conditioning, masked, whose difference to the plain one is added after CFG.
    Whether the range is reached is decided once per evaluation, before the model runs.
    """

    def __init__(
        self, late: KeyMask, early: KeyMask, early_end: float, span: PercentRange, guidance: float, guidance_end: float
    ) -> None:
        """`early` (with the artifact mask) acts from the range's start to `early_end`, `late` after it."""
        self.late = Stack(late)
        self.early = self.late if early is late else Stack(early)
        self.range = span
        self.early_range = PercentRange(span.start, early_end)
        self.guidance, self.guidance_end = guidance, guidance_end
        self.masks: dict[str, Tensor] = {}  # as they were given, by their inputs' names
        self._plain: Tensor | None = None  # of the evaluation that is under way

    @property
    def replaces(self) -> bool:
        """Whether the masked prediction simply takes the place of the plain one."""
        return self.guidance == 1 and self.guidance_end == 1

    def attach(self, model: ModelPatcher) -> None:
        """Put the wrappers on a model clone of one's own."""
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY_MASK_KEY, self.outer_sample)
        if self.replaces:
            model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY_MASK_KEY, self.calc_cond_batch)
        else:
            model.set_model_sampler_post_cfg_function(self.post_cfg)
            # first of them: others change what was predicted, and are not to be guided against
            options: dict[str, Any] = model.model_options
            options["sampler_pre_cfg_function"] = [self.pre_cfg, *options.get("sampler_pre_cfg_function", [])]
        model.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY_MASK_KEY, lambda patcher: self.cleanup())

    def outer_sample(self, executor: Callable[..., Tensor], noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Before the model is loaded: does the mask fit the latent? Raises ValueError where not."""
        if noise.ndim != 4:
            raise ValueError(
                f"{KEY_MASK}: the latent has {noise.ndim} dimensions; pictures (4) can be masked, not video"
            )
        for name, mask in self.masks.items():
            check_batch(mask, noise.shape[0], KEY_MASK, name)
            check_aspect(mask, noise.shape, KEY_MASK, name)
        options = executor.class_obj.model_options.get("transformer_options", {})
        if not self.replaces and getattr(options.get("easycache"), "name", "") == "EasyCache":
            raise ValueError(
                f"{KEY_MASK}: EasyCache gives back what it keeps of a step in place of the evaluations that guidance "
                "compares; take it off this model, or set guidance to 1"
            )
        return executor(noise, *args, **kwargs)

    def _acting(self, sampling: Any, sigma: float) -> Stack | None:
        if not self.range.contains(sampling, sigma):
            return None
        return self.early if self.early_range.contains(sampling, sigma) else self.late

    def calc_cond_batch(
        self, executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        """Guidance 1: the evaluation itself is masked, for every conditioning."""
        acting = self._acting(model.model_sampling, float(timestep.flatten()[0]))
        if acting is not None:
            model_options = _patched(model_options, acting, conds, x)
        return executor(model, conds, x, timestep, model_options)

    def pre_cfg(self, args: dict[str, Any]) -> list[Tensor]:
        """Other guidances: note the plain prediction."""
        self._plain = args["conds_out"][0]
        return args["conds_out"]

    def post_cfg(self, args: dict[str, Any]) -> Tensor:
        """Other guidances: result + g * (masked - plain) on the positive conditioning."""
        # guiders that call CFG alone have none noted
        plain, self._plain = args["cond_denoised"] if self._plain is None else self._plain, None
        model, x, timestep, cond = args["model"], args["input"], args["sigma"], args["cond"]
        sigma = float(timestep.flatten()[0])
        acting = self._acting(model.model_sampling, sigma)
        g = self._guidance(model.model_sampling, sigma) if acting is not None else 0.0
        if acting is None or g == 0:
            return args["denoised"]
        if cond is None:
            raise ValueError(f"{KEY_MASK}: this guider gives no positive conditioning to guide with; set guidance to 1")
        options = _patched(args["model_options"], acting, [cond], x)
        (masked,) = comfy.samplers.calc_cond_batch(model, [cond], x, timestep, options)
        return guided(args["denoised"], masked, plain, g)

    def _guidance(self, sampling: Any, sigma: float) -> float:
        if self.guidance == self.guidance_end:
            return self.guidance
        return guidance_at(self.range.progress(sampling, sigma), self.guidance, self.guidance_end)

    def cleanup(self) -> None:
        """Free what was made for a run (called when sampling ends, also on an error)."""
        self._plain = None
        for held in (self.late, self.early, self.range, self.early_range):
            held.cleanup()


def apply_key_mask(
    model: ModelPatcher,
    mask: Tensor,
    *,
    mode: str = "multiply",
    guidance: float = 7.5,
    guidance_end: float | None = None,
    start: float = 0.0,
    end: float = 0.8,
    artifact_mask: Tensor | None = None,
    artifact_end: float = 0.5,
    ignore_mask: Tensor | None = None,
    blocks: str = "all",
    mask_on: str = "k",
) -> ModelPatcher:
    """A clone of a model whose self-attention cannot look at the masked area (DesignEdit, eq. 1).

    mask           (B, H, W) at image size, 1 = hidden; B is 1 or the image batch
    mode           multiply (the paper), exclude or soft, see `attention.key_mask`
    guidance       g in eps_plain + g * (eps_masked - eps_plain); 1 needs no extra evaluation, 0 patches nothing
    guidance_end   g at the end of the range, linear in percent between; None: the same all the way
    start, end     range in percent of the schedule, 0 = pure noise
    artifact_mask  hidden as well, up to `artifact_end` (within the range)
    ignore_mask    hidden as well, over the whole range
    blocks         which self-attentions, see `attention.blocks`
    mask_on        k; q and v are the paper's ablation

    Raises ValueError for bad masks, ranges, block names and models; a mask whose shape or
    batch does not fit the latent is found when sampling begins, before the model is loaded.
    """
    chosen = select(blocks, self_attentions(model, KEY_MASK), KEY_MASK)
    check_range(start, end, KEY_MASK)
    hidden = as_mask(mask, KEY_MASK)
    check_painted(hidden, KEY_MASK)
    extras = {"artifact_mask": artifact_mask, "ignore_mask": ignore_mask}
    others = {name: as_mask(extra, KEY_MASK, name) for name, extra in extras.items() if extra is not None}
    images = max(len(hidden), *(len(extra) for extra in others.values()), 1)
    for name, extra in {"mask": hidden, **others}.items():
        check_batch(extra, images, KEY_MASK, name)
        check_aspect(extra, hidden.shape, KEY_MASK, name)
    always = union(hidden, others.get("ignore_mask"))
    early = union(always, others.get("artifact_mask"))
    if others and bool((early >= 1).flatten(1).all(dim=1).any()):
        raise ValueError(
            f"{KEY_MASK}: mask and {' and '.join(others)} cover the whole picture together; leave some of it"
        )
    patched = model.clone()
    final = guidance if guidance_end is None else guidance_end
    if guidance == 0 and final == 0:
        return patched
    late_mask = KeyMask(always, mode, chosen, mask_on)
    has_artifacts = "artifact_mask" in others and artifact_end > start
    early_mask = KeyMask(early, mode, chosen, mask_on) if has_artifacts else late_mask
    span = PercentRange(start, end)
    acting = KeyMaskGuidance(late_mask, early_mask, min(artifact_end, end), span, guidance, final)
    acting.masks = {"mask": hidden, **others}
    acting.attach(patched)
    return patched


def apply_keep_source(
    model: ModelPatcher, trajectory: Trajectory, mask: Tensor, *, start: float = 0.0, end: float = 1.0
) -> ModelPatcher:
    """A clone of a model that samples inside the mask only (DesignEdit, eq. 2), see `attention.keep_source`.

    trajectory   of the source, made with the schedule that is sampled
    mask         (B, H, W) at image size, 1 = edit here, fractions mix; B is 1 or the image batch
    start, end   range in percent of the schedule; with end = 1 the clean source is returned outside the mask

    Raises ValueError for bad masks and ranges, and a trajectory of another model; one of another size,
    schedule or batch is found when sampling begins, before the model is loaded.
    """
    check_range(start, end, KEEP_SOURCE)
    edited = as_mask(mask, KEEP_SOURCE)
    check_painted(edited, KEEP_SOURCE, verb="edit")
    check_aspect(edited, trajectory.shape, KEEP_SOURCE)
    check_batch(edited, max(len(edited), trajectory.batch), KEEP_SOURCE)
    trajectory.check_model(model_family(model, KEEP_SOURCE), f"{KEEP_SOURCE}: trajectory")
    patched = model.clone()
    keep = KeepSource(trajectory, edited, start, end, pins())
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEEP_SOURCE_KEY, keep.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEEP_SOURCE_KEY, keep.sampler_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEEP_SOURCE_KEY, keep.predict_noise)
    patched.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEEP_SOURCE_KEY, lambda patcher: keep.cleanup())
    return patched
