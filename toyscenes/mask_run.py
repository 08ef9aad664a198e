"""Masks by words in use: both nodes as they are shipped, and a picture drawn again inside a mask."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from ..attention.host import apply_keep_source
from ..inversion.trajectory import Trajectory
from ..masks.instant import Settings
from ..masks.instant_host import InstantMask, instant_mask, word_mask
from ..nodes.instant import InstantAttentionMask
from ..nodes.instant import WordMask as WordMaskNode
from .pipeline import Toy
from .text_run import fresh_start, guided
from .word_edits import WordEdit


def node_defaults(node: Any) -> dict[str, Any]:
    """The settings that a node has when it is dropped into a graph."""
    return {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}


class Shipped:
    """Both nodes with their defaults, or with some changed."""

    def __init__(self, toy: Toy) -> None:
        self.toy, self.word = toy, node_defaults(WordMaskNode)
        self.instant = {**asdict(Settings()), **node_defaults(InstantAttentionMask)}
        self.cfg = float(self.instant["cfg"])

    def instant_mask(self, model: Any, edit: WordEdit, latent: Tensor, seed: int, **changes: Any) -> InstantMask:
        """Instant Attention Mask of one picture, latent (1, C, h, w)."""
        given = {**self.instant, **changes}
        return instant_mask(
            model, self.toy.clip, edit.prompt, latent, self.toy.condition(), seed=seed, sampler=given["sampler_name"],
            settings=Settings(**{f.name: given[f.name] for f in fields(Settings)}),
            source_text=edit.caption if given.get("compares", True) else "",
            **{name: given[name] for name in ("seeds", "steps", "cfg", "scheduler", "strength", "words")},
        )  # fmt: skip

    def word_mask(self, edit: WordEdit, trajectory: Trajectory, named: Sequence[str]) -> Tensor:
        """Word Mask of one source by words of its caption, MASK (1, H, W)."""
        return word_mask(
            self.toy.model, self.toy.clip, trajectory, edit.caption, ", ".join(named), steps=self.word["steps"],
            start=self.word["start_percent"], end=self.word["end_percent"], threshold=self.word["threshold"],
            edges=self.word["edges"],
        ).hard  # fmt: skip


def one_of(trajectory: Trajectory, number: int) -> Trajectory:
    """The trajectory of one picture of a batch."""
    latents = [x[number : number + 1] for x in trajectory.latents]
    return Trajectory(trajectory.sigmas, latents, trajectory.family, trajectory.latent_format)


def fill(
    toy: Toy, source: Trajectory, sources: Tensor, masks: Tensor, prompts: Sequence[str], cfg: float,
    seeds: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Second stage: drawn again inside the masks (B, H, W), the source kept outside; composited IMAGEs.

    It begins at the source's own noise, or with `seeds`, as in the article, at new noise. A
    picture whose mask is empty or full comes back as it was: there is nothing to fill, or
    nothing to keep.
    """
    usable = (masks.amax((1, 2)) > 0) & (masks.amin((1, 2)) < 1)
    # where there is nothing to do some mask has to stand for it, as pictures are sampled together
    stand_in = masks.new_zeros(masks.shape[1:])
    stand_in[0, 0] = 1
    worked = torch.where(usable[:, None, None], masks, stand_in)
    keep = apply_keep_source(toy.model, source, worked)
    start = source if seeds is None else fresh_start(source, worked, seeds)
    pictures = toy.decode(guided(toy, keep, start, source.sigmas, prompts, cfg))
    return composite(sources, pictures, masks * usable[:, None, None])


def composite(sources: Tensor, pictures: Tensor, masks: Tensor) -> Tensor:
    """ImageCompositeMasked: the edit inside the masks (B, H, W), the source's own pixels outside."""
    return torch.where(masks[..., None] > 0.5, pictures, sources)
