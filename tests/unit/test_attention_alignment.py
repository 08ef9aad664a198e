"""Which word of an edit prompt is which of the source's, and which token which."""

import itertools
import random

import pytest

from latent_layers.attention.alignment import Alignment, align
from latent_layers.attention.words import Prompt, Word

CHUNK = 10  # tokens of a chunk in these prompts; 77 in the host's


def prompt(*chunks):
    """A prompt of chunks as tokens: `,` is punctuation, `cro+chet` two pieces, `t/-/shirt` has a joiner."""
    words, starts, ends = [], [], []
    for number, text in enumerate(chunks):
        position = number * CHUNK
        starts.append(position)
        for written in text.split():
            if written in ",.!":
                position += 1
                continue
            tokens = []
            for piece in written.replace("/", "+").split("+"):
                position += 1
                if piece != "-":
                    tokens.append(position)
            words.append(Word(written.replace("+", "").replace("/", ""), tuple(tokens)))
        ends.append(position + 1)
        assert position + 1 < (number + 1) * CHUNK
    return Prompt(tuple(words), tuple(starts), tuple(ends), CHUNK * len(chunks))


def partners(source, edit):
    return align(prompt(source), prompt(edit), "test").partners


@pytest.mark.parametrize(
    ("source", "edit", "want"),
    [
        ("a blue star", "a red star", (0, None, 2)),
        ("a star", "a red star", (0, None, 1)),
        ("a red star", "a star", (0, 2)),
        ("a star on a wall", "a star on a wall at night", (0, 1, 2, 3, 4, None, None)),
        # repeated words in order: the first a, the second a, the second star
        ("a star a star", "a star a moon a star", (0, 1, 2, None, None, 3)),
        ("a star and a ring", "a ring and a star", (0, None, 2, 3, None)),
        # a swap is no identity, though the words are the same
        ("red star blue ring", "blue star red ring", (None, 1, None, 3)),
        ("star star star", "star", (0,)),
        # two in order beat one that is nearer
        ("x a b c", "a x b c", (1, None, 2, 3)),
        ("a b c d", "c d a b", (2, 3, None, None)),
    ],
)
def test_words(source, edit, want):
    assert partners(source, edit) == want


def test_no_longer_matching_exists():
    """Against every subsequence of short random prompts; and the matching is in order, of equal words."""
    draw = random.Random(3)
    for _ in range(200):
        before, after = ([draw.choice("abc") for _ in range(draw.randint(1, 6))] for _ in range(2))
        if before == after or not set(before) & set(after):
            continue
        found = partners(" ".join(before), " ".join(after))
        pairs = [(j, i) for i, j in enumerate(found) if j is not None]
        assert pairs == sorted(pairs) and len({j for j, _ in pairs}) == len(pairs)
        assert all(before[j] == after[i] for j, i in pairs)
        common = max(
            size
            for size in range(len(after) + 1)
            for chosen in itertools.combinations(after, size)
            if chosen in itertools.combinations(before, size)
        )
        assert len(pairs) == common


def test_new_words_and_those_left_out():
    found = align(prompt("a blue star"), prompt("a red shiny star"), "test")
    assert [word.text for word in found.new] == ["red", "shiny"]
    assert [word.text for word in found.left_out] == ["blue"]
    assert found.text() == "a       = a\nred     new\nshiny   new\nstar    = star\nleft out: blue"
    assert align(prompt("a star"), prompt("a red star"), "test").text().count("\n") == 2  # nothing is left out


def test_a_word_that_occurs_twice_is_called_by_its_number():
    found = align(prompt("a star a moon"), prompt("a star a ring"), "test")
    assert found.text() == "a      = a\nstar   = star\na#2    = a#2\nring   new\nleft out: moon"


def tokens(source, edit):
    source, edit = (prompt(*([text] if isinstance(text, str) else text)) for text in (source, edit))
    found = align(source, edit, "test").tokens
    assert len(found) == edit.length and all(-1 <= token < source.length for token in found)
    return found


def test_tokens_of_one_chunk():
    #       start a  red star end, then padding by its distance from the end
    want = (0, 1, -1, 2, 3, 4, 5, 6, 7, 8)
    assert tokens("a star", "a red star") == want
    # the edit is shorter: its padding never reaches the source's last tokens
    assert tokens("a red star", "a star") == (0, 1, 3, 4, 5, 6, 7, 8, 9, 9)


def test_pieces_of_a_word_go_to_pieces():
    assert tokens("a cro+chet star", "red cro+chet star")[:6] == (0, -1, 2, 3, 4, 5)


def test_punctuation_between_the_same_words():
    #            start a  ,  star  .  end
    assert tokens("a , star .", "a , red star .")[:7] == (0, 1, 2, -1, 3, 4, 5)
    # a mark that the source lacks has no partner; one that the edit lacks is passed over
    assert tokens("a star .", "a , red star .")[:7] == (0, 1, -1, -1, 2, 3, 4)
    assert tokens("a , star .", "red a star .")[:6] == (0, -1, 1, 3, 4, 5)
    # two marks in one gap, around a word that was replaced: first to first, second to second
    assert tokens("a , x , star", "a , y , star")[:7] == (0, 1, 2, -1, 4, 5, 6)
    # three against two: the third is new
    assert tokens("a , , star", "a , , , red star")[:7] == (0, 1, 2, 3, -1, -1, 4)
    # before the first aligned word
    assert tokens("! a star", "red ! a star")[:6] == (0, -1, 1, 2, 3, 4)


def test_a_joiner_inside_a_word():
    assert tokens("a t/-/shirt", "red t/-/shirt")[:6] == (0, -1, 2, 3, 4, 5)


def test_chunks():
    """10 tokens to a chunk: the second chunk's special tokens are at 10 and after its end."""
    found = tokens(("a star", "on blue"), ("a red star", "on blue"))
    assert found[:10] == (0, 1, -1, 2, 3, 4, 5, 6, 7, 8)
    assert found[10:] == tuple(range(10, 20))
    # the edit has a chunk more: its start, end and padding go to the source's only chunk
    found = tokens("a star", ("a red star", "on blue"))
    assert found[10:] == (0, -1, -1, 3, 4, 5, 6, 7, 8, 9)
    # the edit has a chunk less, and a word has crossed the edge
    found = tokens(("a star", "on blue"), "a star on")
    assert found == (0, 1, 2, 11, 3, 4, 5, 6, 7, 8)


def test_nothing_to_edit():
    with pytest.raises(ValueError, match=r"Word Timings: edit_text has the same words .*\(a, star\)"):
        align(prompt("a , star"), prompt("a star"), "Word Timings")


def test_nothing_to_keep():
    with pytest.raises(ValueError, match=r"Word Timings: edit_text \(red, moon\) shares no word .*\(a, star\)"):
        align(prompt("a star"), prompt("red moon"), "Word Timings")


def test_alignments_are_values():
    one, other = (align(prompt("a star"), prompt("a red star"), "test") for _ in range(2))
    assert one.tokens == other.tokens
    assert one == other == Alignment(prompt("a star"), prompt("a red star"), (0, None, 1))
    assert one.tokens is one.tokens  # worked out once
