"""Words of a prompt from a tokenizer's pieces, and their names."""

import pytest

from latent_layers.attention.words import Piece, Prompt, Word, find_words, listing, read_words


def pieces(*texts, first=1):
    """Pieces as a tokenizer gives them, one token each; `+` cuts a piece into several, None is an embedding of 2."""
    result = []
    for text in texts:
        count = 2 if text is None else text.count("+") + 1
        result.append(Piece(None if text is None else text.replace("+", ""), tuple(range(first, first + count))))
        first += count
    return result


def words(*texts, written):
    return [(word.text, word.tokens) for word in read_words(pieces(*texts), written.split())]


def prompt(*texts):
    named = tuple(Word(text, (i + 1,)) for i, text in enumerate(texts))
    return Prompt(named, (0,), (len(texts) + 1,), 77)


def test_pieces_of_one_word_belong_together():
    assert words("a", "cro+chet", "star", written="a crochet star") == [
        ("a", (1,)),
        ("crochet", (2, 3)),
        ("star", (4,)),
    ]


def test_punctuation_is_no_word_and_separates():
    got = words("red", ",", "blue", ".", "(", "x", ")", "...", "y", written="red,blue. (x) ...y")
    assert got == [("red", (1,)), ("blue", (3,)), ("x", (6,)), ("y", (9,))]


@pytest.mark.parametrize(
    ("texts", "written", "want"),
    [
        (("t", "-", "shirt"), "T-shirt", [("t-shirt", (1, 3))]),
        (("t", "-", "shirt"), "t - shirt", [("t", (1,)), ("shirt", (3,))]),
        (("don", "'t"), "don't", [("don't", (1, 2))]),
        (("1", "9", "9", "0"), "1990", [("1990", (1, 2, 3, 4))]),
        (("1", "9", "9", "0"), "19 90", [("19", (1, 2)), ("90", (3, 4))]),
        (("1", "girl", ",", "solo"), "1girl,solo", [("1girl", (1, 2)), ("solo", (4,))]),
        (("-", "star", "-"), "-star-", [("star", (2,))]),
        (("a", "--", "b"), "a--b", [("a", (1,)), ("b", (3,))]),
        (("star", "—", "moon"), "star—moon", [("star", (1,)), ("moon", (3,))]),
        (("café", "☃!", "!"), "Cafe\u0301 ☃!!", [("café", (1,)), ("☃", (2,))]),
        (("'s", "star", "'s"), "'s star's", [("s", (1,)), ("star's", (2, 3))]),
    ],
)
def test_what_is_written_in_one_is_one_word(texts, written, want):
    assert words(*texts, written=written) == want


def test_where_the_tokenizer_differs_from_the_text_every_piece_is_a_word():
    got = words("t", "-", "shirt", "straße", written="t-shirt STRASSE")
    assert got == [("t", (1,)), ("shirt", (3,)), ("straße", (4,))]
    assert words("a", "b", "c", written="a b") == [("a", (1,)), ("b", (2,)), ("c", (3,))]
    assert words("a", None, written="a") == [("a", (1,)), ("embedding", (2, 3))]


def test_embeddings():
    got = words("a", None, ",", "star", written="a Embedding:Glow, star")
    assert got == [("a", (1,)), ("embedding:glow", (2, 3)), ("star", (5,))]
    assert words(None, "<", "x", ">", written="embedding:glow<x>") == [("embedding:glow", (1, 2)), ("x", (4,))]
    # the host leaves out embeddings that it cannot find, and reads the name where it has no folder of them
    assert words("a", ",", "star", written="a embedding:gone, star") == [("a", (1,)), ("star", (3,))]
    assert words("embedding", ":", "gone", written="embedding:gone") == [("embedding", (1,)), ("gone", (3,))]


def test_nothing_written():
    assert read_words([], []) == ()
    assert read_words(pieces(",", "!"), [",", "!"]) == ()


def test_find_words():
    text = prompt("a", "red", "star", "and", "a", "blue", "star")
    assert [w.tokens for w in find_words(text, "star", "Word Mask")] == [(3,), (7,)]
    assert [w.tokens for w in find_words(text, " BLUE , Star#2\uff0c star ,, blue", "Word Mask")] == [(6,), (7,), (3,)]
    assert [w.tokens for w in find_words(prompt("embedding:glow", "x"), "Glow,embedding:glow", "Word Mask")] == [(1,)]


@pytest.mark.parametrize("names", ["sun", "star, sun", "star#3", "star#0", "red star", "red#x", "#2"])
def test_a_name_that_the_prompt_lacks(names):
    text = prompt("a", "red", "star", "a", "star")
    with pytest.raises(
        ValueError, match=r"^Word Mask: words has '.*', but the prompt has the words a, red, star, a#2, st"
    ):
        find_words(text, names, "Word Mask")


@pytest.mark.parametrize("names", ["", " , ,"])
def test_no_name(names):
    with pytest.raises(ValueError, match="Word Mask: words is empty; name some of the prompt's words: red, star"):
        find_words(prompt("red", "star"), names, "Word Mask")


def test_every_listed_name_finds_its_word():
    text = prompt("star", "red", "star", "star", "red")
    for name, word in zip(listing(text.words).split(", "), text.words, strict=True):
        assert word in find_words(text, name, "x")
        assert "#" not in name or find_words(text, name, "x") == (word,)
