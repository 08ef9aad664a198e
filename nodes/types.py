"""Types that travel between the pack's nodes."""

from comfy_api.latest import io

Trajectory = io.Custom("TRAJECTORY")
WordTimings = io.Custom("LATENT_LAYERS_WORD_TIMINGS")  # attention.timings.WordTimings
Layers = io.Custom("EDIT_LAYERS")  # list[fusion.layers.Layer]
