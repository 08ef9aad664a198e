"""What the toy model is trained on: pictures without end, and the numbers of their captions' words."""

import comfy.sd1_clip
import numpy as np
import torch

from .backgrounds import KINDS
from .mistakes import mistaken
from .scenes import COLOURS, SHAPES, Scene, random_scene
from .shape_hint import shape_shares


class Pictures(torch.utils.data.Dataset):
    """Training scenes by index: what the caption says, what is seen, compact token ids (77,), shares of the shapes.

    Pictures are uint8 (3, 256, 256). What is seen is what the caption says, but for every
    second picture `with_mistakes`; those have a caption and objects, half of them several.
    """

    def __init__(self, count: int, vocabulary: "Vocabulary", empty: float, first: int = 0, with_mistakes: bool = False):
        self.count, self.vocabulary, self.empty, self.first = count, vocabulary, empty, first
        self.with_mistakes = with_mistakes

    def __len__(self) -> int:
        return max(0, self.count - self.first)  # a shorter run than the one before has nothing left to do

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        index = position + self.first
        wrong = self.with_mistakes and index % 2 == 1
        objects = ((1, 4) if index % 4 == 1 else (2, 4)) if wrong else (0, 4)
        scene = random_scene(index, objects=objects, stream="training")
        picture = _eight_bit(scene)
        seen = _eight_bit(mistaken(scene, np.random.default_rng([2, index]))) if wrong else picture
        # deterministic and evenly spread
        dropped = not wrong and (index * 0.6180339887) % 1.0 < self.empty
        ids = self.vocabulary.encode("" if dropped else scene.caption())
        return picture, seen, ids, torch.from_numpy(shape_shares(scene))


def _eight_bit(scene: Scene) -> torch.Tensor:
    return torch.from_numpy((scene.image() * 255 + 0.5).astype("uint8")).movedim(2, 0)


class Vocabulary:
    """The few tokens that captions use, numbered from 1; 0 is every other token."""

    def __init__(self):
        self.tokenizer = comfy.sd1_clip.SD1Tokenizer()
        words = ["a an and , on background small large two three four", *COLOURS, *KINDS]
        for shape in SHAPES:
            words += [shape, " ".join([shape.split()[0] + "s", *shape.split()[1:]])]
        found = {token for word in [*words, "crosses"] for token in self._tokens(word)}
        self.ids = sorted(found)
        self.number = {token: i + 1 for i, token in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def encode(self, text: str) -> torch.Tensor:
        """Compact ids (77,) of `text`, as the host's tokenizer splits it."""
        return torch.tensor([self.number.get(token, 0) for token in self._tokens(text)])

    def _tokens(self, text: str) -> list[int]:
        return [token for token, _ in self.tokenizer.tokenize_with_weights(text)["l"][0]]
