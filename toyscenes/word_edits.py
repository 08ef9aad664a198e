"""Edits of toy scenes by words: one object gets another colour or another shape, and the truth is known.

The edit prompt is the true caption after the edit, so that it names everything in the
picture, as prompts for such edits do. The edited object is the only one with its colour
and the only one with its shape, before and after: otherwise the words would not say which
one is meant.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .host import image_tensor
from .measure import Found, find_objects
from .scenes import COLOURS, SHAPES, Scene, SceneObject, random_scene

TASKS = ("colour", "shape")
SEEN = 0.9  # share of the edited object that nothing may hide
NEAR = 0.3  # of the object's size: how far its middle may be from where the truth has it
ALIKE = 3.0  # by what factor its area may differ
_STREAM = 8  # keeps these draws apart from other tasks' of the same seed
_SINGULAR = {**{shape.split()[0] + "s": shape.split()[0] for shape in SHAPES}, "crosses": "cross"}


@dataclass(frozen=True)
class PromptedEdit:
    """A source, the prompt of an edit, and how it should look. Pictures are (1, H, W, 3), masks (1, H, W)."""

    task: str
    scene: Scene
    truth: Scene
    index: int  # of the edited object, in both

    @property
    def source_image(self) -> Tensor:
        """IMAGE of the source."""
        return image_tensor(self.scene.image())

    @property
    def truth_image(self) -> Tensor:
        """IMAGE of the truth."""
        return image_tensor(self.truth.image())

    @property
    def caption(self) -> str:
        """What the source shows."""
        return self.scene.caption()

    @property
    def prompt(self) -> str:
        """What the edited picture should show."""
        return self.truth.caption()


@dataclass(frozen=True)
class WordEdit(PromptedEdit):
    """An object gets another colour or another shape."""

    @property
    def mask(self) -> Tensor:
        """MASK of what is seen of the object in the source, 0 or 1."""
        return _hard(self.scene.visible_mask(self.index))

    @property
    def area(self) -> Tensor:
        """MASK of what is seen of the object before or after the edit, 0 or 1."""
        return torch.maximum(self.mask, _hard(self.truth.visible_mask(self.index)))

    @property
    def named(self) -> tuple[str, ...]:
        """Words of the caption that name the object: its colour, then its shape."""
        return _names(self.caption, _place(self.scene, self.index))

    @property
    def named_after(self) -> tuple[str, ...]:
        """Words of the prompt that name the object: its colour, then its shape."""
        return _names(self.prompt, _place(self.truth, self.index))

    @property
    def changed(self) -> tuple[str, ...]:
        """Words of the prompt that name what the edit changes: the new colour, or the new shape."""
        return self.named_after[:1] if self.task == "colour" else self.named_after[1:]

    def kinds(self) -> list[str]:
        """What each word of the caption is about, in its order.

        "colour" and "shape" are the object's own, "other" those of other objects, "place" is
        the background, and "filler" names nothing (articles, numbers, sizes).
        """
        place = _place(self.scene, self.index)
        others = {word for i, thing in enumerate(self.scene.objects) if i != self.index for word in _name(thing)}
        result = []
        for position, word in enumerate(words(self.caption)):
            if position in place:
                result.append("colour" if position == place[0] else "shape")
            elif word in (self.scene.background.kind, "background"):
                result.append("place")
            else:
                result.append("other" if _SINGULAR.get(word, word) in others else "filler")
        return result


def _hard(mask: np.ndarray) -> Tensor:
    return torch.from_numpy((mask > 0.5).astype(np.float32))[None]


def words(text: str) -> list[str]:
    """The words of a text in order, without punctuation."""
    return re.findall(r"\w+", text)


def _name(thing: SceneObject) -> list[str]:
    return [thing.colour, *thing.shape.split()]


def _place(scene: Scene, index: int) -> range:
    """Which words of the scene's caption name object `index`, the only one of its name: colour, then shape."""
    caption, name = words(scene.caption()), _name(scene.objects[index])
    first = next(i for i in range(len(caption)) if caption[i : i + len(name)] == name)
    return range(first, first + len(name))


def _names(text: str, places: Sequence[int]) -> tuple[str, ...]:
    """Words of a text at some places; one that the text has several times as "word#2", its second occurrence."""
    given = words(text)
    return tuple(
        given[p] if given.count(given[p]) == 1 else f"{given[p]}#{given[: p + 1].count(given[p])}" for p in places
    )


def _clear(scene: Scene, index: int) -> bool:
    """Whether the words mean this object alone, and nearly all of it is seen."""
    thing, others = scene.objects[index], [o for i, o in enumerate(scene.objects) if i != index]
    if any(o.colour == thing.colour or o.shape == thing.shape for o in others):
        return False
    full = scene.full_mask(index).sum()
    return bool(full > 0 and scene.visible_mask(index).sum() >= SEEN * full)


def _changed(rng: np.random.Generator, scene: Scene, index: int, task: str) -> Scene:
    """The scene with a colour or a shape for object `index` that no object has yet."""
    names: Sequence[str] = tuple(COLOURS) if task == "colour" else SHAPES
    present = {getattr(thing, task) for thing in scene.objects}
    free = [name for name in names if name not in present]
    return scene.edited(index, **{task: free[rng.integers(len(free))]})


def word_edit(seed: int, size: tuple[int, int] = (256, 256), task: str | None = None) -> WordEdit:
    """The edit of a seed: even seeds change a colour, odd ones a shape, unless `task` says which.

    Args:
        seed: any non-negative integer.
        size: (width, height) in pixels.
        task: "colour" or "shape".

    Scenes in which the measurement does not recognise the true result are left out.
    """
    task = TASKS[seed % 2] if task is None else task
    for attempt in range(1000):
        rng = np.random.default_rng([_STREAM, seed, attempt])
        scene = random_scene(seed + 1_000_003 * attempt, *size, objects=(1, 3))
        for index in (int(i) for i in rng.permutation(len(scene.objects))):
            if not _clear(scene, index):
                continue
            edit = WordEdit(task, scene, _changed(rng, scene, index, task), index)
            if _clear(edit.truth, index) and Outcome.of(edit, edit.truth_image[0].numpy()).as_prompted:
                return edit
    raise RuntimeError("no scene fits the edit")


@dataclass(frozen=True)
class Outcome:
    """What a picture has where the edited object should be, measured on its pixels."""

    edit: WordEdit
    found: Found | None

    @classmethod
    def of(cls, edit: WordEdit, picture: np.ndarray) -> "Outcome":
        """Look at a picture (H, W, 3) in [0, 1].

        Of the patches that find_objects sees, the one whose middle is nearest to the true
        one counts, if it lies within 0.3 of the object's size and is between a third of its
        area and three times as large.
        """
        truth = edit.truth.visible_mask(edit.index) > 0.5
        rows, columns = np.nonzero(truth)
        x, y, area = columns.mean() + 0.5, rows.mean() + 0.5, float(truth.sum())
        reach = NEAR * edit.truth.objects[edit.index].size * edit.truth.unit
        near = [
            (float(np.hypot(f.x - x, f.y - y)), f)
            for f in find_objects(picture)
            if area / ALIKE <= f.area <= area * ALIKE and np.hypot(f.x - x, f.y - y) <= reach
        ]
        return cls(edit, min(near, key=lambda pair: pair[0])[1] if near else None)

    @property
    def changed(self) -> bool:
        """The object has the colour, or the shape, that the edit names."""
        wanted = getattr(self.edit.truth.objects[self.edit.index], self.edit.task)
        return self.found is not None and getattr(self.found, self.edit.task) == wanted

    @property
    def as_prompted(self) -> bool:
        """The object has both the colour and the shape that the prompt names."""
        wanted = self.edit.truth.objects[self.edit.index]
        return self.found is not None and (self.found.colour, self.found.shape) == (wanted.colour, wanted.shape)


def overlap(mask: Tensor, truth: Tensor) -> float:
    """Intersection over union of two masks (H, W), each where it is above 0.5; 1 when both are empty.

    Raises ValueError for masks of different shapes.
    """
    if mask.shape != truth.shape:
        raise ValueError(f"overlap: masks are {tuple(mask.shape)} and {tuple(truth.shape)}; they must be alike")
    one, other = mask > 0.5, truth > 0.5
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0
