"""Soft edits of toy scenes: one attribute of the caption changes, and pictures tell whether it did.

The colour or shape of an object, the kind of the background, and what is a matter of degree:
the size of an object and how many there are. The edit prompt is the caption of the true
result, so it differs from the source's caption by a word or two.

Whether an edit has succeeded is measured against the picture that was edited, not against the
scene: pictures that the model has made from a caption can be edited and measured as well as
scenes, if they show what the caption says of the attribute (`shown`).
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .background_kind import background_kind, object_labels
from .backgrounds import random_background
from .measure import Found, find_objects
from .scenes import COLOURS, LARGE, SMALL, Scene, SceneObject, random_scene
from .word_edits import PromptedEdit, word_edit

TASKS = ("colour", "shape", "background", "size", "count")
SEEN = 0.9  # share of an object that nothing may hide
REACH = 0.45  # of an object's extent: how far its middle may have moved
ALIKE = 3.0  # by what factor the area of a recoloured or reshaped object may differ
MARGIN = 8  # pixels around an edited object that may change
_STREAM = 11  # keeps these draws apart from other tasks' of the same seed
_GROWN, _SHRUNK = (LARGE + 0.01, LARGE + 0.04), (SMALL - 0.04, SMALL - 0.01)


@dataclass(frozen=True)
class SoftEdit(PromptedEdit):
    """One attribute of the caption changes; `index` has no meaning for backgrounds."""

    @property
    def area(self) -> Tensor:
        """MASK of what is seen of edited objects before or after the edit, or of the edited background."""
        if self.task == "background":
            return 1 - _seen(self.scene, lambda thing: True)
        before = _seen(self.scene, lambda thing: thing not in self.truth.objects)
        after = _seen(self.truth, lambda thing: thing not in self.scene.objects)
        return torch.maximum(before, after)

    @property
    def growth(self) -> float:
        """Area of the object after the edit over that before."""
        before, after = (scene.full_mask(self.index).sum() for scene in (self.scene, self.truth))
        return float(after / before)

    def number(self, scene: Scene) -> int:
        """How many objects of the edited one's name a scene has."""
        named = _name(scene.objects[self.index])
        return sum(_name(thing) == named for thing in scene.objects)


def _seen(scene: Scene, chosen: Callable[[SceneObject], bool]) -> Tensor:
    mask = np.zeros((scene.height, scene.width), np.float32)
    for index, thing in enumerate(scene.objects):
        if chosen(thing):
            mask = np.maximum(mask, scene.visible_mask(index) > 0.5)
    return torch.from_numpy(mask.astype(np.float32))[None]


def _name(thing: SceneObject | Found) -> tuple[str, str | None]:
    return thing.colour, thing.shape


def soft_edit(seed: int, size: tuple[int, int] = (256, 256), task: str | None = None) -> SoftEdit:
    """The edit of a seed; the tasks take turns with the seeds, unless `task` says which.

    Args:
        seed: any non-negative integer.
        size: (width, height) in pixels.
        task: one of TASKS.

    Scenes in which the measurement does not recognise the source and the true result are left out.
    """
    task = TASKS[seed % len(TASKS)] if task is None else task
    for attempt in range(1000):
        rng = np.random.default_rng([_STREAM, seed, attempt])
        edit = _DRAWS[task](rng, seed + 1_000_003 * attempt, size)
        if edit is not None and _measurable(edit):
            return edit
    raise RuntimeError("no scene fits the edit")


def _measurable(edit: SoftEdit) -> bool:
    source, truth = (image[0].numpy() for image in (edit.source_image, edit.truth_image))
    if not shown(edit, source):
        return False
    return Outcome(edit, source, truth).changed and not Outcome(edit, source, source).changed


def _object_edit(task: str) -> Callable[[np.random.Generator, int, tuple[int, int]], SoftEdit | None]:
    def draw(rng: np.random.Generator, seed: int, size: tuple[int, int]) -> SoftEdit | None:
        drawn = word_edit(seed, size, task)
        return SoftEdit(task, drawn.scene, drawn.truth, drawn.index)

    return draw


def _background_edit(rng: np.random.Generator, seed: int, size: tuple[int, int]) -> SoftEdit | None:
    scene = random_scene(seed, *size, objects=(1, 3))
    old, new = scene.background, random_background(rng, size[0] / size[1])
    if new.kind == old.kind:
        return None
    background = dataclasses.replace(new, first=old.first, second=old.second)
    return SoftEdit("background", scene, dataclasses.replace(scene, background=background), 0)


def _size_edit(rng: np.random.Generator, seed: int, size: tuple[int, int]) -> SoftEdit | None:
    """A small object becomes large, or a large one small, and the captions say so."""
    scene = dataclasses.replace(random_scene(seed, *size, objects=(1, 3)), name_sizes=True)
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    if SMALL <= thing.size <= LARGE or sum(_name(thing) == _name(other) for other in scene.objects) > 1:
        return None
    extent = float(rng.uniform(*(_GROWN if thing.size < SMALL else _SHRUNK)))
    truth = scene.edited(index, size=extent)
    return SoftEdit("size", scene, truth, index) if _apart(scene) and _apart(truth) else None


def _count_edit(rng: np.random.Generator, seed: int, size: tuple[int, int]) -> SoftEdit | None:
    """One object more of a name, or one less."""
    scene = random_scene(seed, *size, objects=(1, 2))
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    unit = scene.unit
    margin = thing.size * 0.55
    x, y = (float(rng.uniform(margin, side / unit - margin)) for side in size)
    more = dataclasses.replace(scene, objects=(*scene.objects, dataclasses.replace(thing, x=x, y=y)))
    if not (_apart(scene) and _apart(more)):
        return None
    before, after = (scene, more) if rng.random() < 0.5 else (more, scene)
    return SoftEdit("count", before, after, index)


def _apart(scene: Scene) -> bool:
    """Whether every object is in the frame and nearly all of it is seen."""
    for index, thing in enumerate(scene.objects):
        reach = thing.size / 2
        if not all(reach <= at <= side / scene.unit - reach
                   for at, side in ((thing.x, scene.width), (thing.y, scene.height))):  # fmt: skip
            return False
        if scene.visible_mask(index).sum() < SEEN * scene.full_mask(index).sum():
            return False
    return True


_DRAWS: dict[str, Callable[[np.random.Generator, int, tuple[int, int]], SoftEdit | None]] = {
    "colour": _object_edit("colour"),
    "shape": _object_edit("shape"),
    "background": _background_edit,
    "size": _size_edit,
    "count": _count_edit,
}


# what pictures show


def shown(edit: SoftEdit, picture: np.ndarray) -> bool:
    """Whether a picture (H, W, 3) shows the attribute as the source's caption has it, so that it can be edited."""
    if edit.task == "background":
        return background_kind(picture) == edit.scene.background.kind
    found = _called(edit, edit.scene, find_objects(picture))
    if edit.task == "size" and not _nearer(found, edit):
        return False
    return len(found) == edit.number(edit.scene)


def _nearer(found: list[Found], edit: SoftEdit) -> bool:
    """Whether what was found has the source's size rather than the truth's."""
    before, after = (scene.full_mask(edit.index).sum() for scene in (edit.scene, edit.truth))
    return all(abs(math.log(thing.area / before)) < abs(math.log(thing.area / after)) for thing in found)


def _called(edit: SoftEdit, scene: Scene, found: list[Found]) -> list[Found]:
    """Those of the found objects that have the name which the edited object has in a scene."""
    return [thing for thing in found if _name(thing) == _name(scene.objects[edit.index])]


def silhouette(picture: np.ndarray, thing: Found) -> np.ndarray:
    """Mask, bool (H, W), of the connected patch of colour that an object was found by."""
    mask = ndimage.binary_opening(object_labels(picture) == list(COLOURS).index(thing.colour), np.ones((3, 3)))
    patches = np.zeros(mask.shape, np.int32)
    count = int(ndimage.label(mask, output=patches))  # pyright: ignore[reportArgumentType]
    distances = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(patches == number)
        distances.append((math.hypot(columns.mean() + 0.5 - thing.x, rows.mean() + 0.5 - thing.y), number))
    return patches == min(distances)[1] if distances else np.zeros(mask.shape, bool)


@dataclass(frozen=True)
class Outcome:
    """What became of an edit, by the picture before it and after it, (H, W, 3) in [0, 1]."""

    edit: SoftEdit
    before: np.ndarray
    after: np.ndarray

    @cached_property
    def _found(self) -> tuple[list[Found], list[Found]]:
        return find_objects(self.before), find_objects(self.after)

    @cached_property
    def _old(self) -> list[Found]:
        """The edited object, or all of its name, in the picture before."""
        return _called(self.edit, self.edit.scene, self._found[0])

    @cached_property
    def _new(self) -> list[Found]:
        """What is there in the picture after: for counts all of the name, else the patch nearest to the old place."""
        if self.edit.task == "count":
            return _called(self.edit, self.edit.truth, self._found[1])
        if not self._old:
            return []
        old = self._old[0]
        reach = REACH * math.sqrt(old.area * max(1.0, self.edit.growth)) * 1.3  # an outline fills part of its box
        near = [
            (math.hypot(thing.x - old.x, thing.y - old.y), thing)
            for thing in self._found[1]
            if math.hypot(thing.x - old.x, thing.y - old.y) <= reach and self._alike(old, thing)
        ]
        return [min(near, key=lambda pair: pair[0])[1]] if near else []

    def _alike(self, old: Found, new: Found) -> bool:
        if self.edit.task == "size":
            return _name(new) == _name(old)
        return old.area / ALIKE <= new.area <= old.area * ALIKE

    @cached_property
    def changed(self) -> bool:
        """Whether the attribute is as the edit prompt has it.

        colour, shape: the object in the old one's place has it. size: it has gone at least half
        of the way to the truth's area. count: there are as many of this name as the prompt says.
        background: its kind is the prompt's, see `background_kind`.
        """
        edit = self.edit
        if edit.task == "background":
            return background_kind(self.after) == edit.truth.background.kind
        if edit.task == "count":
            return len(self._new) == edit.number(edit.truth)
        if not self._new:
            return False
        if edit.task == "size":
            return self.progress >= 0.5
        return getattr(self._new[0], edit.task) == getattr(edit.truth.objects[edit.index], edit.task)

    @property
    def progress(self) -> float:
        """How far of the way to the true size an object has gone: 0 is the old size, 1 the true one."""
        if not (self._old and self._new):
            return 0.0
        return (self._new[0].area / self._old[0].area - 1) / (self.edit.growth - 1)

    @cached_property
    def kept(self) -> np.ndarray:
        """Mask, bool (H, W), of what should have stayed.

        For backgrounds the objects of the picture before, without their rims; else everything
        but the edited object, before and after, with a margin of 8 pixels.
        """
        if self.edit.task == "background":
            return ndimage.binary_erosion(object_labels(self.before) >= 0, iterations=2)
        free = np.zeros(self.before.shape[:2], bool)
        for picture, things in ((self.before, self._old), (self.after, self._new)):
            for thing in things:
                free |= silhouette(picture, thing)
        return np.logical_not(ndimage.binary_dilation(free, np.ones((3, 3)), iterations=MARGIN))

    @property
    def overlap(self) -> float:
        """Intersection over union of the object's silhouettes before and after; 0 where it is not found."""
        if not (self._old and self._new):
            return 0.0
        old, new = silhouette(self.before, self._old[0]), silhouette(self.after, self._new[0])
        return float((old & new).sum() / max(1, (old | new).sum()))
