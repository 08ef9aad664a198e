"""Node classes: schema, validation and one call each. One file per family."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from . import (
    adaptive,
    attention,
    candidates,
    canvas,
    instant,
    layer_file,
    layered,
    layers,
    masks,
    plan,
    proximal,
    sam,
    soft_edit,
    toy,
    trajectory,
)

NODES: list[type[io.ComfyNode]] = [
    *trajectory.NODES,
    *attention.NODES,
    *masks.NODES,
    *instant.NODES,
    *candidates.NODES,
    *sam.NODES,
    *soft_edit.NODES,
    *adaptive.NODES,
    *proximal.NODES,
    *layered.NODES,
    *layers.NODES,
    *canvas.NODES,
    *plan.NODES,
    *layer_file.NODES,
    *toy.NODES,
]


class LatentLayersExtension(ComfyExtension):
    """Lists the pack's nodes for the host."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
