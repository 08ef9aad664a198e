"""Which words say where an edit is: roles that the user gives, and what two texts differ in.

What one text has in place of another's words is looked for where it can be seen. Words that go
name something that the picture shows, and the model's attention to them, while it is told what
the picture shows, lies there. What the new words name is not in the picture yet, so that they
are asked only where nothing goes for them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..attention.alignment import matched
from ..attention.words import Prompt, find_words

ROLES = {"+": 1, "-": -1, "~": 0, "=": 1}
LEADS = "="
FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "and", "or", "of", "on", "in", "at", "by", "to", "with", "without", "from", "under", "over",
     "behind", "beside", "near", "is", "are", "its", "his", "her", "their")
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What is decided before the attention is seen.

    positions  P_n that the user gives, by number of the word
    leads      words that lead together in place of an index word
    among      where none does: words of which the index word is one, whose map parts most clearly
    """

    positions: Mapping[int, int] = field(default_factory=dict)
    leads: tuple[int, ...] = ()
    among: tuple[int, ...] = ()


def read_roles(text: str, prompt: Prompt, who: str) -> Given:
    """Roles that the user gives to words: "+star, -background, ~red, =circle".

    + or no sign is +1, - is -1, ~ is 0. = is +1, and the word leads: the others are compared with
    it (with all of these) instead of the index word. A later term overrides an earlier one.
    Raises ValueError for a word that the prompt lacks, and where no word could be +1.
    """
    positions: dict[int, int] = {}
    leads: set[int] = set()
    for term in (term.strip() for term in re.split(r"[,\uff0c]", text)):
        if not term:
            continue
        name = term[1:].strip() if term[0] in ROLES else term
        for word in find_words(prompt, name or term, who):
            number = prompt.words.index(word)
            positions[number] = ROLES.get(term[0], 1)
            (leads.add if term[0] == LEADS else leads.discard)(number)
    if len(positions) == len(prompt.words) and 1 not in positions.values():
        raise ValueError(f"{who}: words {text!r} leaves no word to make the mask of; give one a +")
    return Given(positions, tuple(sorted(leads)))


def changed_words(prompt: Prompt, source: Prompt) -> tuple[int, ...]:
    """Numbers of the words of an edit prompt that the source's prompt has not, or has elsewhere.

    Both are read in order, so that "a red star and a blue ring" is a change of "red" and "blue"
    from "a blue star and a red ring", although it has the same words.
    """
    return tuple(n for n, partner in enumerate(_partners(prompt, source)) if partner is None)


def gone_and_added(prompt: Prompt, source: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the source's words that an edit prompt has not, and of its own words that stand for none of these.

    From "a red star" to "a blue star with a hat": red goes, blue comes in its place, hat is added.
    Function words count where nothing else differs.
    """
    partners = _partners(prompt, source)
    gone: list[int] = []
    added: list[int] = []
    # words between two that both texts share, at the beginning, or at the end
    shared = [(-1, -1), *((n, p) for n, p in enumerate(partners) if p is not None)]
    for (here, there), (next_here, next_there) in pairwise([*shared, (len(partners), len(source.words))]):
        old = _content(source, range(there + 1, next_there))
        gone += old
        added += () if old else _content(prompt, range(here + 1, next_here))
    if gone or added:
        return tuple(gone), tuple(added)
    left_out = tuple(n for n in range(len(source.words)) if n not in partners)
    return left_out, () if left_out else changed_words(prompt, source)


def _partners(prompt: Prompt, source: Prompt) -> tuple[int | None, ...]:
    before, after = ([word.text.lower() for word in p.words] for p in (source, prompt))
    return matched(before, after)


def _content(prompt: Prompt, numbers: Sequence[int]) -> list[int]:
    """Those of some words that are no function words."""
    return [n for n in numbers if prompt.words[n].text not in FUNCTION_WORDS]


def phrases(prompt: Prompt, numbers: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the words that stand together with some words: up to a function word or punctuation.

    Function words among `numbers` count only where there is nothing else: "a red ring" becomes
    "an orange ring" by its colour, not by its article.
    """
    words = prompt.words
    meant = _content(prompt, numbers) or list(numbers)
    found = set(meant)
    for number in meant:
        for step in (1, -1):
            here = number
            while 0 <= here + step < len(words) and words[here + step].text not in FUNCTION_WORDS:
                first, second = sorted((here, here + step))
                if words[second].tokens[0] != words[first].tokens[-1] + 1:
                    break  # a comma has a token of its own
                here += step
                found.add(here)
    return tuple(sorted(found))


def led_by(given: Given, among: Sequence[int]) -> Given:
    """Roles in which one of some words leads, unless the user has said which do, or has given all of these a role."""
    free = tuple(n for n in among if n not in given.positions)
    return given if given.leads or not free else replace(given, among=free)
