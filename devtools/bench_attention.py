"""What key masks and cross-attention capture cost: a full forward pass of an SD 1.5-size UNet, against the unpatched.

Random weights, real widths (860 M parameters), 512x512 pixels (a 64x64 latent), torch's
fused attention; bfloat16 on a GPU, float32 on a CPU (whose bfloat16 attention is slower).
All variants take turns inside one sampling run of the host, so that they meet the same
machine; a figure is the ratio of medians. Guidance is 1, i.e. the pass itself is masked.
The capture is of all tokens of the 16x16 level, five blocks.

Memory is the peak of what a pass allocates on top of weights and inputs, which is the
strict reading: with the 1.7 to 3.4 GB of weights counted in, every ratio would be 1.00.
On a GPU that is torch's own `max_memory_allocated`; on a CPU it is the running sum of
every allocation and release of torch's allocator during the pass (torch.profiler), so
scratch memory inside operators counts, memory of the maths libraries themselves does not.
"""

import statistics
import time
from collections.abc import Iterable
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models
import pack
import torch
from torch import Tensor

pack.load_pack()
from latent_layers.attention.capture import Capture  # noqa: E402
from latent_layers.attention.capture_host import apply_capture, blocks_near  # noqa: E402
from latent_layers.attention.host import apply_key_mask  # noqa: E402

LATENT = 64
TOKENS = 77
WHO = "bench attention"
# What the bars are in the issue; exclude has to get cheaper as the mask grows.
BARS = {
    "multiply_ratio": 1.05,
    "exclude_ratio_25": 1.00,
    "exclude_ratio_50": 1.00,
    "memory_ratio": 1.05,
    "capture_ratio": 1.10,
    "capture_memory_ratio": 1.05,
}
LABELS = {
    "multiply_ratio": "multiply, mask of 25 %",
    "exclude_ratio_25": "exclude, mask of 25 %",
    "exclude_ratio_50": "exclude, mask of 50 %",
    "soft_ratio": "soft, mask of 25 %",
    "memory_ratio": "peak memory, worst of these",
    "capture_ratio": "capture of the 16x16 level",
    "capture_memory_ratio": "its peak memory",
}


def full_size_model() -> comfy.model_patcher.ModelPatcher:
    """SD 1.5's UNet at its real size, as the host builds it, with random weights."""
    device = comfy.model_management.get_torch_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    settings = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "context_dim": 768,
        "adm_in_channels": None,
        "legacy": False,
        "dtype": dtype,
    }
    config = comfy.supported_models.SD15(settings)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=device)
    with torch.no_grad():
        for parameter in model.diffusion_model.parameters():
            parameter.uniform_(-0.02, 0.02)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def left_part(share: float) -> Tensor:
    """A mask (1, 512, 512) of the left `share` of the picture: the same share of keys on every grid."""
    mask = torch.zeros(1, LATENT * 8, LATENT * 8)
    mask[:, :, : round(share * LATENT * 8)] = 1.0
    return mask


def variants(model: comfy.model_patcher.ModelPatcher) -> dict[str, comfy.model_patcher.ModelPatcher]:
    """The unpatched model, every kind of key mask, and a capture."""

    def masked(mode: str, share: float) -> comfy.model_patcher.ModelPatcher:
        return apply_key_mask(model, left_part(share), mode=mode, guidance=1.0, start=0.0, end=1.0)

    return {
        "plain": model,
        "multiply_ratio": masked("multiply", 0.25),
        "exclude_ratio_25": masked("exclude", 0.25),
        "exclude_ratio_50": masked("exclude", 0.5),
        "soft_ratio": masked("soft", 0.25),
        "capture_ratio": apply_capture(model, Capture(blocks_near(model, (LATENT, LATENT), WHO), TOKENS), WHO),
    }


class Stopwatch(comfy.samplers.CFGGuider):
    """A guider that, where it should predict, measures passes of all variants in turn."""

    def measure(self, patched: dict[str, comfy.model_patcher.ModelPatcher], repeats: int) -> None:
        """Run one sampling step; fills `seconds` and `peaks` (bytes), by variant."""
        self.patched, self.repeats = patched, repeats
        self.seconds: dict[str, list[float]] = {name: [] for name in patched}
        self.peaks: dict[str, int] = {}
        latent = torch.zeros(1, 4, LATENT, LATENT)
        sampler = comfy.samplers.sampler_object("euler")
        self.sample(torch.randn_like(latent), latent, sampler, torch.tensor([7.0, 3.0]), disable_pbar=True)

    def predict_noise(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The measurement; what is returned does not matter."""
        options = {name: self._options(model) for name, model in self.patched.items()}

        def one_pass(name: str) -> None:
            comfy.samplers.calc_cond_batch(self.inner_model, [self.conds["positive"]], x, timestep, options[name])
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)

        for name in options:
            # also the warm-up: kernels are chosen and masks brought to their grids
            one_pass(name)
            self.peaks[name] = peak_bytes(lambda name=name: one_pass(name), x.device)
        for _ in range(self.repeats):
            for name in options:
                start = time.perf_counter()
                one_pass(name)
                self.seconds[name].append(time.perf_counter() - start)
        return x

    def _options(self, model: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
        """A variant's options with its wrappers, as the host prepares them for a run."""
        options = comfy.model_patcher.create_model_options_clone(model.model_options)
        comfy.sampler_helpers.prepare_model_patcher(model, self.conds, options)
        return options


def peak_bytes(work: Any, device: torch.device) -> int:
    """Largest amount of memory that is allocated at once during `work`, on top of what there was."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    results: Any = profile.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def run(
    seeds: Iterable[int] | None = None, repeats: int | None = None, only: Iterable[str] | None = None
) -> dict[str, float]:
    """Ratios to the unpatched pass, see LABELS. No scenes are needed: `seeds` is not used.

    `repeats` is the number of timed passes per variant (40 on a GPU, 3 on a CPU); `only` names
    the variants that are wanted, all of them when it is missing.
    """
    with torch.inference_mode():
        model = full_size_model()
        stopwatch = Stopwatch(model)
        stopwatch.set_conds([[torch.randn(1, TOKENS, 768), {}]], [])
        on_gpu = model.load_device.type == "cuda"
        patched = variants(model)
        wanted = {"plain", *(patched if only is None else only)}
        patched = {name: one for name, one in patched.items() if name in wanted}
        stopwatch.measure(patched, repeats or (40 if on_gpu else 3))
    medians = {name: statistics.median(seconds) for name, seconds in stopwatch.seconds.items()}
    figures = {name: medians[name] / medians["plain"] for name in medians if name != "plain"}
    peaks = {name: peak / stopwatch.peaks["plain"] for name, peak in stopwatch.peaks.items() if name != "plain"}
    if "capture_ratio" in peaks:
        figures["capture_memory_ratio"] = peaks.pop("capture_ratio")
    if peaks:
        figures["memory_ratio"] = max(peaks.values())
    figures["plain_seconds"] = medians["plain"]
    figures["plain_peak_mib"] = stopwatch.peaks["plain"] / 2**20
    return figures


def table(result: dict[str, float]) -> str:
    """The figures as lines of text, with the bars they have to stay under."""
    lines = ["Key masks and capture, SD 1.5-size UNet, 512x512, ratio to the unpatched pass"]
    for name, label in LABELS.items():
        bar = f"  (bar {BARS[name]:.2f})" if name in BARS else ""
        lines.append(f"  {label:28s} {result[name]:.3f}{bar}")
    lines.append(
        f"  the unpatched pass: {result['plain_seconds']:.3f} s, {result['plain_peak_mib']:.0f} MiB on top of weights"
    )
    return "\n".join(lines)
