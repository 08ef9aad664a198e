"""Words of prompts read with the host's own tokenizers, against the conditioning they make."""

from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd3_clip
import pytest
import torch

from latent_layers.attention.capture_host import read_prompt
from latent_layers.attention.words import find_words
from latent_layers.toyscenes.model import load

START, END = 49406, 49407


def clip_with(tokenizer):
    """The host's CLIP without its text encoders: only the tokenizer is asked."""
    clip: Any = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = tokenizer, {}
    return clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Embeddings as they are found in the wild: for one width, and for both of SDXL."""
    path = tmp_path_factory.mktemp("embeddings")
    torch.save({"string_to_param": {"*": torch.ones(3, 768)}}, path / "glow.pt")
    torch.save({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, path / "both.pt")
    torch.save({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)}, path / "uneven.pt")
    return str(path)


@pytest.fixture(scope="module")
def sd1(folder):
    return clip_with(comfy.sd1_clip.SD1Tokenizer(embedding_directory=folder))


@pytest.fixture(scope="module")
def sdxl(folder):
    return clip_with(comfy.sdxl_clip.SDXLTokenizer(embedding_directory=folder))


@pytest.fixture(scope="module")
def toy():
    return load()[1]


def texts(clip, text):
    return [word.text for word in read_prompt(clip, text, "test").words]


def special(clip, text, encoder="l"):
    """Positions of start tokens and of the first end token of each chunk, read off the tokens."""
    chunks = clip.tokenize(text)[encoder]
    flat = [[token for token, _ in chunk] for chunk in chunks]
    starts = [i * 77 for i in range(len(flat))]
    return tuple(starts), tuple(start + chunk.index(END) for start, chunk in zip(starts, flat, strict=True))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a Red star, on  blue.", "a red star on blue"),
        ("(star:1.2) and ((ring)) [box] (a (moon:0.5)) (", "star and ring box a moon"),
        (r"star \(painting\) 2", "star painting 2"),
        ("T-shirt don't 1990 1girl,solo red,blue", "t-shirt don't 1990 1girl solo red blue"),
        ("(red:1.2)ish star-(shaped:0.9)", "red ish star shaped"),
        ("extraordinarily antidisestablishmentarianism", "extraordinarily antidisestablishmentarianism"),
        ("cafe\u0301 naïve ☃!", "café naïve ☃"),
        ("a\nred\tstar", "a red star"),
        ("<|endoftext|> star", "star"),
    ],
)
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_words(name, text, want, request):
    assert texts(request.getfixturevalue(name), text) == want.split()


def test_pieces_of_a_word_are_all_its_tokens(sd1):
    prompt = read_prompt(sd1, "a chiaroscuro, (t-shirt:1.3)", "test")
    inverse = sd1.tokenizer.clip_l.inv_vocab
    tokens = [token for token, _ in sd1.tokenize("a chiaroscuro, (t-shirt:1.3)")["l"][0]]
    spelled = {word.text: "".join(inverse[tokens[i]] for i in word.tokens) for word in prompt.words}
    assert spelled == {"a": "a</w>", "chiaroscuro": "chiaroscuro</w>", "t-shirt": "t</w>shirt</w>"}
    assert len(find_words(prompt, "chiaroscuro", "test")[0].tokens) > 1


@pytest.mark.parametrize("count", [1, 20, 80, 200])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_special_tokens_and_long_prompts(name, count, request):
    clip = request.getfixturevalue(name)
    text = "a red star, " * count
    prompt = read_prompt(clip, text, "test")
    starts, ends = special(clip, text)
    assert (prompt.starts, prompt.ends) == (starts, ends)
    assert prompt.length == 77 * len(starts) == 77 * len(clip.tokenize(text)["l"])
    assert [word.text for word in prompt.words] == ["a", "red", "star"] * count
    flat = [token for chunk in clip.tokenize(text)["l"] for token, _ in chunk]
    assert len({tuple(flat[i] for i in word.tokens) for word in find_words(prompt, "star", "test")}) == 1
    covered = [i for word in prompt.words for i in word.tokens]
    assert covered == sorted(set(covered))  # in order, none twice
    assert flat[0] == START and not any(flat[i] in (START, END) for i in covered)


def test_a_word_over_the_edge_of_a_chunk(sd1):
    """The host cuts long segments anywhere, also within a word."""
    text = "a " * 74 + "chiaroscuro star"
    prompt = read_prompt(sd1, text, "test")
    (word,) = find_words(prompt, "chiaroscuro", "test")
    assert word.tokens[0] == 75 and word.tokens[1] == 78  # 76 is the end token, 77 the start token
    assert find_words(prompt, "star", "test")[0].tokens[0] == word.tokens[-1] + 1
    assert prompt.ends[0] == 76 and prompt.starts == (0, 77)


@pytest.mark.parametrize("text", ["a red star", "star, a blue star and a ring", "a red ring, " * 24 + "star"])
def test_the_positions_are_those_of_the_conditioning(toy, text):
    """A weight moves the embeddings of its own word, and of nothing else."""
    with torch.inference_mode():

        def condition(text):
            return toy.encode_from_tokens_scheduled(toy.tokenize(text))[0][0]

        prompt = read_prompt(toy, text, "test")
        plain = condition(text)
        assert plain.shape[1] == prompt.length
        for number, word in enumerate(find_words(prompt, "star", "test")):
            parts = text.split("star")
            weighted = "star".join(parts[: number + 1]) + "(star:1.5)" + "star".join(parts[number + 1 :])
            moved = (condition(weighted) - plain).abs().amax(dim=(0, 2)) > 1e-4
            assert moved.nonzero().flatten().tolist() == list(word.tokens)
            assert read_prompt(toy, weighted, "test") == prompt


def test_embeddings(sd1, sdxl):
    prompt = read_prompt(sd1, "a embedding:glow, star embedding:gone, ring", "test")
    assert [(word.text, word.tokens) for word in prompt.words] == [
        ("a", (1,)), ("embedding:glow", (2, 3, 4)), ("star", (6,)), ("ring", (8,))
    ]  # fmt: skip
    assert find_words(prompt, "glow", "test")[0].tokens == (2, 3, 4)
    twice = read_prompt(sd1, "embedding:glow embedding:glow (embedding:glow:1.2)", "test")
    assert [word.tokens for word in twice.words] == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    both = read_prompt(sdxl, "embedding:both star", "test")
    assert [word.tokens for word in both.words] == [(1, 2), (3,)]
    without = clip_with(comfy.sd1_clip.SD1Tokenizer())
    assert texts(without, "embedding:glow star") == ["embedding", "glow", "star"]


@pytest.mark.parametrize("name", ["glow", "uneven"])
def test_an_embedding_that_only_one_encoder_of_two_takes_alike(sdxl, name):
    """glow has no vectors for the wide encoder, which leaves it out; uneven has more for one than for the other."""
    with pytest.raises(ValueError, match="Word Mask: the text encoders 'g' and 'l' put the words .* at different"):
        read_prompt(sdxl, f"embedding:{name} star", "Word Mask")


@pytest.mark.parametrize("text", ["", "  \n", ", . !", "()"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_an_empty_prompt(name, text, request):
    with pytest.raises(ValueError, match="Word Mask: text is an empty prompt, it has no words"):
        read_prompt(request.getfixturevalue(name), text, "Word Mask")


def test_other_text_encoders():
    clip = clip_with(comfy.text_encoders.sd3_clip.SD3Tokenizer())
    with pytest.raises(ValueError, match="Word Mask: clip has a text encoder 't5xxl', whose words cannot be told"):
        read_prompt(clip, "a star", "Word Mask")
