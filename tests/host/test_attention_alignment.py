"""Prompts aligned token by token, as the host's own tokenizers cut them up."""

from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import pytest

from latent_layers.attention.alignment import align
from latent_layers.attention.capture_host import read_prompt


def clip_with(tokenizer):
    """The host's CLIP without its text encoders: only the tokenizer is asked."""
    clip: Any = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = tokenizer, {}
    return clip


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def tokenizer(request):
    made = {"sd1": comfy.sd1_clip.SD1Tokenizer, "sdxl": comfy.sdxl_clip.SDXLTokenizer}[request.param]()
    return clip_with(made)


def aligned(clip, source, edit):
    return align(read_prompt(clip, source, "test"), read_prompt(clip, edit, "test"), "test")


def flat(clip, text):
    return [token for chunk in clip.tokenize(text)["l"] for token, _ in chunk]


@pytest.mark.parametrize(
    ("source", "edit"),
    [
        ("a blue star, on a wall.", "a red star, on a wall."),
        ("a star and a ring and a star", "a star and a small ring and a big star!"),
        ("a chiaroscuro portrait, t-shirt, don't", "a dark chiaroscuro portrait, t-shirt, don't"),
        ("a red star, " * 20 + "at night", "a blue star, " + "a red star, " * 19 + "at night"),
    ],
)
def test_aligned_tokens_are_the_same_in_the_vocabulary(tokenizer, source, edit):
    found = aligned(tokenizer, source, edit)
    before, after = flat(tokenizer, source), flat(tokenizer, edit)
    assert len(found.tokens) == len(after) == found.edit.length
    new = {token for word in found.new for token in word.tokens}
    for token, partner in enumerate(found.tokens):
        assert (partner == -1) == (token in new) or after[token] not in before
        assert partner == -1 or before[partner] == after[token]
    assert found.new


def test_hand_checked_tokens(tokenizer):
    """start 0, a 1, blue 2, star 3, comma 4, and 5, a 6, star 7, end 8; the edit has red and small in their places."""
    found = aligned(tokenizer, "a blue star, and a star", "a red star, and a small star")
    assert found.partners == (0, None, 2, 3, 4, None, 5)
    assert found.tokens[:10] == (0, 1, -1, 3, 4, 5, 6, -1, 7, 8)
    assert found.tokens[10:] == tuple(range(9, 76))
    shorter = aligned(tokenizer, "a small red star", "a star").tokens
    assert shorter[:4] == (0, 1, 4, 5) and shorter[-3:] == (76, 76, 76)  # padding, as far as it goes


def test_weights_do_not_matter(tokenizer):
    one = aligned(tokenizer, "a blue star", "a red star")
    assert aligned(tokenizer, "a (blue:1.3) star", "(a (red) star:0.7)") == one
    with pytest.raises(ValueError, match="nothing is edited"):
        aligned(tokenizer, "a star", "a (star:1.4)")


def test_more_chunks_than_the_source(tokenizer):
    found = aligned(tokenizer, "a star", "a red star, " + "very " * 90 + "shiny")
    assert (found.source.length, found.edit.length) == (77, 154)
    assert found.tokens[77] == 0  # its start token
    end = found.edit.ends[1]
    assert found.tokens[end] == found.source.ends[0] == 3
    assert found.tokens[end + 1] == 4
    back = aligned(tokenizer, "a red star, " + "very " * 90 + "shiny", "a star")
    assert (back.tokens[0], back.tokens[3]) == (0, back.source.ends[0])
