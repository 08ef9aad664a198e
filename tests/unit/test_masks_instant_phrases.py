"""Where the search for an instant mask begins: words that the edit changes, and those around them."""

import numpy as np
import pytest
import torch

from latent_layers.attention.words import Prompt, Word
from latent_layers.masks import instant, instant_words
from latent_layers.masks.edges import GuidedFilter
from latent_layers.masks.instant import Refinement, Refinements, Settings
from latent_layers.masks.instant_words import Given


def prompt_of(text):
    words = tuple(Word(w, (n + 1,)) for n, w in enumerate(text.split()))
    return Prompt(words, (0,), (len(words) + 1,), 77)


@pytest.mark.parametrize(
    ("source", "edit", "changed"),
    [
        ("a blue star on a wall", "a red star on a wall", ["red"]),
        ("a blue star on a wall", "a blue letter T on a wall", ["letter", "T"]),
        ("a blue star and a red ring", "a red star and a blue ring", ["red", "blue"]),
        ("A Blue star", "a blue star in the snow", ["in", "the", "snow"]),
        ("a blue star on a wall", "a star on a wall", []),
        ("a blue star", "a blue star", []),
    ],
)
def test_words_that_the_edit_changes(source, edit, changed):
    prompt = prompt_of(edit)
    found = instant_words.changed_words(prompt, prompt_of(source))
    assert [prompt.words[n].text for n in found] == changed


@pytest.mark.parametrize(
    ("text", "numbers", "together"),
    [
        ("a small white star on a wall", [2], ["small", "white", "star"]),
        ("an orange cross on a wall", [0, 1], ["orange", "cross"]),  # "an" stands in for "a"
        ("a star on a wall", [0], ["a", "star"]),
        ("a red star and a blue ring", [1, 5], ["red", "star", "blue", "ring"]),
    ],
)
def test_words_of_a_phrase(text, numbers, together):
    found = instant_words.phrases(prompt_of(text), numbers)
    assert [prompt_of(text).words[n].text for n in found] == together


@pytest.mark.parametrize(
    ("source", "edit", "gone", "added"),
    [
        ("a blue star on a wall", "a red star on a wall", ["blue"], []),
        ("a blue star", "a blue star with a hat", [], ["hat"]),
        ("a blue star", "a red star with a hat", ["blue"], ["hat"]),
        ("a blue star with a hat", "a blue star", ["hat"], []),
        ("a star on a wall", "an orange star on a wall", [], ["orange"]),  # "an" stands in for "a"
        ("an orange star", "a star", ["orange"], []),
        ("a red star and a blue ring", "a blue star and a red ring", ["red", "blue"], []),
        ("Snow on a hill", "snow on the hill", ["a"], []),  # only function words
        ("snow on hill", "snow on the hill", [], ["the"]),
        ("a blue star", "A blue star", [], []),
    ],
)
def test_words_that_go_and_words_that_are_added(source, edit, gone, added):
    before, after = prompt_of(source), prompt_of(edit)
    old, new = instant_words.gone_and_added(after, before)
    assert [before.words[n].text for n in old] == gone and [after.words[n].text for n in new] == added


def test_a_phrase_ends_at_punctuation():
    # "red hair, blue eyes": the comma has token 3
    words = tuple(Word(*pair) for pair in (("red", (1,)), ("hair", (2,)), ("blue", (4,)), ("eyes", (5,))))
    comma = Prompt(words, (0,), (6,), 77)
    assert instant_words.phrases(comma, [2]) == (2, 3) and instant_words.phrases(comma, [0]) == (0, 1)


def test_one_of_the_phrase_leads_unless_the_user_says_otherwise():
    prompt = prompt_of("a red star on a wall")
    assert instant_words.led_by(Given(), (1, 2)) == Given(among=(1, 2))
    own = instant_words.read_roles("=star", prompt, "x")
    assert instant_words.led_by(own, (1, 2)) == own
    both = instant_words.read_roles("~red, -star", prompt, "x")
    assert instant_words.led_by(both, (1, 2)) == both
    one = instant_words.read_roles("-red", prompt, "x")
    assert instant_words.led_by(one, (1, 2)) == Given({1: -1}, among=(2,))


def test_the_clearest_map_of_the_phrase_leads():
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(3, 9, 13, generator=generator)
    maps[1, 2:5, 3:8] += 3
    assert instant.clearest(maps) == 1
    assert instant.clearest(torch.ones(2, 4, 4)) == 0  # nothing to tell them apart by
    by_hand = []
    for plane in maps.double().numpy():
        high = plane > instant.otsu(torch.from_numpy(plane))
        by_hand.append((plane[high].mean() - plane[~high].mean()) / (plane[high].std() + plane[~high].std()))
    assert int(np.argmax(by_hand)) == 1

    # of words 2 and 4 the one with a clear map leads, although word 0's is as clear
    attention = 0.01 * torch.rand(77, 9, 13, generator=generator)
    attention[1, 6:, :4] += 0.5
    attention[3, 2:5, 3:8] += 0.5
    words = prompt_of("one two three four five")
    run = Refinement(words, (17, 26), Settings(), Given(among=(2, 4)))
    run(attention)
    assert [role.leads for role in run.roles] == [False, False, True, False, False]


def test_of_several_texts_each_adds_to_the_mask():
    generator = torch.Generator().manual_seed(5)
    settings, size = Settings(edges=False, blur=False), (18, 26)
    parts, attention = [], []
    for text, rows in (("red star", slice(1, 4)), ("hat here", slice(6, 8))):
        one = 0.01 * torch.rand(77, 9, 13, generator=generator)
        one[1, rows, 3:8] += 0.5
        attention.append(one)
        parts.append(Refinement(prompt_of(text), size, settings, Given({1: 0}, (0,))))
    alone = [Refinement(prompt_of("red star"), size, settings, Given({1: 0}, (0,)))(one)[1] for one in attention]
    mask, refined = Refinements(parts)(attention)
    assert torch.equal(refined, torch.maximum(*alone)) and torch.equal(mask, (refined > settings.phi).float())
    assert mask[4, 10] == 1 and mask[14, 10] == 1 and mask[10, 22] == 0


def test_the_map_follows_the_pictures_edges_unless_that_is_off():
    generator = torch.Generator().manual_seed(6)
    attention, guide = torch.rand(77, 9, 13, generator=generator), torch.rand(4, 18, 26, generator=generator)

    def refined(guide, **changes):
        return Refinement(prompt_of("red star"), (18, 26), Settings(**changes), Given(leads=(0,)), guide=guide)(
            attention
        )

    plain = refined(None, blur=False)[1]
    assert torch.allclose(refined(guide)[1], instant.min_max(GuidedFilter(guide)(plain)), atol=1e-5)
    assert torch.equal(refined(guide, edges=False)[1], refined(None)[1])
    assert not torch.equal(refined(guide)[1], refined(None)[1])
