"""Layered edits of toy scenes whose truth is known: the scene drawn again, edited."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..fusion.geometry import layer_affine, shifted
from ..fusion.layers import Layer
from .host import image_tensor
from .scenes import Scene, random_scene

FARTHEST = 0.3  # of the frame, of random moves
MARGIN = 0.02  # of the frame, kept free around edited objects


@dataclass(frozen=True)
class SceneEdit:
    """A source, what is done with it, and how it should look. Pictures are (1, H, W, 3)."""

    scene: Scene
    truth: Scene
    layers: tuple[Layer, ...]
    edited: tuple[tuple[int | None, int | None], ...]  # object in the scene and in the truth (None: not there)
    hidden: Tensor | None = None  # (H, W): the part that was occluded, where it should be now

    @property
    def source_image(self) -> Tensor:
        """IMAGE of the source."""
        return image_tensor(self.scene.image())

    @property
    def truth_image(self) -> Tensor:
        """IMAGE of the truth."""
        return image_tensor(self.truth.image())

    @property
    def area(self) -> Tensor:
        """MASK (H, W) of every edited object's old and new place."""
        parts = [self.scene.full_mask(old) for old, _ in self.edited if old is not None]
        parts += [self.truth.full_mask(new) for _, new in self.edited if new is not None]
        return torch.from_numpy((np.max(parts, axis=0) > 0).astype(np.float32))


def mask_of(scene: Scene, index: int) -> Tensor:
    """MASK (1, H, W) of what is seen of an object."""
    return torch.from_numpy(scene.visible_mask(index))[None]


def _front(scene: Scene, index: int) -> Scene:
    """The object brought to the front."""
    order = [i for i in range(len(scene.objects)) if i != index] + [index]
    return scene.reordered(tuple(order))


def _fits(scene: Scene, index: int, margin: float = MARGIN) -> bool:
    """Whether an object lies within the frame, with a margin (of the frame, at least a pixel)."""
    mask = scene.full_mask(index) > 0
    edge = max(1, round(margin * scene.unit))
    inner = np.zeros_like(mask)
    inner[edge:-edge, edge:-edge] = True
    return bool(mask.any()) and not (mask & ~inner).any()


def _vector(rng: np.random.Generator, scene: Scene, least: float = 0.08) -> tuple[int, int]:
    """A move in whole pixels, not both multiples of 8, at least `least` of the frame long."""
    while True:
        dx, dy = (int(round(v)) for v in rng.uniform(-FARTHEST, FARTHEST, 2) * (scene.width, scene.height))
        if np.hypot(dx, dy) >= least * scene.unit and (dx % 8 or dy % 8):
            return dx, dy


def _one(seed: int, size: tuple[int, int], change: Callable) -> SceneEdit:
    """One visible object of the seed's scene, changed by `change(rng, scene, index) -> (truth, fields of Layer)`."""
    for attempt in range(1000):
        rng = np.random.default_rng([3, seed, attempt])
        scene = random_scene(seed + 1_000_003 * attempt, *size, objects=(1, 3))
        # the front object is seen whole; others may be hidden in part
        index = len(scene.objects) - 1
        for _ in range(20 if _fits(scene, index, 0) else 0):
            truth, fields = change(rng, scene, index)
            if all(_fits(truth, i) for i in range(index, len(truth.objects))):
                layer = Layer(f"object {index}", mask_of(scene, index), **fields)
                new = tuple((index, i) for i in range(index, len(truth.objects)))
                return SceneEdit(scene, truth, (layer,), new)
    raise RuntimeError("no scene fits the edit")


def move(seed: int, size: tuple[int, int]) -> SceneEdit:
    """One object moved by up to 0.3 of the frame, not by whole latent cells."""

    def change(rng: np.random.Generator, scene: Scene, index: int):
        vector = _vector(rng, scene)
        return scene.moved(index, *vector), {"moves": (vector,)}

    return _one(seed, size, change)


def resize(seed: int, size: tuple[int, int]) -> SceneEdit:
    """One object made 0.6 to 1.6 times as wide and as high, about its middle."""

    def change(rng: np.random.Generator, scene: Scene, index: int):
        scale_x, scale_y = (float(v) for v in rng.uniform(0.6, 1.6, 2))
        return _about_centroid(scene, index, scale_x=scale_x, scale_y=scale_y)

    return _one(seed, size, change)


def rotate(seed: int, size: tuple[int, int]) -> SceneEdit:
    """One object turned by 15 to 165 degrees either way."""

    def change(rng: np.random.Generator, scene: Scene, index: int):
        return _about_centroid(scene, index, rotation=float(rng.uniform(15, 165) * rng.choice([-1, 1])))

    return _one(seed, size, change)


def flip(seed: int, size: tuple[int, int]) -> SceneEdit:
    """One object mirrored, left-right or top-bottom, and moved."""

    def change(rng: np.random.Generator, scene: Scene, index: int):
        vector = _vector(rng, scene)
        axis = str(rng.choice(["flip_x", "flip_y"]))
        return _about_centroid(scene, index, vector=vector, **{axis: True})

    return _one(seed, size, change)


def duplicate(seed: int, size: tuple[int, int]) -> SceneEdit:
    """One object twice: where it is and somewhere else."""

    def change(rng: np.random.Generator, scene: Scene, index: int):
        vector = _vector(rng, scene, least=0.15)
        return scene.duplicated(index, *vector), {"moves": ((0.0, 0.0), vector)}

    return _one(seed, size, change)


def _about_centroid(scene: Scene, index: int, vector: tuple[int, int] = (0, 0), **fields) -> tuple[Scene, dict]:
    """The same change made to the scene's object and to a layer, which turns about its mask's centroid."""
    layer = Layer("", mask_of(scene, index), **fields)
    affine = layer_affine(layer, (scene.height, scene.width), vector)
    thing = scene.objects[index]
    matrix = thing.matrix()  # unit box to the world, in shares of the shorter side
    linear = affine.linear @ matrix[:, :2]
    x, y = affine(matrix[:, 2] * scene.unit) / scene.unit
    changed = replace(thing, x=float(x), y=float(y), linear=tuple(map(tuple, linear.tolist())))
    objects = scene.objects[:index] + (changed,) + scene.objects[index + 1 :]
    return replace(scene, objects=objects), {"moves": (vector,), **fields}


def swap(seed: int, size: tuple[int, int]) -> SceneEdit:
    """Two objects exchange their places."""
    for attempt in range(1000):
        scene = random_scene(seed + 1_000_003 * attempt, *size, objects=(2, 3))
        a, b = len(scene.objects) - 2, len(scene.objects) - 1
        if np.minimum(scene.full_mask(a), scene.full_mask(b)).max() > 0:
            continue
        if not (_fits(scene, a, 0) and _fits(scene, b, 0)):
            continue
        one, other = scene.objects[a], scene.objects[b]
        dx, dy = round((other.x - one.x) * scene.unit), round((other.y - one.y) * scene.unit)
        truth = scene.moved(a, dx, dy).moved(b, -dx, -dy)
        if _fits(truth, a) and _fits(truth, b):
            layers = (
                Layer("one", mask_of(scene, a), moves=((dx, dy),)),
                Layer("other", mask_of(scene, b), moves=((-dx, -dy),)),
            )
            return SceneEdit(scene, truth, layers, ((a, a), (b, b)))
    raise RuntimeError("no scene fits the edit")


def _hides(scene: Scene) -> bool:
    """Whether more than a pixel of an object lies behind others."""
    seen = np.ones((scene.height, scene.width), np.float32)
    for mask in (scene.full_mask(i) for i in reversed(range(len(scene.objects)))):
        if mask.sum() - (mask * seen).sum() > 1:
            return True
        seen *= 1 - mask
    return False


def multi(seed: int, size: tuple[int, int]) -> SceneEdit:
    """Of four objects one is removed, one moved, one resized and one duplicated, in one run."""
    for attempt in range(1000):
        rng = np.random.default_rng([4, seed, attempt])
        scene = random_scene(seed + 1_000_003 * attempt, *size, objects=(4, 4))
        if _hides(scene):
            continue  # what is hidden is another task
        if not all(_fits(scene, i, 0) for i in range(4)):
            continue
        removed, moved, resized, doubled = (int(i) for i in rng.permutation(4))
        there, again = _vector(rng, scene), _vector(rng, scene, least=0.15)
        scale = float(rng.uniform(0.6, 1.4))
        truth, fields = _about_centroid(scene, resized, scale_x=scale, scale_y=scale)
        truth = truth.moved(moved, *there).duplicated(doubled, *again)
        # what is edited is laid in front, in this order; the removed one goes
        copy = doubled + 1
        place = [i + (i > doubled) for i in range(4)]
        truth = truth.reordered((place[moved], place[resized], place[doubled], copy))
        if not all(_fits(truth, i) for i in range(4)):
            continue
        layers = (
            Layer("removed", mask_of(scene, removed), moves=()),
            Layer("moved", mask_of(scene, moved), moves=(there,)),
            Layer("resized", mask_of(scene, resized), **fields),
            Layer("doubled", mask_of(scene, doubled), moves=((0.0, 0.0), again)),
        )
        return SceneEdit(scene, truth, layers, ((removed, None), (moved, 0), (resized, 1), (doubled, 2), (doubled, 3)))
    raise RuntimeError("no scene fits the edit")


def occlusion(seed: int, size: tuple[int, int]) -> SceneEdit:
    """An object that another one hides in part moves out from behind it."""
    for attempt in range(1000):
        rng = np.random.default_rng([5, seed, attempt])
        scene = random_scene(seed + 1_000_003 * attempt, *size, objects=(2, 3))
        front = len(scene.objects) - 1
        for index in range(front):
            full, seen = scene.full_mask(index), scene.visible_mask(index)
            share = 1 - seen.sum() / full.sum()
            if not (0.08 <= share <= 0.5 and _fits(scene, index, 0)):
                continue
            occluder = np.max([scene.visible_mask(i) for i in range(index + 1, front + 1)], axis=0)
            for _ in range(50):
                vector = _vector(rng, scene, least=0.15)
                truth = _front(scene.moved(index, *vector), index)
                if not _fits(truth, front):
                    continue
                alone = truth.without(front)
                others = np.max([alone.full_mask(i) for i in range(front)], axis=0)
                if (others * truth.full_mask(front)).max() > 0:
                    continue
                layer = Layer(
                    "hidden", mask_of(scene, index), moves=(vector,), occluder=torch.from_numpy(occluder)[None]
                )
                hidden = truth.full_mask(front) * (1 - _moved_mask(scene, index, vector))
                area = torch.from_numpy((hidden > 0.5).astype(np.float32))
                return SceneEdit(scene, truth, (layer,), ((index, front),), area)
    raise RuntimeError("no scene fits the edit")


def _moved_mask(scene: Scene, index: int, vector: tuple[int, int]) -> np.ndarray:
    """What was seen of an object, where it is moved to."""
    return shifted(mask_of(scene, index), *vector)[0].numpy()


def cross(seed: int, size: tuple[int, int]) -> SceneEdit:
    """An object of another picture, of another size, laid on the scene."""
    for attempt in range(1000):
        rng = np.random.default_rng([6, seed, attempt])
        scene = random_scene(seed + 1_000_003 * attempt, *size, objects=(1, 2))
        other = random_scene(seed + 500_009 + 1_000_003 * attempt, 320, 240, objects=(1, 1))
        if scene.background.first == other.background.first or not _fits(other, 0, 0):
            continue  # what is carried along from behind the guest would not show
        vector = _vector(rng, scene)
        layer = Layer("guest", mask_of(other, 0), image=image_tensor(other.image()), moves=(vector,))
        affine = layer_affine(layer, (scene.height, scene.width), vector)
        thing = other.objects[0]
        matrix = thing.matrix() * other.unit
        x, y = affine(matrix[:, 2]) / scene.unit
        linear = affine.linear @ matrix[:, :2] / scene.unit
        guest = replace(thing, x=float(x), y=float(y), linear=tuple(map(tuple, linear.tolist())))
        truth = replace(scene, objects=(*scene.objects, guest))
        new = len(truth.objects) - 1
        if _fits(truth, new):
            return SceneEdit(scene, truth, (layer,), ((None, new),))
    raise RuntimeError("no scene fits the edit")


TASKS: dict[str, Callable[[int, tuple[int, int]], SceneEdit]] = {
    "move": move,
    "resize": resize,
    "rotate": rotate,
    "flip": flip,
    "duplicate": duplicate,
    "swap": swap,
    "multi": multi,
    "occlusion": occlusion,
    "cross": cross,
}
