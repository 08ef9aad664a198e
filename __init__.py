"""Latent Layers: edit a picture as layers in latent space, inside ComfyUI.

The host is imported only when it asks for the nodes, so that the algorithms
(inversion, attention, masks, toyscenes) can be used and tested with torch alone.
"""

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"  # help pages of the nodes


async def comfy_entrypoint():
    """Entry point that ComfyUI calls to learn the pack's nodes."""
    from .nodes import LatentLayersExtension

    return LatentLayersExtension()
