"""Procedural "design" scenes that know their true layers.

A scene is deterministic in its seed and can render itself whole, layer by layer, without
a layer, with an edited layer, or as a larger world seen through a shifted or zoomed
window: that is the ground truth by which every edit is judged.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from .backgrounds import Background, random_background
from .shapes import OUTLINES, coverage

SHAPES = tuple(OUTLINES)
COLOURS = {
    "red": (214, 40, 44),
    "orange": (245, 138, 30),
    "yellow": (250, 220, 40),
    "green": (36, 160, 72),
    "blue": (40, 84, 220),
    "purple": (140, 52, 184),
    "white": (250, 250, 250),
    "black": (24, 24, 28),
}
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
SMALL, LARGE = 0.28, 0.38  # extents below and above which a caption may say so
_STREAMS = {"scenes": 0, "training": 1}  # training never sees the scenes that judge it


@dataclass(frozen=True)
class SceneObject:
    """One object. Position and size are shares of the frame's shorter side; degrees clockwise."""

    shape: str
    colour: str
    x: float
    y: float
    size: float
    rotation: float = 0.0
    scale_x: float = 1.0
    scale_y: float = 1.0
    flip_x: bool = False
    flip_y: bool = False
    tint: tuple[int, int, int] = (0, 0, 0)
    linear: tuple[tuple[float, float], ...] | None = None  # of its own, in place of size, flips, scale and rotation

    @property
    def rgb(self) -> np.ndarray:
        """float32 (3,) in [0, 1]: the named colour, a little off as paint is."""
        return np.clip(np.add(COLOURS[self.colour], self.tint), 0, 255).astype(np.float32) / 255

    def matrix(self) -> np.ndarray:
        """(2, 3) map from the unit box to the world: flip, scale, rotate, place."""
        if self.linear is not None:
            return np.column_stack([np.array(self.linear), (self.x, self.y)])
        c, s = math.cos(math.radians(self.rotation)), math.sin(math.radians(self.rotation))
        scale = np.diag(
            [self.size * self.scale_x * (-1) ** self.flip_x, self.size * self.scale_y * (-1) ** self.flip_y]
        )
        return np.column_stack([np.array([[c, -s], [s, c]]) @ scale, (self.x, self.y)])


@dataclass(frozen=True)
class Window:
    """What part of the world is seen: `zoom` < 1 sees more of it, `x`, `y` shift its centre (frame shares)."""

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A background and its objects, back to front, on a frame of `width` × `height` pixels."""

    width: int
    height: int
    background: Background
    objects: tuple[SceneObject, ...] = ()
    name_sizes: bool = False

    @property
    def unit(self) -> int:
        """Pixels of the frame's shorter side, the unit of positions and sizes."""
        return min(self.width, self.height)

    # what the scene looks like

    def image(self, window: Window = Window()) -> np.ndarray:
        """float32 (H, W, 3) in [0, 1]."""
        picture = self.background_image(window)
        for index, thing in enumerate(self.objects):
            alpha, box = self._coverage(index, window)
            # in this form what is hidden leaves no trace, not even in the last bit
            picture[box] = picture[box] * (1 - alpha[..., None]) + thing.rgb * alpha[..., None]
        return picture

    def background_image(self, window: Window = Window()) -> np.ndarray:
        """float32 (H, W, 3): the scene without its objects."""
        left, top, scale = self._view(window)
        x = (left + (np.arange(self.width) + 0.5) / scale).astype(np.float32)
        y = (top + (np.arange(self.height) + 0.5) / scale).astype(np.float32)
        return self.background.render(x[None, :], y[:, None], pixel=1 / scale)

    def full_mask(self, index: int, window: Window = Window()) -> np.ndarray:
        """float32 (H, W): coverage of object `index`, hidden parts included."""
        mask = np.zeros((self.height, self.width), dtype=np.float32)
        alpha, box = self._coverage(index, window)
        mask[box] = alpha
        return mask

    def visible_mask(self, index: int, window: Window = Window()) -> np.ndarray:
        """float32 (H, W): coverage of object `index` where nothing in front hides it."""
        mask = self.full_mask(index, window)
        for front in range(index + 1, len(self.objects)):
            mask = mask * (1 - self.full_mask(front, window))
        return mask

    def layer(self, index: int, window: Window = Window()) -> np.ndarray:
        """float32 (H, W, 4): object `index` as straight-alpha RGBA."""
        mask = self.full_mask(index, window)
        return np.concatenate([np.broadcast_to(self.objects[index].rgb, (*mask.shape, 3)), mask[..., None]], axis=2)

    def caption(self) -> str:
        """Sentence that names every object's number, colour and shape, front first, and the background."""
        names: dict[tuple[str, str, str], int] = {}
        for thing in reversed(self.objects):
            extent = thing.size * math.sqrt(thing.scale_x * thing.scale_y)
            size = "small " if extent < SMALL else "large " if extent > LARGE else ""
            key = (size if self.name_sizes else "", thing.colour, thing.shape)
            names[key] = names.get(key, 0) + 1
        phrases = [_phrase(*key, count) for key, count in names.items()]
        things = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else "".join(phrases)
        place = f"a {self.background.kind} background"
        return f"{things} on {place}" if things else place

    # edits: each returns a new scene

    def without(self, index: int) -> "Scene":
        """The scene with object `index` removed."""
        return dataclasses.replace(self, objects=self.objects[:index] + self.objects[index + 1 :])

    def edited(self, index: int, **changes) -> "Scene":
        """The scene with fields of object `index` replaced (shape, colour, rotation, scale_x, flip_x …)."""
        thing = dataclasses.replace(self.objects[index], **changes)
        return dataclasses.replace(self, objects=self.objects[:index] + (thing,) + self.objects[index + 1 :])

    def moved(self, index: int, dx: float, dy: float) -> "Scene":
        """Object `index` shifted by (dx, dy) pixels."""
        thing = self.objects[index]
        return self.edited(index, x=thing.x + dx / self.unit, y=thing.y + dy / self.unit)

    def resized(self, index: int, scale_x: float, scale_y: float | None = None) -> "Scene":
        """Object `index` scaled about its centre."""
        thing = self.objects[index]
        factor_y = scale_x if scale_y is None else scale_y
        return self.edited(index, scale_x=thing.scale_x * scale_x, scale_y=thing.scale_y * factor_y)

    def duplicated(self, index: int, dx: float, dy: float) -> "Scene":
        """A copy of object `index`, shifted by (dx, dy) pixels, directly in front of it."""
        copy = Scene.moved(dataclasses.replace(self, objects=(self.objects[index],)), 0, dx, dy).objects
        return dataclasses.replace(self, objects=self.objects[: index + 1] + copy + self.objects[index + 1 :])

    def reordered(self, order: tuple[int, ...]) -> "Scene":
        """The same objects in another depth order (indices, back to front)."""
        return dataclasses.replace(self, objects=tuple(self.objects[i] for i in order))

    def _coverage(self, index: int, window: Window) -> tuple[np.ndarray, tuple[slice, slice]]:
        """Coverage of object `index` in the box of pixels that it touches, and that box."""
        left, top, scale = self._view(window)
        matrix = self.objects[index].matrix() * scale
        matrix[:, 2] -= (left * scale, top * scale)
        return coverage(OUTLINES[self.objects[index].shape], matrix, self.height, self.width)

    def _view(self, window: Window) -> tuple[float, float, float]:
        """World coordinates of the window's left and top, and pixels per world unit."""
        scale = self.unit * window.zoom
        left = (0.5 + window.x) * self.width / self.unit - 0.5 * self.width / scale
        top = (0.5 + window.y) * self.height / self.unit - 0.5 * self.height / scale
        return left, top, scale


def _phrase(size: str, colour: str, shape: str, count: int) -> str:
    if count == 1:
        article = "an" if (size + colour)[0] in "aeiou" else "a"
        return f"{article} {size}{colour} {shape}"
    first, *rest = shape.split()
    plural = "crosses" if first == "cross" else first + "s"
    return f"{NUMBERS[count]} {size}{colour} {' '.join([plural, *rest])}"


def random_scene(
    seed: int,
    width: int = 256,
    height: int = 256,
    objects: tuple[int, int] = (0, 4),
    stream: str = "scenes",
) -> Scene:
    """Draw a scene, deterministic in its arguments.

    Args:
        seed: any non-negative integer.
        width, height: frame in pixels.
        objects: least and most number of objects.
        stream: "scenes", or "training" for pictures that no evaluation ever uses.
    """
    rng = np.random.default_rng([_STREAMS[stream], seed])
    unit = min(width, height)
    background = random_background(rng, width / height)
    weights = np.array([0.06, 0.42, 0.32, 0.14, 0.06])[objects[0] : objects[1] + 1]
    count = objects[0] + int(rng.choice(len(weights), p=weights / weights.sum()))
    scene = Scene(width, height, background, name_sizes=bool(rng.random() < 0.3))
    while len(scene.objects) < count:
        placed = _placed(rng, scene, width / unit, height / unit)
        if placed is not None:
            scene = placed
        elif len(scene.objects) >= objects[0]:
            break
    return scene


def _placed(rng: np.random.Generator, scene: Scene, width: float, height: float) -> Scene | None:
    """`scene` with one more object in front, or None when it would hide too much of another."""
    twin = bool(scene.objects) and rng.random() < 0.15
    overlaps = rng.random() < 0.4
    for _ in range(30):
        size = float(rng.uniform(0.24, 0.42))
        margin = size * 0.55
        thing = SceneObject(
            shape=SHAPES[rng.integers(len(SHAPES))],
            colour=list(COLOURS)[rng.integers(len(COLOURS))],
            x=float(rng.uniform(margin, width - margin)),
            y=float(rng.uniform(margin, height - margin)),
            size=size,
            rotation=float(rng.uniform(-8, 8)),
            tint=(int(rng.integers(-8, 9)), int(rng.integers(-8, 9)), int(rng.integers(-8, 9))),
        )
        if twin:
            thing = dataclasses.replace(thing, shape=scene.objects[-1].shape, colour=scene.objects[-1].colour)
        distances = [math.hypot(thing.x - o.x, thing.y - o.y) / (0.5 * (thing.size + o.size)) for o in scene.objects]
        # circles of these sizes overlap below 1; two of one colour must stay apart to be told apart,
        # and a square's corners reach further than a circle
        limits = [0.62 if overlaps and thing.colour != o.colour else 1.3 for o in scene.objects]
        if all(distance > limit for distance, limit in zip(distances, limits, strict=True)):
            return dataclasses.replace(scene, objects=(*scene.objects, thing))
    return None
