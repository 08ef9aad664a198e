"""A second task for the UNet while it trains: say which shape lies where.

Colours are soon learned from the noise error; which of ten outlines a word means is a matter
of few pixels and of few timesteps, and is learned far more slowly.
Two linear heads name the shape in every cell of the coarse levels, and their
cross-entropy, which no noise blurs, teaches it (after REPA, arXiv 2410.06940, whose
features come from a trained encoder; here the scene itself knows). The heads are thrown
away when the weights are written.
"""

import dataclasses
from typing import Any

import numpy as np
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from .model import UNET
from .scenes import SHAPES, Scene

CELLS = 16  # cells along the side of the finer of the two levels


class ShapeHeads(nn.Module):
    """Reads the features at 8×8 (middle block) and at 16×16 (decoder) of the UNet that it is hooked to."""

    def __init__(self, unet: UNetModel):
        super().__init__()
        base, levels = UNET["model_channels"], UNET["channel_mult"]
        self.coarse = nn.Conv2d(base * levels[2], len(SHAPES) + 1, 1)
        self.fine = nn.Conv2d(base * levels[1], len(SHAPES) + 1, 1)
        self.features: dict[str, Tensor] = {}
        # the host runs the blocks' layers one by one, so a hook on a block would never be called
        blocks: dict[str, Any] = {"coarse": unet.middle_block, "fine": unet.output_blocks[2]}
        for name, block in blocks.items():
            block[-1].register_forward_hook(lambda _, __, output, name=name: self.features.__setitem__(name, output))

    def loss(self, shares: Tensor) -> Tensor:
        """Cross-entropy of the latest forward pass.

        Args:
            shares: (B, shapes + 1, 16, 16), what part of each cell shows each shape or none.
        """
        total = shares.new_zeros(())
        for name, head in (("coarse", self.coarse), ("fine", self.fine)):
            logits = head(self.features.pop(name)).float()
            target = nn.functional.adaptive_avg_pool2d(shares, logits.shape[-2:])
            total = total + nn.functional.cross_entropy(logits, target)
        return total


def shape_shares(scene: Scene) -> np.ndarray:
    """float32 (shapes + 1, 16, 16): the visible share of each shape in each cell, last that of the background."""
    small = dataclasses.replace(scene, width=CELLS, height=CELLS)
    shares = np.zeros((len(SHAPES) + 1, CELLS, CELLS), dtype=np.float32)
    shares[-1] = 1
    for index, thing in enumerate(scene.objects):
        mask = small.full_mask(index)
        shares *= 1 - mask
        shares[SHAPES.index(thing.shape)] += mask
    return shares
