"""Candidates: scores against a plain float64 computation, what they must not see, and the order that follows."""

import math

import pytest
import torch
import torch.nn.functional as F

from latent_layers.masks.candidates import agreement, describe, direction, fidelity, normalised, prepare, rank
from latent_layers.masks.candidates_sheet import contact_sheet

GREEN = torch.tensor([24, 140, 78]) / 255


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def scene(shape: str = "disc", colour=(0.8, 0.2, 0.1), size: int = 96) -> torch.Tensor:
    """A disc or a square of one colour on a slope of grey, (1, size, size, 3)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    across, down = abs(x - size / 2), abs(y - size / 2)
    far = torch.hypot(across, down) if shape == "disc" else torch.maximum(across, down)
    picture = torch.tensor([0.5, 0.55, 0.6]) * (0.8 + 0.2 * x[..., None] / size)
    picture[far < size / 4] = torch.tensor(colour)
    return picture[None]


def box(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, width // 4 : 2 * width // 3] = 1
    return mask


def scores(pictures, source, mask=None) -> list[float]:
    return fidelity(prepare(pictures, source, mask)).tolist()


def windows(values: torch.Tensor) -> torch.Tensor:
    """(n, H, W) -> (H*W, n, 121): the 11x11 pixels around every pixel, 0 outside."""
    return F.unfold(F.pad(values, (5, 5, 5, 5))[None], 11)[0].unflatten(0, (-1, 121)).permute(2, 0, 1)


def plain_structure(a: torch.Tensor, b: torch.Tensor, kept: torch.Tensor) -> float:
    """S of two pictures (H, W, 3) with weights (H, W), every window written out, float64."""
    steps = torch.arange(-5, 6, dtype=torch.float64)
    bell = torch.exp(-(steps**2) / (2 * 1.5**2))
    weights = windows(kept[None]) * (bell[:, None] * bell).flatten()
    seen = kept.flatten() > 0
    weights = (weights / weights.sum(2, keepdim=True))[seen]
    x, y = (windows(picture.movedim(-1, 0))[seen] for picture in (a, b))
    x, y = (one - (weights * one).sum(2, keepdim=True) for one in (x, y))
    sizes = [
        torch.einsum("pw,pcw,pdw->pcd", weights[:, 0], one, other).square().sum((1, 2)).sqrt()
        for one, other in ((x, y), (x, x), (y, y))
    ]
    constant = 3 * 0.03**2
    alike = (2 * sizes[0] + constant) / (sizes[1] + sizes[2] + constant)
    return float((alike * kept.flatten()[seen]).sum() / kept.sum())


@pytest.mark.parametrize("size", [(20, 20), (13, 31), (3, 5)])
def test_without_a_mask_it_is_the_structure(size):
    source, pictures = noise(1, *size, 3), noise(3, *size, 3, seed=1)
    pictures[1] = (0.8 * source[0] + 0.2 * pictures[1]).flip(-1)
    ones = torch.ones(size, dtype=torch.float64)
    want = [plain_structure(picture.double(), source[0].double(), ones) for picture in pictures]
    assert scores(pictures, source) == pytest.approx(want, abs=1e-10)
    assert want[1] > want[0] + 0.2


@pytest.mark.parametrize("masks", [1, 3])
def test_with_a_mask_it_is_structure_times_colour_where_it_is_kept(masks):
    source, pictures = noise(1, 23, 30, 3), noise(3, 23, 30, 3, seed=1) * 0.5 + 0.25
    mask = (noise(masks, 23, 30, seed=2) * 1.6 - 0.3).clamp(0, 1)  # with places that are 0 and 1
    got = scores(pictures, source, mask)
    for index, picture in enumerate(pictures.double()):
        kept = 1 - mask[index % masks].double()
        colours = float(((picture - source[0].double()).abs().mean(-1) * kept).sum() / kept.sum())
        want = plain_structure(picture, source[0].double(), kept) * math.exp(-colours / 0.1)
        assert got[index] == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("size, factor", [((384, 385), 2), ((641, 700), 3)])
def test_large_pictures_are_compared_at_about_256_pixels(size, factor):
    source, strip = noise(1, *size, 3), 8
    picture = (source + 0.2 * noise(1, *size, 3, seed=1)).clamp(0, 1)
    mask = noise(1, *size, seed=2)
    mask[:, strip * factor :] = 1  # the reference needs a lot of memory: a strip is enough
    kept = 1 - mask[0, : strip * factor].double()

    def shrunk(values):  # (H, W, n): the mean of every square, the last ones narrower
        lines = torch.stack([part.mean(0) for part in values.split(factor)])
        return torch.stack([part.mean(1) for part in lines.split(factor, 1)], 1)

    small = shrunk(kept[..., None])
    wide = [one[0, : strip * factor].double() for one in (picture, source)]
    a, b = (shrunk(one * kept[..., None]) / small for one in wide)
    difference = float(((wide[0] - wide[1]).abs().mean(-1) * kept).sum() / kept.sum())
    want = plain_structure(a, b, small[..., 0]) * math.exp(-difference / 0.1)
    assert scores(picture, source, mask) == [pytest.approx(want, abs=1e-9)]


def test_the_source_itself_is_1_exactly():
    source = noise(1, 70, 45, 3)
    assert scores(source, source) == [1.0]
    assert scores(source, source, box(70, 45)) == [1.0]


def test_what_is_inside_the_mask_has_no_effect():
    source, mask = noise(1, 70, 62, 3), box(70, 62)
    outside = (source + 0.1 * noise(1, 70, 62, 3, seed=1)).clamp(0, 1)
    edits = [torch.where(mask[..., None] > 0, inside, outside) for inside in (source, 1 - source, torch.zeros(3))]
    first, *others = scores(torch.cat(edits), source, mask)
    assert 0.1 < first < 0.9 and others == [first, first]


@pytest.mark.parametrize(
    "turned", [lambda p: 1 - p, lambda p: p.roll(1, -1), lambda p: p + 0.2, lambda p: p * torch.tensor([1.0, -1, 1])]
)
def test_structure_does_not_see_how_things_are_coloured(turned):
    source = noise(1, 30, 40, 3) * 0.4 + 0.1
    picture = turned(source)
    assert scores(picture - picture.min().clamp(max=0), source) == [pytest.approx(1.0, abs=1e-12)]


def test_another_colour_counts_less_than_another_shape():
    source = scene()
    green, bright, square, gone, moved = scores(
        torch.cat(
            [
                scene(colour=(0.1, 0.6, 0.2)),
                scene(colour=(0.9, 0.9, 0.2)),
                scene("square"),
                scene(colour=(0.45, 0.5, 0.54)),
                scene().roll(8, 2),
            ]
        ),
        source,
    )
    assert min(green, bright) > 0.97 > max(square, gone, moved) + 0.02


def test_with_a_mask_another_colour_outside_counts():
    source, mask = scene() * 0.5, box(96, 96)
    kept, tinted, darker = scores(
        torch.cat([source, source + torch.tensor([0.05, 0, 0.01]), source + 0.3]), source, mask
    )
    assert kept == 1.0
    assert tinted == pytest.approx(math.exp(-0.02 / 0.1), abs=1e-6)
    assert darker == pytest.approx(math.exp(-0.3 / 0.1), abs=1e-6)


def test_a_candidates_score_does_not_depend_on_the_others():
    source, pictures = noise(1, 40, 56, 3), noise(4, 40, 56, 3, seed=1)
    together = scores(pictures, source, box(40, 56))
    assert [scores(one[None], source, box(40, 56))[0] for one in pictures] == together


def test_other_precisions_channels_values_and_mask_sizes():
    source, pictures, mask = noise(1, 48, 64, 3), noise(2, 48, 64, 3, seed=1), box(48, 64)
    want = scores(pictures, source, mask)
    assert scores(pictures.half(), source.half(), mask.half()) == pytest.approx(want, abs=2e-3)
    alpha = noise(2, 48, 64, 1, seed=5)
    assert scores(torch.cat([pictures, alpha], -1), source, mask) == want
    assert scores(torch.where(pictures > 0.9, 1.7, pictures), source) == scores(
        torch.where(pictures > 0.9, 1.0, pictures), source
    )
    assert scores(pictures, source, mask.repeat_interleave(2, 1).repeat_interleave(2, 2)) == want
    assert scores(pictures, source, mask[0]) == want


def test_nothing_given_is_changed():
    given = [noise(2, 20, 24, 3), noise(1, 20, 24, 3, seed=1), box(20, 24)]
    copies = [one.clone() for one in given]
    checked = prepare(*given)
    ranking = rank({"fidelity": fidelity(checked)})
    contact_sheet(checked, ranking, 1)
    assert all(torch.equal(one, copy) for one, copy in zip(given, copies, strict=True))


def test_agreement_and_direction_are_the_cosines_of_the_papers():
    pictures, source, text, before = (
        noise(*shape, seed=seed) - 0.4 for seed, shape in enumerate([(5, 24), *[(24,)] * 3])
    )
    cosine = torch.nn.CosineSimilarity(dim=-1)
    want = cosine(pictures.double(), text.double()[None])
    assert torch.allclose(agreement(pictures, text), want, atol=1e-12)

    def unit(v):
        return v.double() / v.double().square().sum(-1, keepdim=True).sqrt()

    want = cosine(unit(pictures) - unit(source), (unit(text) - unit(before))[None])
    assert torch.allclose(direction(pictures, source, text, before), want, atol=1e-12)
    assert agreement(pictures.half() * 3, text.half()).dtype == torch.float64


def test_a_picture_that_did_not_move_has_no_direction():
    source, text, before = noise(24), noise(24, seed=1), noise(24, seed=2)
    step = F.normalize(F.normalize(text, dim=0) - F.normalize(before, dim=0), dim=0)
    pictures = torch.stack([source, source + 1e-6 * step, source + 0.5 * step])
    still, hardly, moved = direction(pictures, source, text, before).tolist()
    assert still == 0.0 and 0 < hardly < 1e-3 and moved > 0.5


def test_normalised():
    assert normalised(torch.tensor([0.2, 0.6, 0.4])).tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert normalised(torch.tensor([0.5])).tolist() == [1.0]
    assert normalised(torch.full((3,), 0.3)).tolist() == [1.0] * 3
    close = torch.tensor([0.301, 0.3, 0.302], dtype=torch.float64)
    assert normalised(close).tolist() == pytest.approx([0.9, 0.8, 1.0])  # hundredths, not the whole range


def test_rank_weighs_fidelity_and_text():
    kept = torch.tensor([0.9, 0.5, 0.7, 0.6])
    shown = torch.tensor([0.20, 0.30, 0.28, 0.21])
    moved = torch.tensor([0.0, 0.1, 0.4, 0.2])
    assert rank({"fidelity": kept}, 1.0).order == [0, 2, 3, 1]
    assert rank({"fidelity": kept}, 1.0).text_weight == 0.0
    both = {"fidelity": kept, "text": shown}
    assert rank(both, 0.0).order == [0, 2, 3, 1]
    assert rank(both, 1.0).order == [1, 2, 3, 0]
    assert rank(both, 0.25).total == pytest.approx([0.75, 0.25, 0.575, 0.2125], abs=1e-6)
    three = rank({**both, "direction": moved}, 0.6)
    texts = [(0 + 0) / 2, (1 + 0.25) / 2, (0.8 + 1) / 2, (0.1 + 0.5) / 2]
    want = [0.4 * f + 0.6 * t for f, t in zip([1, 0, 0.5, 0.25], texts, strict=True)]
    assert three.total == pytest.approx(want, abs=1e-5)
    assert three.order == [2, 0, 1, 3]
    assert three.raw["direction"] == moved.tolist()


def test_ties_stay_in_the_candidates_order():
    kept = torch.tensor([0.5, 0.8, 0.5, 0.8, 0.8 - 1e-9], dtype=torch.float64)
    assert rank({"fidelity": kept}).order == [1, 3, 4, 0, 2]


def test_the_text_says_what_was_ranked_and_how():
    scores = {"fidelity": torch.tensor([0.9, 0.5, 0.7]), "text": torch.tensor([0.2, 0.3, 0.28])}
    lines = describe(rank(scores, 0.25), 2).splitlines()
    assert lines == [
        "3 candidate(s), best first, * = kept. Score: 0.75 x fidelity + 0.25 x text.",
        "* 1. candidate 1 (index 0), score 0.750, fidelity 1.00 (0.9000), text 0.00 (0.2000)",
        "* 2. candidate 3 (index 2), score 0.575, fidelity 0.50 (0.7000), text 0.80 (0.2800)",
        "  3. candidate 2 (index 1), score 0.250, fidelity 0.00 (0.5000), text 1.00 (0.3000)",
    ]
    alone = describe(rank({"fidelity": torch.tensor([0.9, 0.5])}), 1).splitlines()
    assert alone[0].endswith("Score: fidelity.") and len(alone) == 3
    with_direction = {**scores, "direction": torch.tensor([0.1, 0.2, 0.3])}
    assert "0.50 x (text + direction) / 2." in describe(rank(with_direction), 1)


def test_the_text_warns_where_scores_cannot_decide():
    same, apart = torch.tensor([0.9, 0.9]), torch.tensor([0.9, 0.8])
    assert "composited already" in describe(rank({"fidelity": same}), 1)
    assert "composited already" not in describe(rank({"fidelity": same[:1]}), 1)
    assert "belong together" in describe(rank({"fidelity": apart, "text": torch.tensor([0.01, -0.02])}), 1)
    assert "Note" not in describe(rank({"fidelity": apart, "text": torch.tensor([0.01, 0.2])}), 1)


@pytest.mark.parametrize("count, size", [(1, (40, 64)), (4, (64, 40)), (5, (400, 300)), (3, (5, 900))])
def test_the_sheet_shows_the_source_and_frames_what_is_kept(count, size):
    colours = noise(count, 1, 1, 3) * 0.3  # dark, so that each is found again on the light paper
    pictures, source = colours.expand(count, *size, 3).clone(), torch.full((1, *size, 3), 0.55)
    ranking = rank({"fidelity": torch.linspace(0.5, 0.9, count), "text": torch.linspace(0.1, 0.11, count)}, 0.2)
    checked = prepare(pictures, source)
    plain, one, all_kept = (contact_sheet(checked, ranking, keep) for keep in (0, 1, count))
    assert plain.shape == one.shape == all_kept.shape and plain.dtype == torch.float32
    assert plain.shape[0] == 1 and plain.shape[-1] == 3 and plain.min() >= 0 and plain.max() <= 1

    def covered(sheet, colour):
        return int(((sheet - colour).abs() < 0.003).all(-1).sum())

    scale = min(1.0, 256 / max(size))
    area = max(1, round(size[0] * scale)) * max(1, round(size[1] * scale))
    for colour in [*colours.flatten(1), torch.tensor([0.55] * 3)]:
        assert covered(plain, colour) >= area
    assert covered(plain, GREEN) == 0
    assert covered(all_kept, GREEN) == count * covered(one, GREEN) > 0


def test_the_best_comes_after_the_source():
    pictures = torch.stack([torch.full((32, 32, 3), level) for level in (0.1, 0.2, 0.3)])
    sheet = contact_sheet(
        prepare(pictures, torch.full((1, 32, 32, 3), 0.4)), rank({"fidelity": torch.tensor([0.5, 0.7, 0.9])}), 1
    )[0, ..., 0]
    row, column = (int(where[0]) for where in torch.nonzero((sheet - 0.4).abs() < 0.003, as_tuple=True))
    first_row = sheet[row + 16]
    assert int(torch.nonzero((first_row - 0.3).abs() < 0.003)[0]) > column + 32
    below = torch.nonzero((sheet[:, column + 16] - 0.2).abs() < 0.003)
    assert int(below[0]) > row + 32


@pytest.mark.parametrize(
    "pictures, source, mask, text",
    [
        (noise(2, 8, 8), noise(1, 8, 8, 3), None, r"candidates has shape \(2, 8, 8\)"),
        (noise(2, 8, 8, 1), noise(1, 8, 8, 3), None, r"candidates has shape \(2, 8, 8, 1\); an IMAGE is"),
        (noise(2, 8, 8, 3), noise(0, 8, 8, 3), None, r"source has shape \(0, 8, 8, 3\)"),
        (noise(2, 8, 8, 3), noise(3, 8, 8, 3), None, "source has a batch of 3; connect the one picture"),
        (
            noise(2, 8, 12, 3),
            noise(1, 8, 16, 3),
            None,
            "candidates are 12x8, source is 16x8; crop or resize the source",
        ),
        (
            noise(2, 8, 8, 3) + torch.tensor([0, 0, math.nan]),
            noise(1, 8, 8, 3),
            None,
            "picture 1 of candidates has val",
        ),
        (noise(2, 8, 8, 3), noise(1, 8, 8, 3) / 0, None, "source has values that are not numbers"),
        (
            noise(2, 8, 8, 3),
            noise(1, 8, 8, 3),
            torch.zeros(1, 8, 8),
            r"mask is empty \(all 0\); paint the area to edit",
        ),
        (noise(2, 8, 8, 3), noise(1, 8, 8, 3), torch.ones(1, 8, 8), "mask is full"),
        (noise(2, 8, 8, 3), noise(1, 8, 8, 3), noise(3, 8, 8), "mask has a batch of 3 for 2 image"),
        (
            noise(2, 8, 8, 3),
            noise(1, 8, 8, 3),
            box(8, 16),
            "mask is 16x8, another shape than the candidates' 8x8 pixels",
        ),
    ],
)
def test_errors_name_the_input(pictures, source, mask, text):
    with pytest.raises(ValueError, match=f"Best Of: {text}"):
        prepare(pictures, source, mask)


def test_a_weight_out_of_range():
    with pytest.raises(ValueError, match="Best Of: text_weight is 1.5; it must be 0 to 1"):
        rank({"fidelity": torch.tensor([0.5])}, 1.5)
