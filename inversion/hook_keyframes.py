"""Scheduled hooks (a LoRA that changes strength on the way) in a run that goes up through the noise levels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from comfy.hooks import Hook, HookKeyframeGroup
from torch import Tensor


class KeyframesByNoise(HookKeyframeGroup):
    """Keyframes of which σ alone decides the current one: the last that has begun on the way down to it.

    The host's own group only ever moves on to the next keyframe, since samplers go down. A
    keyframe's number of guaranteed steps, which is counted on the way down, has no meaning here.
    """

    def __init__(self, group: HookKeyframeGroup) -> None:
        super().__init__()
        self.keyframes = group.keyframes
        self._set_first_as_current()

    def prepare_current_keyframe(self, curr_t: float | Tensor, transformer_options: dict[str, Any]) -> bool:
        """Choose the keyframe of σ = `curr_t`; whether the strength has changed, so that weights are made anew."""
        if self.is_empty():
            return False
        before = self.strength
        begun = [keyframe for keyframe in self.keyframes if keyframe.start_t >= curr_t]
        self._current_keyframe = begun[-1] if begun else self.keyframes[0]
        return self.strength != before


@contextmanager
def keyframes_by_noise(conditions: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[None]:
    """Within it, hooks of a run's conditions are scheduled by σ alone; afterwards they are as before."""
    groups = [condition["hooks"] for part in conditions.values() for condition in part if condition.get("hooks")]
    hooks: list[Hook] = [hook for group in groups for hook in group.hooks]
    before = [hook.hook_keyframe for hook in hooks]
    swapped = {id(keyframes): KeyframesByNoise(keyframes) for keyframes in before}
    try:
        for hook, keyframes in zip(hooks, before, strict=True):
            hook.hook_keyframe = swapped[id(keyframes)]
        yield
    finally:
        for hook, keyframes in zip(hooks, before, strict=True):
            hook.hook_keyframe = keyframes
