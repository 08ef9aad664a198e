"""Instant masks against InstDiffEdit's section 4.2 written out in float64 with numpy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from latent_layers.attention.words import Prompt, Word
from latent_layers.masks import instant, instant_words
from latent_layers.masks.instant import Refinement, Settings
from latent_layers.masks.instant_words import Given

WHO = "Instant Attention Mask"
GRIDS = [((16, 16), (32, 32)), ((9, 13), (17, 26)), ((8, 5), (8, 5)), ((3, 4), (11, 16))]


def prompt(*pieces: int, starts=(0,), length=77) -> Prompt:
    """Words of so many pieces each, after the start token."""
    words, position = [], 1
    for number, count in enumerate(pieces):
        words.append(Word(f"word{number}", tuple(range(position, position + count))))
        position += count
    return Prompt(tuple(words), starts, (position,), length)


PROMPT = prompt(1, 2, 1, 3, 1)


def attention(grid, seed=0, tokens=12):
    """Maps like those of a real prompt: two things, each looked at by several tokens, and a start token.

    The start token attends to what is not the first thing.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid), indexing="ij")
    one = np.exp(-((x - 0.4) ** 2 + (y + 0.2) ** 2) * 5)
    two = np.exp(-((x + 0.5) ** 2 + (y - 0.3) ** 2) * 4)
    shares = {1: (1, 0), 2: (0.9, 0.1), 3: (1, 0.1), 4: (0.75, 0.6)}
    maps = np.stack([sum(s * t for s, t in zip(shares.get(n, (0, 1)), (one, two), strict=True)) for n in range(tokens)])
    maps[0] = 1 + two - one
    return maps * rng.uniform(0.001, 0.03, (tokens, 1, 1)) + rng.uniform(0, 1e-4, (tokens, *grid))


# The article in float64


def cubic(distance):
    """Keys' kernel with a = -0.75, torch's bicubic."""
    d = np.abs(distance)
    near = 1.25 * d**3 - 2.25 * d**2 + 1
    far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def resampling(pixels, cells):
    """Matrix (cells, pixels); taps beyond the edge fall on the edge pixel."""
    matrix = np.zeros((cells, pixels))
    for cell in range(cells):
        centre = (cell + 0.5) * pixels / cells - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[cell, min(max(tap, 0), pixels - 1)] += cubic(centre - tap)
    return matrix


def scaled(plane):
    span = plane.max() - plane.min()
    return (plane - plane.min()) / span if span > 1e-5 * abs(plane).max() else np.zeros_like(plane)


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def on_grid(maps, words, size):
    rows, columns = (resampling(n, m) for n, m in zip(maps.shape[1:], size, strict=True))
    start = rows @ maps[0] @ columns.T
    return start, [scaled(rows @ maps[list(word.tokens)].mean(0) @ columns.T) for word in words]


def article_positions(maps, words, size, invert=True, lambda1=0.9, lambda2=0.6, alike=cosine):
    start, planes = on_grid(maps, words, size)
    reference = scaled(1 - scaled(start)) if invert else scaled(start)
    index = int(np.argmax([alike(reference, plane) for plane in planes]))
    similarity = [alike(planes[index], plane) for plane in planes]
    return [1 if s >= lambda1 else -1 if s <= lambda2 else 0 for s in similarity], similarity, index


def article_map(maps, words, size, position, blur=True):
    _, planes = on_grid(maps, words, size)
    wanted = scaled(np.mean([p for p, sign in zip(planes, position, strict=True) if sign == 1], axis=0))
    unwanted = [p for p, sign in zip(planes, position, strict=True) if sign == -1]
    refined = np.maximum(wanted - scaled(np.mean(unwanted, axis=0)), 0) if unwanted else wanted
    for _ in range(2 if blur else 0):
        refined = gaussian_filter(refined, 1.1, radius=2, mode="nearest")
    return scaled(refined)


@pytest.mark.parametrize(("grid", "size"), GRIDS)
@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(blur=False, phi=0.3), Settings(invert_start=False), Settings(0.8, 0.1, correlation=True)],
)
def test_first_step_is_the_article(grid, size, settings):
    maps = attention(grid)
    refinement = Refinement(PROMPT, size, settings)
    hard, soft = refinement(torch.from_numpy(maps).float())
    position, similarity, index = article_positions(
        maps, PROMPT.words, size, settings.invert_start, settings.lambda1, settings.lambda2,
        correlation if settings.correlation else cosine,
    )  # fmt: skip
    want = article_map(maps, PROMPT.words, size, position, settings.blur)
    assert [role.position for role in refinement.roles] == position
    assert [role.leads for role in refinement.roles].index(True) == index
    assert np.allclose([role.similarity for role in refinement.roles], similarity, atol=1e-4)
    assert np.abs(soft.double().numpy() - want).max() < 2e-4
    sure = np.abs(want - settings.phi) > 1e-3
    assert (hard.bool().numpy() == (want > settings.phi))[sure].all()
    assert 0 < hard.sum() < hard.numel() and soft.min() == 0 and soft.max() == 1


def test_the_prompt_has_words_of_every_role():
    position, _, index = article_positions(attention((16, 16)), PROMPT.words, (32, 32))
    assert position == [1, 1, 0, -1, -1] and index in (0, 1)


def test_inverting_the_start_token_finds_what_it_does_not_attend_to():
    maps = torch.from_numpy(attention((16, 16))).float()
    hard, _ = Refinement(PROMPT, (32, 32))(maps)
    other, _ = Refinement(PROMPT, (32, 32), Settings(invert_start=False))(maps)
    # the first thing is at the upper right, the second at the lower left
    assert hard[12, 22] == 1 and hard[20, 7] == 0 and other[12, 22] == 0 and other[20, 7] == 1


@pytest.mark.parametrize("running", [True, False])
def test_positions_stay_and_attention_is_averaged(running):
    size, refinement = (17, 26), Refinement(PROMPT, (17, 26), Settings(running_mean=running))
    steps = [attention((9, 13), seed=seed)[:, ::flip] for seed, flip in ((0, 1), (3, -1), (5, -1))]
    position = article_positions(steps[0], PROMPT.words, size)[0]
    for number in range(3):
        _, soft = refinement(torch.from_numpy(steps[number].copy()).float())
        maps = np.mean(steps[: number + 1], axis=0) if running else steps[number]
        assert np.abs(soft.numpy() - article_map(maps, PROMPT.words, size, position)).max() < 2e-4
        assert [role.position for role in refinement.roles] == position


def test_half_precision_attention():
    maps = attention((16, 16))
    hard, soft = Refinement(PROMPT, (32, 32))(torch.from_numpy(maps).half())
    want = article_map(maps, PROMPT.words, (32, 32), [1, 1, 0, -1, -1])
    assert soft.dtype == hard.dtype == torch.float32
    assert np.abs(soft.numpy() - want).max() < 0.02


def test_a_prompt_of_one_word_uses_its_own_map():
    maps, one = attention((9, 13)), prompt(2)
    refinement = Refinement(one, (17, 26))
    _, soft = refinement(torch.from_numpy(maps).float())
    assert [(role.word, role.position) for role in refinement.roles] == [("word0", 1)]
    assert np.abs(soft.numpy() - article_map(maps, one.words, (17, 26), [1])).max() < 2e-4


def test_start_tokens_of_several_chunks_are_averaged():
    maps = attention((9, 13), tokens=14)
    maps[13] = attention((9, 13), seed=8)[0]
    both = maps.copy()
    both[0] = (maps[0] + maps[13]) / 2
    _, got = Refinement(prompt(1, 2, 1, 3, 1, starts=(0, 13)), (17, 26))(torch.from_numpy(maps).float())
    _, want = Refinement(PROMPT, (17, 26))(torch.from_numpy(both).float())
    assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("value", [0.0, 0.0129, 3.0])
def test_maps_that_say_nothing_make_an_empty_mask(value):
    refinement = Refinement(PROMPT, (17, 26))
    hard, soft = refinement(torch.full((12, 9, 13), value))
    assert torch.equal(soft, torch.zeros(17, 26)) and torch.equal(hard, soft)
    assert refinement.roles[0].position == 1
    assert all(np.isfinite(role.similarity) for role in refinement.roles)


def test_one_constant_map_among_others():
    maps = attention((9, 13))
    maps[8] = 0.01  # the last word's
    hard, soft = Refinement(PROMPT, (17, 26))(torch.from_numpy(maps).float())
    assert torch.isfinite(soft).all() and 0 < hard.sum() < hard.numel()


def test_without_refinement_only_the_index_word_counts():
    maps = attention((9, 13))
    refinement = Refinement(PROMPT, (17, 26), Settings(refine=False, correlation=False))
    _, soft = refinement(torch.from_numpy(maps).float())
    index = article_positions(maps, PROMPT.words, (17, 26))[2]
    position = [int(n == index) for n in range(5)]
    assert [role.position for role in refinement.roles] == position
    assert np.abs(soft.numpy() - article_map(maps, PROMPT.words, (17, 26), position)).max() < 2e-4


def test_a_word_that_looks_nowhere_does_not_lead_by_correlation():
    maps = attention((16, 16))
    maps[8] = 0.02 + 0.002 * np.random.default_rng(2).uniform(-1, 1, (16, 16)) ** 5  # an even grey with specks
    maps[0] += maps[0].mean() * 0.3 * np.random.default_rng(3).uniform(size=(16, 16))
    leading = []
    for settings in (Settings(correlation=False), Settings()):
        refinement = Refinement(PROMPT, (16, 16), settings)
        refinement(torch.from_numpy(maps).float())
        leading.append([role.word for role in refinement.roles if role.leads])
    assert leading == [["word4"], ["word0"]] or leading == [["word4"], ["word1"]]


def test_given_roles_override_and_the_others_keep_theirs():
    maps = attention((9, 13))
    given = instant_words.read_roles("+word3, ~WORD0, -word2, ", PROMPT, WHO)
    assert given == Given({3: 1, 0: 0, 2: -1})
    refinement = Refinement(PROMPT, (17, 26), given=given)
    _, soft = refinement(torch.from_numpy(maps).float())
    assert [role.position for role in refinement.roles] == [0, 1, -1, 1, -1]
    assert np.abs(soft.numpy() - article_map(maps, PROMPT.words, (17, 26), [0, 1, -1, 1, -1])).max() < 2e-4


def test_given_words_lead_in_place_of_the_index_word():
    maps, size = attention((9, 13)), (17, 26)
    _, planes = on_grid(maps, PROMPT.words, size)
    lead = scaled((planes[3] + planes[4]) / 2)
    similarity = [cosine(lead, plane) for plane in planes]
    position = [1 if s >= 0.9 else -1 if s <= 0.6 else 0 for s in similarity]
    assert position[:2] == [-1, -1] and position[3:] == [1, 1]
    refinement = Refinement(PROMPT, size, given=instant_words.read_roles("=word3, = word4", PROMPT, WHO))
    _, soft = refinement(torch.from_numpy(maps).float())
    assert [(role.position, role.leads) for role in refinement.roles] == [(p, n > 2) for n, p in enumerate(position)]
    assert np.abs(soft.numpy() - article_map(maps, PROMPT.words, size, position)).max() < 2e-4


def test_automatic_phi_is_otsus():
    maps = torch.from_numpy(attention((9, 13))).float()
    hard, soft = Refinement(PROMPT, (17, 26), Settings(phi=-1.0))(maps)
    assert torch.equal(hard, (soft > instant.otsu(soft)).float()) and 0 < hard.sum() < hard.numel()


def test_reading_roles():
    twice = Prompt((Word("red", (1,)), Word("star", (2,)), Word("red", (3,))), (0,), (4,), 77)
    assert instant_words.read_roles("", twice, WHO) == Given()
    assert instant_words.read_roles("-red\uff0c+ red#2", twice, WHO) == Given({0: -1, 2: 1})
    assert instant_words.read_roles("red", twice, WHO) == Given({0: 1, 2: 1})
    assert instant_words.read_roles("-red, + red#2", twice, WHO) == Given({0: -1, 2: 1})
    assert instant_words.read_roles("=star, =red, ~red#2", twice, WHO) == Given({1: 1, 0: 1, 2: 0}, (0, 1))
    with pytest.raises(ValueError, match="Instant Attention Mask: words has 'circle'.*red, star, red#2"):
        instant_words.read_roles("+circle", twice, WHO)
    with pytest.raises(ValueError, match=r"words '~red, -star' leaves no word to make the mask of"):
        instant_words.read_roles("~red, -star", twice, WHO)
    with pytest.raises(ValueError, match=r"Instant Attention Mask: words has '\+'"):
        instant_words.read_roles("+", twice, WHO)


@pytest.mark.parametrize("position", [0, -1])
def test_a_word_that_is_taken_off_does_not_lead(position):
    maps = torch.from_numpy(attention((9, 13))).float()
    refinement = Refinement(PROMPT, (17, 26))
    refinement(maps)
    (led,) = (n for n, role in enumerate(refinement.roles) if role.leads)
    other = Refinement(PROMPT, (17, 26), given=Given({led: position}))
    other(maps)
    (leads,) = (n for n, role in enumerate(other.roles) if role.leads)
    assert leads != led and other.roles[leads].position == 1 and other.roles[led].position == position
    _, words = other.maps(maps)
    compared = instant.similarities(words[leads], words, other.settings.correlation)
    assert other.roles[led].similarity == pytest.approx(float(compared[led]))


def test_roles_as_text():
    roles = [
        instant.Role("red", 1, 0.934),
        instant.Role("a", 1, 1.0, True),
        instant.Role("star#2", 0, 0.7),
        instant.Role("on", -1, 0.0),
    ]
    assert [str(role) for role in roles] == [
        "red +1 (similarity 0.93)",
        "a +1 (leads)",
        "star#2 0 (similarity 0.70)",
        "on -1 (similarity 0.00)",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lambda1": 0.9, "lambda2": 0.9}, "lambda2 is 0.9 and lambda1 is 0.9"),
        ({"lambda1": 1.5}, "lambda1 is 1.5"),
        ({"lambda2": -0.1}, "lambda2 is -0.1"),
        ({"phi": 1.0}, "phi is 1"),
        ({"phi": -0.5}, "phi is -0.5"),
    ],
)
def test_settings_that_make_no_sense(changes, text):
    Settings().check(WHO)
    with pytest.raises(ValueError, match=f"{WHO}: {text}"):
        Settings(**changes).check(WHO)


def test_named_words_are_averaged_as_they_are():
    maps = np.stack([attention((9, 13), seed) for seed in (0, 4)])
    words = (PROMPT.words[0], PROMPT.words[3])
    got = instant.named_map(torch.from_numpy(maps).float(), words)
    for plane, image in zip(got.numpy(), maps, strict=True):
        want = scaled(np.mean([image[list(word.tokens)].mean(0) for word in words], axis=0))
        assert np.abs(plane - want).max() < 1e-5


def between(values, threshold):
    """Variance between the values up to a threshold and those above it, unscaled."""
    low, high = values[values <= threshold], values[values > threshold]
    return len(low) * len(high) * (low.mean() - high.mean()) ** 2


def test_otsu_is_the_best_of_all_splits():
    rng = np.random.default_rng(1)
    for values in (
        np.concatenate([rng.normal(0.2, 0.05, 300), rng.normal(0.8, 0.1, 40)]),
        rng.uniform(0, 1, 101),
        rng.integers(0, 5, 77) / 4,
        np.array([0.0, 1.0, 1.0]),
    ):
        got = instant.otsu(torch.from_numpy(values).reshape(1, -1))
        levels = np.unique(values)
        gaps = (levels[:-1] + levels[1:]) / 2
        assert np.isclose(between(values, got), max(between(values, gap) for gap in gaps), rtol=1e-9)
        assert np.abs(gaps - got).min() < 1e-12
    assert instant.otsu(torch.full((4, 5), 0.25)) == 0.25
    assert instant.otsu(torch.tensor([0.5])) == 0.5


def test_strip_shows_every_step_in_order():
    soft = torch.linspace(0, 1, 5 * 6).reshape(5, 2, 3)
    picture = instant.strip(soft, (soft > 0.5).float(), columns=3, side=8)
    height, width = 2 * 4, 3 * 4
    assert picture.shape == (1, 2 * height + 2, 3 * width + 4, 3)
    assert picture.min() >= 0 and picture.max() <= 1
    for number, plane in enumerate(soft):
        top, left = number // 3 * (height + 2), number % 3 * (width + 2)
        red = picture[0, top : top + height : 4, left : left + width : 4]
        grey = plane <= 0.5
        assert torch.allclose(red[grey], plane[grey][:, None].expand(-1, 3))
        assert (red[~grey][:, 0] > red[~grey][:, 2]).all()
    assert torch.equal(picture[0, height + 2 :, 2 * (width + 2) :], torch.full((height, width, 3), 0.25))
