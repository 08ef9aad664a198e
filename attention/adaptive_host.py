"""The Adaptive Attention Guider on ComfyUI's models: source and edit denoised side by side.

The two branches are two evaluations of the host's, one after the other: the source's latent with
the source's conditioning, then the edit's latent with its own and the negative one. So everything
of the host and of other packs, hooks, ControlNets, areas, batches that are split for memory, sees
two ordinary evaluations. In the UNet calls of the first, attention leaves what that of the second
takes (`attention.adaptive`). Three pictures go through the UNet at each step, two at CFG 1.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..inversion.host import model_family, pins
from ..inversion.proximal_host import KEY as PROXIMAL
from ..inversion.reading import SourceLatents, function_name
from ..inversion.trajectory import Trajectory
from ..masks.grid import as_mask, check_aspect, check_batch
from .adaptive import (
    MASK_MODES,
    SPATIAL,
    WHO,
    AdaptiveRun,
    AttentionPass,
    BlockKey,
    EditPass,
    SourcePass,
    SpatialWeight,
)
from .blocks import describe
from .capture_host import blocks_near
from .host import self_attentions
from .timings import WordTimings

LAMBDA_S = 1.0
LAMBDA_SV = 2.0  # the article's 0.8 to 1 is meant for cosines, which are larger than correlations
HOLD = 0.0
_KEY = "latent_layers_adaptive_attention"


class AdaptiveAttentionGuider(comfy.samplers.CFGGuider):
    """CFG on an edit branch whose cross-attention is mixed with a source branch's; see `adaptive_guider`.

    Holds what it was given. What belongs to a run is made when it begins and dropped when it ends.
    """

    def __init__(
        self,
        model: ModelPatcher,
        timings: WordTimings,
        weight: Callable[[], SpatialWeight],
        mask: Tensor | None,
        mapped: bool,
        trajectory: Trajectory | None,
        hold: float,
        pair: bool,
    ) -> None:
        """mapped: the timings' own map says where, not `mask` alone or what each evaluation shows."""
        super().__init__(model)
        self.timings, self.weight, self.mask, self.mapped = timings, weight, mask, mapped
        self.trajectory, self.hold, self.pair = trajectory, hold, pair
        self._run: AdaptiveRun | None = None
        self._source: SourceLatents | None = None
        self._pictures = 0

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., None] | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """As CFGGuider's; without a trajectory the batch is doubled on the way, source before edit.

        Returns the edit's latents, or with `pair` the source's and then the edit's.
        """
        if sigmas.shape[-1] == 0:
            return latent_image
        self._check(noise, sampler, sigmas)
        if self.trajectory is None:
            # The host itself repeats a noise mask to the batch.
            noise, latent_image = torch.cat([noise, noise]), torch.cat([latent_image, latent_image])
            callback = callback if callback is None or self.pair else partial(_report_edit, callback)
        samples = super().sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        return samples if self.trajectory is not None or self.pair else samples.chunk(2)[1]

    def _check(self, noise: Tensor, sampler: Any, sigmas: Tensor) -> None:
        """Before the model is loaded: does everything fit together? Raises ValueError where not."""
        if noise.is_nested or noise.ndim != 4:
            raise ValueError(f"{WHO}: the latent is not a batch of pictures; video cannot be edited")
        if self.mask is not None:
            check_batch(self.mask, noise.shape[0], WHO)
            check_aspect(self.mask, noise.shape, WHO)
        if self.mapped:
            self._check_map(noise)
            if len(noise) > 1:
                logging.warning(
                    "Latent Layers %s: the map of timings, of one picture, says where all %d are edited; where they "
                    "differ, edit one at a time, or give a mask for each with mask_mode replace", WHO, len(noise),
                )  # fmt: skip
        if self.trajectory is None:
            if "cfg_pp" in function_name(sampler):
                raise ValueError(
                    f"{WHO}: samplers with cfg_pp in their name keep the guidance of one picture, and a generated "
                    "source and its edit are two; choose another (euler, dpmpp_2m), or give a trajectory"
                )
            if self.model_patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, PROXIMAL):
                raise ValueError(
                    f"{WHO}: the model has Proximal Guidance, which draws back to a picture of your own; connect its "
                    "trajectory here too, or take it off the model"
                )
            return
        self.trajectory.check_size(noise.shape, f"{WHO}: trajectory")
        self.trajectory.check_reaches([sigma for sigma in sigmas.tolist() if sigma > 0], WHO, "")

    def _check_map(self, noise: Tensor) -> None:
        """Whether the timings' own map can be of the picture that is sampled."""
        try:
            check_aspect(self.timings.saliency[None], noise.shape, WHO)
        except ValueError:
            height, width = self.timings.saliency.shape
            raise ValueError(
                f"{WHO}: the map of timings is {width}x{height}, another shape than the latent's "
                f"{noise.shape[-1]}x{noise.shape[-2]} cells; make the timings with this picture's trajectory"
            ) from None

    def inner_sample(
        self, noise: Tensor, latent_image: Tensor, device: Any, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The model is loaded: prepare the run, and drop it when it ends, also on an error."""
        sampling: Any = self.model_patcher.get_model_object("model_sampling")
        held_above = [float(sampling.percent_to_sigma(tau)) for tau in self.timings.token_taus().tolist()]
        blocks = _structure(self.model_patcher, noise.shape)
        hold_above = float(sampling.percent_to_sigma(self.hold))
        try:
            self._run = AdaptiveRun(self.timings, self.weight(), held_above, hold_above, blocks)
            if self.trajectory is None:
                self._pictures = len(noise) // 2
            else:
                self._source = SourceLatents(self.trajectory, sigmas.tolist(), noise, pins())
                self._pictures = len(noise)
            return super().inner_sample(noise, latent_image, device, sampler, sigmas, *args, **kwargs)
        finally:
            self._run = self._source = None

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006  the host's own signature
        seed: int | None = None,
    ) -> Tensor:
        """One evaluation: the source's branch, then the edit's with what that has left."""
        run = self._run
        assert run is not None
        run.begin(float(timestep.flatten()[0]), x.device)
        try:
            # For every area in the negative one the host adds a piece to the others, which are whole without it.
            for name in ("source", "positive"):
                self.conds[name] = [entry for entry in self.conds[name] if "area" not in entry]
            if self._source is None:
                return self._predict_pair(run, x, timestep, model_options, seed)
            return self._predict_edit(run, self._source, x, timestep, model_options, seed)
        finally:
            run.end()

    def _predict_edit(
        self,
        run: AdaptiveRun,
        source: SourceLatents,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None,
    ) -> Tensor:
        sigma = float(timestep.flatten()[0])
        if run.needs_source:
            options = self._options(model_options, run, "source", SourcePass)
            comfy.samplers.calc_cond_batch(
                self.inner_model, [self.conds["source"]], source.at(sigma).expand_as(x).contiguous(), timestep, options
            )
        denoised = super().predict_noise(x, timestep, self._options(model_options, run, "positive", EditPass), seed)
        source.prefetch_after(sigma)
        return denoised

    def _predict_pair(
        self, run: AdaptiveRun, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None
    ) -> Tensor:
        if len(x) != 2 * self._pictures:
            raise ValueError(
                f"{WHO}: {len(x)} picture(s) are sampled instead of {2 * self._pictures}, source and edit; connect the "
                "trajectory to this node too, or sample with SamplerCustomAdvanced"
            )
        (x_source, x), timestep = x.chunk(2), timestep[: self._pictures]
        source = comfy.samplers.sampling_function(
            self.inner_model, x_source, timestep, self.conds.get("negative"), self.conds["source"], self.cfg,
            self._options(model_options, run, "source", SourcePass), seed,
        )  # fmt: skip
        edit = super().predict_noise(x, timestep, self._options(model_options, run, "positive", EditPass), seed)
        return torch.cat([source, edit])

    def _options(
        self, model_options: dict[str, Any], run: AdaptiveRun, branch: str, kind: type[AttentionPass]
    ) -> dict[str, Any]:
        """Model options for one evaluation, in which a branch's attention is watched; the given ones stay."""
        uuids = frozenset(entry["uuid"] for entry in self.conds[branch])
        transformer = model_options.get("transformer_options", {})
        wrappers = transformer.get("wrappers", {})
        unet = {**wrappers.get(WrappersMP.DIFFUSION_MODEL, {}), _KEY: [partial(_diffusion_model, run, uuids, kind)]}
        wrappers = {**wrappers, WrappersMP.DIFFUSION_MODEL: unet}
        return {**model_options, "transformer_options": {**transformer, "wrappers": wrappers}}


def _report_edit(callback: Callable[..., None], step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
    """What previews see of a pair: the edit."""
    callback(step, denoised.chunk(2)[1], x.chunk(2)[1], total_steps)


def _diffusion_model(
    run: AdaptiveRun,
    branch: frozenset[Any],
    kind: type[AttentionPass],
    executor: Callable[..., Tensor],
    x: Tensor,
    timesteps: Tensor | None = None,
    context: Tensor | None = None,
    y: Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] = {},  # noqa: B006  the host's own signature
    **kwargs: Any,
) -> Tensor:
    """A call of the UNet, where the options of all packs and hooks are final: if the branch is in it, watched."""
    uuids = transformer_options.get("uuids", [])
    chunks = [number for number, uuid in enumerate(uuids) if uuid in branch]
    if chunks and run.needs_source:
        images = len(x) // len(uuids)
        rows = [slice(number * images, (number + 1) * images) for number in chunks]
        transformer_options = _patched(transformer_options, kind(run, rows), bool(run.hold_blocks))
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def _patched(options: dict[str, Any], branch: AttentionPass, holds: bool) -> dict[str, Any]:
    """Transformer options for one call of the UNet, in which its attention belongs to a branch."""
    patches = options.get("patches", {})
    replacements = options.get("patches_replace", {})
    attn2 = {block: partial(branch.replaced, other) for block, other in replacements.get("attn2", {}).items()}
    ours = {
        # first: they have to see what the host itself hands in
        "attn2_patch": [branch.mark, *patches.get("attn2_patch", [])],
        "attn2_output_patch": [branch.forget, *patches.get("attn2_output_patch", [])],
    }
    if holds:
        ours["attn1_patch"] = [branch.self_mark, *patches.get("attn1_patch", [])]
    return {
        **options,
        "patches": {**patches, **ours},
        "patches_replace": {**replacements, "attn2": attn2},
        "optimized_attention_override": partial(_attend, branch, options.get("optimized_attention_override")),
    }


def _attend(
    branch: AttentionPass,
    previous: Callable[..., Tensor] | None,
    attention: Callable[..., Tensor],
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The host's `optimized_attention_override`, in front of the one that was there."""
    return branch.attend(attention if previous is None else partial(previous, attention), *args, **kwargs)


def _structure(model: ModelPatcher, latent: Sequence[int]) -> frozenset[BlockKey]:
    """Self-attentions of the level nearest to 16x16 and of the coarser ones: where the layout is."""
    level = next(iter(blocks_near(model, latent, WHO))).level
    return frozenset(block.key for block in self_attentions(model, WHO) if block.level >= level)


def adaptive_guider(
    model: ModelPatcher,
    source: list,
    edit: list,
    negative: list | None,
    cfg: float,
    timings: WordTimings,
    *,
    lambda_s: float = LAMBDA_S,
    lambda_sv: float = LAMBDA_SV,
    trajectory: Trajectory | None = None,
    mask: Tensor | None = None,
    mask_mode: str = "multiply",
    hold: float = 0.0,
    pair: bool = False,
    spatial: str = SPATIAL[0],
) -> AdaptiveAttentionGuider:
    """A guider that edits softly, word by word and pixel by pixel (AdapEdit, equations 4, 8 and 9).

    source, edit  CONDITIONING of the two prompts of `timings`
    negative      CONDITIONING; None with a trajectory: the source's takes its place, so that guidance
                  leads from the source's text to the edit's, and nothing is guided where they agree
    lambda_s      strength of the edit: 0 is the source, 1 mixes by S_V alone
    lambda_sv     factor of S_V
    trajectory    of the source, from which sampling has to start; None: a source is generated beside
                  the edit, from the same noise
    mask          (B, H, W) at image size, B 1 or the batch; multiplies S_V or replaces it (`mask_mode`)
    hold          share of the schedule, from pure noise, in which self-attention keeps the source's structure
    pair          return the generated source before the edit
    spatial       moving: S_V is read at every evaluation; fixed: it is the timings' own

    Raises ValueError for inputs that do not fit; sizes and schedules are compared when sampling
    begins, before the model is loaded.
    """
    for name, value, most in (("lambda_s", lambda_s, 1.0), ("lambda_sv", lambda_sv, 4.0), ("hold", hold, 1.0)):
        if not 0.0 <= value <= most:
            raise ValueError(f"{WHO}: {name} is {value:g}; use a number from 0 to {most:g}")
    for name, value, options in (("mask_mode", mask_mode, MASK_MODES), ("spatial", spatial, SPATIAL)):
        if value not in options:
            raise ValueError(f"{WHO}: {name} is {value!r}; use {' or '.join(options)}")
    _check_block(model, timings)
    _check_prompt(source, timings.alignment.source.length, "source")
    _check_prompt(edit, timings.alignment.edit.length, "edit")
    family = model_family(model, WHO)
    if trajectory is not None:
        trajectory.check_model(family, f"{WHO}: trajectory")
        if pair:
            raise ValueError(f"{WHO}: pair is on, but the source comes from a trajectory; turn it off")
    elif negative is None and cfg != 1.0:
        raise ValueError(
            f"{WHO}: negative is empty, and without a trajectory guidance needs one; connect CLIP Text Encode "
            "(an empty prompt will do), or set cfg to 1"
        )
    if mask is not None:
        mask = as_mask(mask, WHO)
        if not bool(mask.any()):
            raise ValueError(f"{WHO}: mask is empty (all 0); paint the area to edit")
    weight = partial(SpatialWeight, timings, lambda_s, lambda_sv, mask, mask_mode, spatial)
    mapped = spatial == "fixed" and (mask is None or mask_mode == "multiply")
    guider: Any = AdaptiveAttentionGuider(model, timings, weight, mask, mapped, trajectory, hold, pair)
    guider.inner_set_conds({"positive": edit, "source": source})
    if negative is not None or trajectory is not None:
        guider.inner_set_conds({"negative": source if negative is None else negative})
    guider.set_cfg(cfg)
    return guider


def _check_block(model: ModelPatcher, timings: WordTimings) -> None:
    """Whether the timings' hidden states are of a model like this one."""
    having = self_attentions(model, WHO)
    width = _width(model, timings.block) if timings.block in {block.key for block in having} else None
    if width != len(timings.keyword):
        raise ValueError(
            f"{WHO}: timings are of another model, of its block {timings.block} with {len(timings.keyword)} channels; "
            f"make them with this one, which has attention in {describe(having)}"
        )


def _width(model: ModelPatcher, block: BlockKey) -> int:
    """Channels of a transformer block's hidden states."""
    unet: Any = model.model.diffusion_model
    side, number, depth = block
    module = unet.middle_block if side == "middle" else getattr(unet, f"{side}_blocks")[number]
    transformer = next(layer for layer in module.children() if isinstance(layer, host_attention.SpatialTransformer))
    attention: Any = transformer.transformer_blocks[depth]
    return attention.norm2.normalized_shape[0]


def _check_prompt(conditioning: list, tokens: int, name: str) -> None:
    if not conditioning:
        raise ValueError(f"{WHO}: {name} is empty; connect CLIP Text Encode with the {name} prompt")
    # ranges of time are one prompt still: of the conditioning, or of hooks on CLIP
    ranges = {"start_percent", "clip_start_percent"}
    if len(conditioning) > 1 and any(ranges.isdisjoint(options) for _, options in conditioning):
        raise ValueError(
            f"{WHO}: {name} combines {len(conditioning)} prompts, but words are matched in one; "
            "connect CLIP Text Encode"
        )
    for embedding, options in conditioning:
        if found := {"area", "mask", "default"} & set(options):
            raise ValueError(
                f"{WHO}: {name} is limited to a part of the picture ({', '.join(sorted(found))}); connect the plain "
                "conditioning, and say where to edit with mask"
            )
        if embedding.shape[1] != tokens:
            raise ValueError(
                f"{WHO}: {name} has {embedding.shape[1]} tokens, but the {name} prompt of the timings has {tokens}; "
                "encode the same text with the same CLIP"
            )
