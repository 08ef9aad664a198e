"""Toy scenes as what travels between nodes: IMAGE and MASK tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .scenes import Scene, random_scene


@dataclass(frozen=True)
class SceneTensors:
    """IMAGEs are (1, H, W, 3), MASKs (B, H, W), float32 in [0, 1]."""

    image: torch.Tensor
    mask: torch.Tensor  # of the chosen object, its visible part
    masks: torch.Tensor  # of every object, back to front
    truth: torch.Tensor  # the scene without the chosen object, or with it moved
    caption: str
    truth_caption: str


def image_tensor(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) to IMAGE (1, H, W, 3), in the 8 bits a picture file would have."""
    return torch.from_numpy(np.round(picture * 255) / 255).float()[None]


def scene_tensors(scene: Scene, chosen: int, moves: Sequence[tuple[float, float]] = ()) -> SceneTensors:
    """A scene with at least one object, and what it is without object `chosen` (0 is the backmost).

    With moves, (right, down) in pixels, the truth has the object at each of them, in front.
    """
    masks = torch.stack([torch.from_numpy(scene.visible_mask(i)) for i in range(len(scene.objects))])
    masks = (masks * 255).round() / 255  # as a mask's file, too: what shows as black is 0
    truth = scene.without(chosen)
    copies = tuple(scene.moved(chosen, *move).objects[chosen] for move in moves)
    truth = replace(truth, objects=truth.objects + copies)
    return SceneTensors(
        image=image_tensor(scene.image()),
        mask=masks[chosen : chosen + 1],
        masks=masks,
        truth=image_tensor(truth.image()),
        caption=scene.caption(),
        truth_caption=truth.caption(),
    )


def draw_scene(
    seed: int,
    width: int,
    height: int,
    objects: int,
    chosen: int,
    moves: Sequence[tuple[float, float]] = (),
    where: str = "Toy Scene",
) -> SceneTensors:
    """Draw scene `seed` with `objects` objects and choose one of them, numbered from 1 at the front.

    Raises ValueError for an object that the scene does not have.
    """
    scene = random_scene(seed, width, height, (objects, objects))
    if not 1 <= chosen <= len(scene.objects):
        raise ValueError(
            f"{where}: object is {chosen}, but scene {seed} has {len(scene.objects)} objects; "
            f"choose 1 to {len(scene.objects)} (1 is in front)"
        )
    return scene_tensors(scene, len(scene.objects) - chosen, moves)
