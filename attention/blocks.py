"""Which self-attentions a patch acts on: a small language of block names.

    all                every self-attention of the model
    down, mid, up      a whole side of the UNet
    d4                 one block, under the host's number (input block 4)
    d1-d5, u3-u8       the blocks of a range that have self-attention
    u4.0, d7.2-5       only these transformer layers inside (SDXL's blocks are up to 10 deep)
    grid0, grid1-2     every block whose grid is the latent's own, a half, a quarter ...
    !mid               takes away again; after `all` when it comes first

Terms are separated by commas and read from left to right: `up,!u11`, `grid1-2,d1.0`.
The names are the numbers that the host gives to blocks: input blocks d0, d1 ..., the middle
block m0 and output blocks u0, u1 ...
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

SIDES = {"d": "input", "m": "middle", "u": "output"}
LETTERS = {host: letter for letter, host in SIDES.items()}
WORDS = {"down": "d", "mid": "m", "up": "u"}


class Block(NamedTuple):
    """One self-attention of a UNet, in the host's words: ("input", 4) and the layer's index."""

    side: str
    number: int
    depth: int
    level: int  # 0: the latent's own grid, 1: a half, 2: a quarter

    @property
    def key(self) -> tuple[str, int, int]:
        """The name under which the host calls patches: (side, number, depth)."""
        return (self.side, self.number, self.depth)


_TERM = re.compile(r"(?P<side>[dmu])(?P<first>\d+)(?:-[dmu]?(?P<last>\d+))?(?:\.(?P<top>\d+)(?:-(?P<bottom>\d+))?)?")
_GRID = re.compile(r"grid(?P<first>\d+)(?:-(?P<last>\d+))?")
_SPLIT_SIDES = re.compile(r"([dmu])\d+-([dmu])\d+")


def describe(blocks: Iterable[Block]) -> str:
    """The blocks that a model has, for error messages: `d1 d2 (1 deep), d7 d8 (10 deep), m0 ...`."""
    depths: dict[tuple[str, int], int] = {}
    for block in blocks:
        key = (LETTERS[block.side], block.number)
        depths[key] = max(depths.get(key, 0), block.depth + 1)
    groups: list[tuple[int, list[str]]] = []
    for (letter, number), depth in depths.items():
        if not groups or groups[-1][0] != depth:
            groups.append((depth, []))
        groups[-1][1].append(f"{letter}{number}")
    return ", ".join(f"{' '.join(names)} ({depth} deep)" for depth, names in groups)


def _inside(value: int, first: str, last: str | None) -> bool:
    return int(first) <= value <= int(last if last is not None else first)


def _matches(term: str, blocks: list[Block]) -> list[Block] | None:
    """Blocks that one term names; None where the term is not of the language."""
    if term == "all":
        return blocks
    if term in WORDS:
        return [block for block in blocks if LETTERS[block.side] == WORDS[term]]
    if grid := _GRID.fullmatch(term):
        return [block for block in blocks if _inside(block.level, grid["first"], grid["last"])]
    sides = _SPLIT_SIDES.match(term)
    named = _TERM.fullmatch(term)
    if named is None or (sides and sides[1] != sides[2]):
        return None
    found = [block for block in blocks if LETTERS[block.side] == named["side"]]
    found = [block for block in found if _inside(block.number, named["first"], named["last"])]
    if named["top"] is not None:
        found = [block for block in found if _inside(block.depth, named["top"], named["bottom"])]
    return found


def select(text: str, blocks: Iterable[Block], who: str) -> frozenset[tuple[str, int, int]]:
    """Keys of the blocks that `text` names, out of the self-attentions `blocks` that a model has.

    Raises ValueError, with the list of what the model has, for a term that cannot be read,
    that names nothing in this model, or when nothing is left.
    """
    having = list(blocks)
    chosen: set[Block] = set()
    terms = [term.strip().lower() for term in re.split(r"[,\uff0c]", text) if term.strip()]
    if not terms:
        raise ValueError(f"{who}: blocks is empty; write all, or some of {describe(having)}")
    for position, term in enumerate(terms):
        away = term.startswith("!")
        found = _matches(term.removeprefix("!").strip(), having)
        if found is None:
            raise ValueError(
                f"{who}: blocks has {term!r}, which is not a block name; write for example "
                f"all, up, d4, u3-u8, d7.0-4, grid1 or !mid. This model has {describe(having)}"
            )
        if not found:
            raise ValueError(f"{who}: blocks has {term!r}, but this model has self-attention in {describe(having)}")
        if away:
            chosen = (chosen if position else set(having)) - set(found)
        else:
            chosen |= set(found)
    if not chosen:
        raise ValueError(f"{who}: blocks {text!r} leaves no block; this model has {describe(having)}")
    return frozenset(block.key for block in chosen)
