"""What a layered edit keeps from one run to the next.

The host's own cache lets go of an expanded graph's results as soon as a node before it
runs again (its default mode drops whatever the present run has not asked for yet). The
inversion and the filled canvas take most of an edit's time and do not depend on where the
layers go, so they are kept here, a few at a time.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

KEPT = 8  # results; a trajectory of SDXL at 1024×1024 is 13 MiB


class Memory:
    """The results made last, each found again by its key and by the very objects that it was made with."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._results: OrderedDict[str, tuple[list[Callable[[], Any]], Any]] = OrderedDict()

    def has(self, key: str, objects: Sequence[Any]) -> bool:
        """Whether there is a result of this key that was made with these objects."""
        entry = self._results.get(key)
        return entry is not None and all(ref() is one for ref, one in zip(entry[0], objects, strict=True))

    def get(self, key: str) -> Any:
        """The result of a key that `has` found."""
        self._results.move_to_end(key)
        return self._results[key][1]

    def put(self, key: str, objects: Sequence[Any], result: Any) -> None:
        """Keep a result, and let go of the oldest one when there are too many."""
        entry: tuple[list[Callable[[], Any]], Any] = ([], result)
        for one in objects:
            entry[0].append(_reference(one, lambda _, key=key, entry=entry: self._forget(key, entry)))
        self._results[key] = entry
        self._results.move_to_end(key)
        while len(self._results) > self._kept:
            self._results.popitem(last=False)

    def clear(self) -> None:
        """Let go of everything."""
        self._results.clear()

    def _forget(self, key: str, entry: Any) -> None:
        """One of its objects is gone: nobody can ask for it again."""
        if self._results.get(key) is entry:
            del self._results[key]


def _reference(one: Any, gone: Callable[[Any], None]) -> Callable[[], Any]:
    """A way to the object that does not keep a model alive; lists (conditionings) are small and are kept."""
    try:
        return weakref.ref(one, gone)
    except TypeError:
        return lambda: one
