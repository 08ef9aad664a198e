"""Equations 5, 6, 7 and 9 against plain loops in float64, and the table that people edit."""

import math

import pytest
import torch

from latent_layers.attention.alignment import align
from latent_layers.attention.timings import (
    Timing,
    WordTimings,
    filtered,
    keyword_embedding,
    read_table,
    saliency,
    similarities,
    tau_of,
    voting,
    word_embeddings,
)
from latent_layers.attention.words import Prompt, Word

N, C, H, W = 4, 6, 5, 3
FLOOR = 0.03


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_maps():
    """Attention to words, as a softmax over more tokens than these leaves it; the last one is faint everywhere."""
    maps = (random(N, H, W, seed=1) * 2).softmax(0) * 0.15
    maps[-1] = maps[-1] / maps[-1].max() * FLOOR / 2
    return maps


def embedding_in_float64(plane, values, centre=None):
    """Equation 5, pixel by pixel."""
    kept = [(y, x) for y in range(H) for x in range(W) if plane[y, x].item() >= FLOOR]
    kept = kept or [(y, x) for y in range(H) for x in range(W)]
    total = sum(plane[y, x].item() for y, x in kept)
    vector = [sum(plane[y, x].item() / total * values[c, y, x].item() for y, x in kept) for c in range(C)]
    if centre is not None:
        vector = [v - m.item() for v, m in zip(vector, centre, strict=True)]
    return unit(vector)


def unit(vector):
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("with_centre", [False, True])
def test_equations_5_6_7_and_9(with_centre):
    maps, values = some_maps(), random(C, H, W, seed=2) + 0.8
    centre = values.flatten(1).mean(1) if with_centre else None
    embeddings = word_embeddings(maps, values, FLOOR, centre)
    want = [embedding_in_float64(plane, values, centre) for plane in maps]
    assert torch.allclose(embeddings, torch.tensor(want), atol=1e-5)

    keyword = keyword_embedding(embeddings, (1, 2))
    want_keyword = unit([(a + b) / 2 for a, b in zip(want[1], want[2], strict=True)])
    assert torch.allclose(keyword, torch.tensor(want_keyword), atol=1e-5)

    alike = similarities(embeddings, keyword)
    want_alike = [dot(vector, want_keyword) for vector in want]
    assert alike.tolist() == pytest.approx(want_alike, abs=1e-5)

    taus = tau_of(alike, (1, 2), 0.9).tolist()
    assert taus == pytest.approx(
        [0.0 if i in (1, 2) else 0.9 * (1 - math.exp(a - 1)) for i, a in enumerate(want_alike)], abs=1e-5
    )

    picture = torch.stack([values, random(C, H, W, seed=3)])
    marked = saliency(keyword, picture, 0.8, centre)
    assert marked.shape == (2, H, W)
    for b in range(2):
        for y in range(H):
            for x in range(W):
                pixel = [picture[b, c, y, x].item() - (centre[c].item() if centre is not None else 0) for c in range(C)]
                assert marked[b, y, x].item() == pytest.approx(
                    min(max(0.8 * dot(unit(pixel), want_keyword), 0), 1), abs=1e-5
                )


def test_the_filter_and_the_faint():
    maps = some_maps()
    passed, faint = filtered(maps, FLOOR)
    assert faint == [False, False, False, True]
    assert torch.equal(passed[-1], maps[-1])  # whole: else the word would be nowhere
    low = maps[:-1] < FLOOR
    assert low.any() and not low.all()
    assert (passed[:-1][low] == 0).all() and torch.equal(passed[:-1][~low], maps[:-1][~low])
    assert torch.equal(filtered(maps, 0.0)[0], maps)


def test_faint_keywords_do_not_vote():
    assert voting((1, 2), [True, False, True, False]) == (1,)
    assert voting((0, 2), [True, False, True, False]) == (0, 2)  # somebody has to
    assert voting((1, 3), [True, False, True, False]) == (1, 3)


def test_a_word_that_looks_at_one_pixel_is_that_pixel():
    values = random(C, H, W)
    maps = torch.zeros(1, H, W)
    maps[0, 2, 1] = 0.07
    found = word_embeddings(maps, values, FLOOR)[0]
    assert torch.allclose(found, values[:, 2, 1] / values[:, 2, 1].norm(), atol=1e-6)
    assert saliency(found, values[None], 1.0)[0, 2, 1] == pytest.approx(1.0, abs=1e-5)


def test_what_hidden_states_have_in_common_hides_differences_unless_taken_off():
    values = torch.zeros(2, 1, 4)
    values[0], values[1] = 100.0, torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    maps = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]])
    raw = word_embeddings(maps, values, 0.0)
    assert similarities(raw, raw[0])[1] > 0.99
    centred = word_embeddings(maps, values, 0.0, values.flatten(1).mean(1))
    assert similarities(centred, centred[0]).tolist() == pytest.approx([1.0, -1.0])


def test_tau_stays_in_the_schedule():
    alike = torch.tensor([-1.0, 0.0, 1.0, 0.5])
    assert tau_of(alike, (), 1.0).tolist() == pytest.approx([1 - math.exp(-2), 1 - math.exp(-1), 0, 1 - math.exp(-0.5)])
    assert tau_of(alike, (), 4.0).max() == 1.0
    assert tau_of(alike, (3,), 4.0)[3] == 0.0
    assert tau_of(alike, (), 0.0).tolist() == [0.0] * 4


def test_half_precision_hidden_states():
    values = (random(1, C, H, W) * 300).to(torch.float16)
    keyword = torch.nn.functional.normalize(random(C, seed=4), dim=0)
    assert torch.equal(saliency(keyword, values, 1.0), saliency(keyword, values.float(), 1.0))
    assert saliency(keyword, values, 1.0).dtype == torch.float32


def prompt(text, marks=()):
    """A prompt of 10 tokens; `marks` are positions of punctuation."""
    words, position = [], 0
    for written in text.split():
        position += 1
        while position in marks:
            position += 1
        words.append(Word(written, (position,)))
    return Prompt(tuple(words), (0,), (max(position, *marks, 0) + 1,), 10)


def timings(source="a blue star star", edit="a red star star", taus=(0.2, 0.0, 0.4, 0.9), marks=()):
    alignment = align(prompt(source, marks), prompt(edit, marks), "test")
    names = ("a", "red", "star", "star#2")
    rows = tuple(Timing(name, 0.5, tau) for name, tau in zip(names, taus, strict=True))
    return WordTimings(alignment, rows, torch.ones(C) / C**0.5, None, ("output", 5, 0), torch.zeros(H, W))


def test_table():
    assert timings().table().splitlines() == [
        "a        similarity  0.50   tau 0.20",
        "red      similarity  0.50   tau 0.00",
        "star     similarity  0.50   tau 0.40",
        "star#2   similarity  0.50   tau 0.90",
    ]


def test_a_table_is_read_back():
    given = timings()
    assert given.with_table(given.table(), "test").timings == given.timings
    assert given.with_table("  \n\n", "test").timings == given.timings


@pytest.mark.parametrize(
    "line",
    [
        "star#2 similarity 0.1 tau 0.25",
        "star#2 similarity -0.40   tau 25e-2",
        "star#2 0.25",
        "  STAR#2\ttau=0.25  ",
        "star#2: .25",
        "star#2=.25",
    ],
)
def test_a_line_as_people_write_it(line):
    changed = timings().with_table(f"\n{line}\n", "test").timings
    assert [timing.tau for timing in changed] == [0.2, 0.0, 0.4, 0.25]
    assert [timing.similarity for timing in changed] == [0.5] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moon 0.3", r"Node: taus has the line 'moon 0.3', but the edit prompt has the words a, red, star, star#2"),
        ("star#3 0.3", "'star#3 0.3', but the edit prompt has"),
        ("star 0.3\nstar 0.4", "Node: taus has two lines for 'star'"),
        ("star much", "the line 'star much'; its tau is .* from 0 to 1"),
        ("star 1.2", "from 0 to 1"),
        ("star -0.1", "from 0 to 1"),
        ("star nan", "from 0 to 1"),
        ("star", "the line 'star'; write a word and its tau"),
        ("star 0.3 0.4 0.5", "write a word and its tau"),
    ],
)
def test_a_table_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        timings().with_table(text, "Node: taus")


def test_embeddings_have_a_colon_in_their_name():
    assert read_table("embedding:glow 0.3", ["embedding:glow"], "test") == {"embedding:glow": 0.3}
    assert read_table("a:0.3", ["a"], "test") == {"a": 0.3}


def test_tau_of_every_token():
    found = timings(marks=(4,)).token_taus()  # a red star , star
    assert found.dtype == torch.float32 and found.shape == (10,)
    rest = 0.2  # that of the word that lets go first
    # start, a, red (new: its own map always), star, comma, second star, end, padding
    assert found.tolist() == pytest.approx([rest, 0.2, 0.0, 0.4, rest, 0.9, *[rest] * 4])
    assert timings(taus=(0.0, 0.5, 0.0, 0.0)).token_taus().eq(0.0).all()  # the plain edit prompt


def test_tokens_without_a_partner_have_their_own_map():
    alignment = align(prompt("a star"), prompt("a red star", marks=(3,)), "test")
    rows = tuple(Timing(name, 0.5, tau) for name, tau in (("a", 0.3), ("red", 0.0), ("star", 0.5)))
    found = WordTimings(alignment, rows, torch.ones(C), None, ("output", 5, 0), torch.zeros(H, W)).token_taus()
    assert found[:6].tolist() == pytest.approx([0.3, 0.3, 0.0, 0.0, 0.5, 0.3])
