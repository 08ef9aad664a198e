"""What looks like the thing that goes: twins of a removed object, which would be copied into its place.

Where an object is hidden from self-attention, its place is filled from everything else, and an
object of its own kind next to it is the likeliest filling. So that is hidden as well. A cell of
the latent looks like the object when it is far nearer to some cell of the object than to any
cell of the object's surroundings: background that goes on behind the object never is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import cover, to_grid

LIKENESS = 0.3  # distance to the object, as a share of that to its surroundings, below which a cell looks like it
REACH = 2  # cells around the object that are its surroundings
WHOLE = 0.999  # of a cell within the mask
CHUNK = 4096  # cells that are compared at a time


def lookalikes(latents: Tensor, masks: Tensor, likeness: float = LIKENESS) -> Tensor:
    """Where pictures show something like what their masks cover, outside of these.

    Args:
        latents: clean latents (B, C, h, w), in any unit.
        masks: (B or 1, H, W) at image size, grown as for a removal.
        likeness: 0 finds nothing, 1 everything that is nearer to the object than to its surroundings.

    Returns masks (B, H, W), 0 or 1, in whole cells; empty where a mask covers no whole cell or
    has no surroundings.
    """
    height, width = size = latents.shape[-2:]
    inside = (to_grid(masks, height, width) >= WHOLE).expand(len(latents), -1, -1)
    touched = (cover(masks, height, width) > 0).expand(len(latents), -1, -1)
    near = F.max_pool2d(touched[:, None].float(), 2 * REACH + 1, 1, REACH)[:, 0] > 0
    around = near & ~touched
    found = [
        _alike(z.detach().float().cpu().flatten(1).T, i.flatten(), a.flatten(), likeness).view(size) & ~t
        for z, i, a, t in zip(latents, inside, around, touched, strict=True)
    ]
    return F.interpolate(torch.stack(found)[:, None].float(), size=masks.shape[1:], mode="nearest-exact")[:, 0]


def _alike(cells: Tensor, inside: Tensor, around: Tensor, likeness: float) -> Tensor:
    """Cells of (N, C) that are nearer to one `inside` than `likeness` times their distance to all `around`, (N)."""
    if not (inside.any() and around.any()):
        return torch.zeros(len(cells), dtype=torch.bool)
    result = []
    for part in cells.split(CHUNK):
        to_object, to_rest = (torch.cdist(part, cells[chosen]).amin(1) for chosen in (inside, around))
        result.append(to_object < likeness * to_rest)
    return torch.cat(result)
