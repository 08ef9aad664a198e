"""Node classes: schema, validation and one call each. One file per family."""

from typing_extensions import override

from comfy_api.latest import ComfyExtension, io


class LatentLayersExtension(ComfyExtension):
    """Lists the pack's nodes for the host."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []
