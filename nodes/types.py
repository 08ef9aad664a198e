"""Types that travel between the pack's nodes."""

from comfy_api.latest import io

Trajectory = io.Custom("TRAJECTORY")
Layers = io.Custom("EDIT_LAYERS")  # list[fusion.layers.Layer]
