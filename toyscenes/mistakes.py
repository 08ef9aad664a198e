"""Scenes with the mistakes that a generated picture makes: the wrong colour, shape or number of things.

Training shows the model such pictures under noise, together with what the caption says:
it learns to mend them on the way.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np

from .scenes import COLOURS, SHAPES, Scene


def mistaken(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene, which has objects, with one or two mistakes: its caption no longer fits what is seen."""
    result = _changed(scene, rng)
    return _changed(result, rng) if result.objects and rng.random() < 0.3 else result


def _changed(scene: Scene, rng: np.random.Generator) -> Scene:
    """One mistake; those that change nothing in this scene are drawn again."""
    while True:
        mistake = _MISTAKES[rng.integers(len(_MISTAKES))]
        first, second = rng.integers(len(scene.objects), size=2)
        result = mistake(scene, int(first), int(second), rng)
        if _named(result) != _named(scene):
            return result


def _named(scene: Scene) -> Counter:
    return Counter((thing.colour, thing.shape) for thing in scene.objects)


def _recoloured(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    return scene.edited(first, colour=str(rng.choice(list(COLOURS))))


def _reshaped(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    return scene.edited(first, shape=str(rng.choice(SHAPES)))


def _swapped_colours(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    a, b = scene.objects[first].colour, scene.objects[second].colour
    return scene.edited(first, colour=b).edited(second, colour=a)


def _swapped_shapes(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    a, b = scene.objects[first].shape, scene.objects[second].shape
    return scene.edited(first, shape=b).edited(second, shape=a)


def _echoed(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    """One thing takes another's place."""
    other = scene.objects[second]
    return scene.edited(first, colour=other.colour, shape=other.shape)


def _missing(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    return scene.without(first)


def _twice(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    """One thing is there once more, elsewhere."""
    x, y = rng.uniform(0.15, 0.85, size=2)
    twin = dataclasses.replace(
        scene.objects[first], x=float(x), y=float(y), size=float(rng.uniform(0.24, 0.42)), rotation=0.0
    )
    return dataclasses.replace(scene, objects=(*scene.objects, twin))


def _merged(scene: Scene, first: int, second: int, rng: np.random.Generator) -> Scene:
    """A second shape of the same colour grows out of a thing, which then has no clear shape."""
    thing = scene.objects[first]
    x, y = rng.uniform(-0.05, 0.05, size=2)
    size = thing.size * float(rng.uniform(0.7, 1.1))
    other = dataclasses.replace(
        thing, shape=str(rng.choice(SHAPES)), x=thing.x + float(x), y=thing.y + float(y), size=size
    )
    return dataclasses.replace(scene, objects=(*scene.objects[: first + 1], other, *scene.objects[first + 1 :]))


_MISTAKES: tuple[Callable[[Scene, int, int, np.random.Generator], Scene], ...] = (
    _recoloured,
    _reshaped,
    _swapped_colours,
    _swapped_shapes,
    _echoed,
    _missing,
    _twice,
    _merged,
)
