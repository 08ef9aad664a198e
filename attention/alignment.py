"""Which word of an edit prompt is which word of the source's prompt, token by token.

Prompt-to-prompt refinement (Hertz et al. 2022), on words: the two prompts are read in order,
and their words are matched so that as many as possible have a partner (a longest common
subsequence). Words of the edit prompt without a partner are new, and are what the edit is
about. Of several longest matchings the one is chosen that takes first occurrences, so that words
which occur several times are matched in order, and that puts word in place of word, so that in
a swap of colours the things stay. Weights such as (red:1.2) do not matter.

The cross-attention sees tokens, of which most are none of a word's: start tokens, end tokens
and the padding after them get much of the attention, and have partners too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .words import Prompt, Word, listing

NONE = -1  # in place of a source's token


@dataclass(frozen=True)
class Alignment:
    """Two prompts, word by word.

    partners   for each word of `edit`, the number of its word in `source`; None for a new word
    """

    source: Prompt
    edit: Prompt
    partners: tuple[int | None, ...]

    @property
    def new(self) -> tuple[Word, ...]:
        """Words of the edit prompt that the source has not: the keywords."""
        return tuple(word for word, partner in zip(self.edit.words, self.partners, strict=True) if partner is None)

    @property
    def left_out(self) -> tuple[Word, ...]:
        """Words of the source that the edit prompt has not."""
        return tuple(word for number, word in enumerate(self.source.words) if number not in self.partners)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """For each of the edit prompt's `length` tokens the source's token, -1 where there is none.

        Pieces of a word go to the pieces of its partner, one by one. The start token of a chunk
        of 77 goes to that of the source's chunk, the end token and the padding to those equally
        far after its end, as far as it goes. Chunks that the source has not go to its last.
        Punctuation goes to punctuation at the same place between words, in order.
        """
        partner = [NONE] * self.edit.length
        for word, number in zip(self.edit.words, self.partners, strict=True):
            if number is not None:
                theirs = self.source.words[number].tokens
                for piece, token in enumerate(word.tokens):
                    partner[token] = theirs[min(piece, len(theirs) - 1)]
        self._pair_punctuation(partner)
        chunks = list(_chunks(self.source))
        for number, (start, end, stop) in enumerate(_chunks(self.edit)):
            their_start, their_end, their_stop = chunks[min(number, len(chunks) - 1)]
            partner[start] = their_start
            for token in range(end, stop):
                partner[token] = min(their_end + token - end, their_stop - 1)
        return tuple(partner)

    def _pair_punctuation(self, partner: list[int]) -> None:
        """Within every gap between two aligned tokens: the first to the first, the second to the second."""
        paired = set(partner)
        gaps: dict[int, list[int]] = {}
        gap = NONE
        for token, is_mark in _inside(self.source):
            if token in paired:
                gap = token
            elif is_mark:
                gaps.setdefault(gap, []).append(token)
        gap = NONE
        for token, is_mark in _inside(self.edit):
            if partner[token] != NONE:
                gap = partner[token]
            elif is_mark and gaps.get(gap):
                partner[token] = gaps[gap].pop(0)

    def text(self) -> str:
        """For people: a line for each word of the edit prompt, `red  new`, and what is left out."""
        names, theirs = (listing(prompt.words).split(", ") for prompt in (self.edit, self.source))
        wide = max(map(len, names))
        lines = [
            f"{name:<{wide}}   {'new' if partner is None else '= ' + theirs[partner]}"
            for name, partner in zip(names, self.partners, strict=True)
        ]
        if gone := [name for number, name in enumerate(theirs) if number not in self.partners]:
            lines.append(f"left out: {', '.join(gone)}")
        return "\n".join(lines)


def align(source: Prompt, edit: Prompt, where: str) -> Alignment:
    """Match the words of an edit prompt with those of the source's prompt.

    Raises ValueError where both have the same words (nothing is edited), and where they share
    none (nothing is kept).
    """
    before, after = ([word.text for word in prompt.words] for prompt in (source, edit))
    if before == after:
        raise ValueError(
            f"{where}: edit_text has the same words as source_text ({listing(edit.words)}), so that nothing is "
            "edited; write into edit_text what the edited picture shows"
        )
    partners = matched(before, after)
    if all(partner is None for partner in partners):
        raise ValueError(
            f"{where}: edit_text ({listing(edit.words)}) shares no word with source_text ({listing(source.words)}), so "
            "that nothing is kept; write both in the same words where the picture stays as it is"
        )
    return Alignment(source, edit, partners)


def matched(before: Sequence[str], after: Sequence[str]) -> tuple[int | None, ...]:
    """A longest common subsequence: for each of `after` its place in `before`, or None."""
    # longest[i][j]: how many of before[i:] and after[j:] can be matched
    longest = [[0] * (len(after) + 1) for _ in range(len(before) + 1)]
    for i in reversed(range(len(before))):
        for j in reversed(range(len(after))):
            longest[i][j] = (
                longest[i + 1][j + 1] + 1 if before[i] == after[j] else max(longest[i + 1][j], longest[i][j + 1])
            )
    partners: list[int | None] = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        if before[i] == after[j]:  # equal heads belong to some longest matching
            partners[j] = i
            i, j = i + 1, j + 1
        elif longest[i + 1][j + 1] == longest[i][j]:  # one word in place of another
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return tuple(partners)


def _chunks(prompt: Prompt) -> Iterator[tuple[int, int, int]]:
    """Of every chunk the start token, the first end token, and where the next chunk begins."""
    for (start, stop), end in zip(pairwise((*prompt.starts, prompt.length)), prompt.ends, strict=True):
        yield start, end, stop


def _inside(prompt: Prompt) -> Iterator[tuple[int, bool]]:
    """The tokens between starts and ends, in order; True for those that belong to no word."""
    spoken = {token for word in prompt.words for token in word.tokens}
    for start, end, _ in _chunks(prompt):
        for token in range(start + 1, end):
            yield token, token not in spoken
