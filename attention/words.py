"""Words of a prompt and the tokens that stand for them in its conditioning.

Names are the user's way to say which maps are meant: `star, red`. A word is what is written
without a space, without the punctuation around it: `t-shirt`, `don't`, `1girl` and `1990` are
one word each although the tokenizer cuts them up, `red,blue` are two. Its tokens are those of
its letters and digits; hyphens and the like inside it are left out, since their maps are noise.

Nothing here knows a tokenizer: `attention.capture_host` reads the host's and hands in pieces.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EMBEDDING = "embedding:"
JOINERS = ("-", "_", "'", "’")


@dataclass(frozen=True)
class Word:
    """One word of a prompt.

    text    lower case, as the tokenizer has it; an embedding's is `embedding:name`
    tokens  its positions in the conditioning, ascending; start tokens and all chunks are counted
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the cross-attention sees it.

    words   in the order of the prompt; a word that occurs twice is there twice
    starts  positions of the start tokens, one for each chunk of 77
    ends    positions of the first end token of each chunk
    length  number of tokens of the conditioning
    """

    words: tuple[Word, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Piece:
    """What a tokenizer takes for one unit: a run of letters, a digit, a run of punctuation.

    text    lower case; None for an embedding, whose tokens are vectors
    tokens  positions in the conditioning
    """

    text: str | None
    tokens: tuple[int, ...]


def read_words(pieces: Sequence[Piece], written: Sequence[str]) -> tuple[Word, ...]:
    """Words of a prompt from its pieces, in order, and the text that they were made of.

    written: the prompt's parts between spaces, without the syntax of weights. It says which
    pieces belong together; where it differs from the pieces (a tokenizer with rules of its
    own for some script), every piece is a word by itself.
    """
    groups = _along(pieces, written)
    if groups is None:
        groups = [(piece.text or EMBEDDING.rstrip(":"), [piece]) for piece in pieces]
    return tuple(word for name, group in groups for word in _words(name, group))


def _along(pieces: Sequence[Piece], written: Sequence[str]) -> list[tuple[str, list[Piece]]] | None:
    """Pieces in groups that were written without a space, with their text; None where they do not fit."""
    groups: list[tuple[str, list[Piece]]] = []
    left = list(reversed(pieces))
    for part in written:
        rest = unicodedata.normalize("NFC", part).lower()
        if rest.startswith(EMBEDDING):
            name = re.split(r"[<\[]", rest)[0].rstrip(",")
            if left and left[-1].text is None:
                groups.append((name, [left.pop()]))
                rest = rest[len(name) :]
            elif not (left and rest.startswith(left[-1].text or " ")):
                rest = rest[len(name) :]  # there is no such embedding, and the host has left it out
        group: list[Piece] = []
        text = rest
        while rest:
            if not left or not left[-1].text or not rest.startswith(left[-1].text):
                return None
            rest = rest[len(left[-1].text) :]
            group.append(left.pop())
        groups.append((text, group))
    return None if left else groups


def _words(name: str, group: Sequence[Piece]) -> Iterator[Word]:
    """Words of a group without spaces: cut at punctuation that does not join."""
    texts: list[str] = []
    tokens: list[int] = []
    joiner = ""
    for piece in group:
        if piece.text is None:
            yield Word(name, piece.tokens)
        elif _is_spoken(piece.text):
            texts += [joiner, piece.text]
            tokens += piece.tokens
            joiner = ""
        elif piece.text in JOINERS and texts and not joiner:
            joiner = piece.text
        elif texts:
            yield Word(_trimmed("".join(texts)), tuple(tokens))
            texts, tokens, joiner = [], [], ""
    if texts:
        yield Word(_trimmed("".join(texts)), tuple(tokens))


def _trimmed(text: str) -> str:
    """Without punctuation at its ends: some pieces are a pictograph with an exclamation mark."""
    spoken = [i for i, character in enumerate(text) if _is_spoken(character)]
    return text[spoken[0] : spoken[-1] + 1]


def _is_spoken(text: str) -> bool:
    """Whether there is a letter, a digit or a pictograph in it; all else is punctuation."""
    return any(category[0] in "LNM" or category == "So" for category in map(unicodedata.category, text))


def listing(words: Sequence[Word]) -> str:
    """Words under the names that `find_words` takes: `red, star, star#2`."""
    seen: Counter[str] = Counter()
    names = []
    for word in words:
        seen[word.text] += 1
        names.append(word.text if seen[word.text] == 1 else f"{word.text}#{seen[word.text]}")
    return ", ".join(names)


def find_words(prompt: Prompt, names: str, where: str) -> tuple[Word, ...]:
    """Words of a prompt by their names, separated by commas; upper and lower case are the same.

    `star` is every star of the prompt, `star#2` the second one. In the order of the names,
    none of them twice. Raises ValueError, with the words that the prompt has, for a name it
    lacks and where there is no name.
    """
    found: dict[Word, None] = {}
    wanted = [name.strip() for name in re.split(r"[,\uff0c]", names) if name.strip()]
    if not wanted:
        raise ValueError(f"{where}: words is empty; name some of the prompt's words: {listing(prompt.words)}")
    for name in wanted:
        matches = _named(prompt.words, name.lower())
        if not matches:
            numbered = re.fullmatch(r"(.+)#(\d+)", name.lower())
            # an embedding may be called by its name alone
            matches = _named(prompt.words, EMBEDDING + name.lower())
            if not matches and numbered:
                every = _named(prompt.words, numbered[1])
                matches = every[int(numbered[2]) - 1 : int(numbered[2])] if int(numbered[2]) else []
        if not matches:
            raise ValueError(
                f"{where}: words has {name!r}, but the prompt has the words {listing(prompt.words)}; "
                f"use some of these, one by one with commas between"
            )
        found.update(dict.fromkeys(matches))
    return tuple(found)


def _named(words: Sequence[Word], text: str) -> list[Word]:
    return [word for word in words if word.text == text]
