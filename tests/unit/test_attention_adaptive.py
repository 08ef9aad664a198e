"""Soft attention against equations 4, 8 and 9 written out, in float64."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from latent_layers.attention.adaptive import AdaptiveRun, EditPass, SourcePass, SpatialWeight
from latent_layers.attention.alignment import Alignment
from latent_layers.attention.timings import Timing, WordTimings
from latent_layers.attention.words import Prompt, Word
from latent_layers.masks.grid import to_grid

BLOCK = ("output", 8, 0)
GRID = (5, 7)
CELLS = GRID[0] * GRID[1]
WIDTH = 12
CPU = torch.device("cpu")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fused(q, k, v, heads, mask=None, **kwargs):
    """An attention function with the host's signature."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def plainly(given):
    """The attention alone; given: q, k, v."""
    q, k, v = given
    return fused(q, k, v, 3)


def options(grid=GRID, block=BLOCK, heads=3):
    return {"activations_shape": [9, WIDTH, *grid], "block": block[:2], "block_index": block[2], "n_heads": heads}


def prompt(*texts, length):
    """Start token, one token for each word, end token and padding."""
    words = tuple(Word(text, (number,)) for number, text in enumerate(texts, start=1))
    return Prompt(words, (0,), (len(texts) + 1,), length)


def timings(taus=(0.0, 0.0, 0.0, 0.0), source=6, edit=8, **changes):
    """`a red star` becomes `a blue big star`; `blue` and `big` are new."""
    alignment = Alignment(
        prompt("a", "red", "star", length=source), prompt("a", "blue", "big", "star", length=edit), (0, None, None, 2)
    )
    rows = tuple(Timing(word.text, 0.0, tau) for word, tau in zip(alignment.edit.words, taus, strict=True))
    given: dict[str, Any] = {"centre": None, "saliency": random(4, 6, seed=40).sigmoid(), **changes}
    return WordTimings(alignment, rows, F.normalize(random(WIDTH, seed=41), dim=0), block=BLOCK, **given)


def weight(found, lambda_s=1.0, lambda_sv=1.0, mask=None, mask_mode="replace", spatial="fixed"):
    return SpatialWeight(found, lambda_s, lambda_sv, mask, mask_mode, spatial)


ONES = torch.ones(1, 20, 28)
MASK = random(2, 20, 28, seed=9).sigmoid()


def run(found, space=None, sigma=0.5, hold_blocks=frozenset(), hold_sigma=1.0):
    """A run at a noise level, in a model whose noise level is the share of the schedule still to go."""
    made = AdaptiveRun(
        found,
        weight(found, mask=ONES) if space is None else space,
        [1 - tau for tau in found.token_taus().tolist()],
        hold_sigma,
        hold_blocks,
    )
    made.begin(sigma, CPU)
    return made


def attend(branch, given, heads=3, context=None, extra=None, attention=fused):
    """One cross-attention of a UNet call, as the host does it; given: q, k, v."""
    q, k, v = given
    extra = options(heads=heads) if extra is None else extra
    branch.mark(q, torch.zeros(len(k), context or k.shape[1], 4), k, extra)
    out = branch.attend(attention, q, k, v, heads)
    return branch.forget(out, extra)


def both(made, source, edit, source_rows=slice(0, 2), edit_rows=slice(0, 2), contexts=(None, None)):
    """The source's call and the edit's; returns the edit's output."""
    attend(SourcePass(made, [source_rows]), source, context=contexts[0])
    return attend(EditPass(made, [edit_rows]), edit, context=contexts[1])


def tensors(batch=2, keys=8, seed=0):
    return tuple(random(batch, n, WIDTH, seed=seed + i) for i, n in enumerate((CELLS, keys, keys)))


def written_out(source, edit, pairs, w, heads=3):
    """Equations 4 and 8 pixel by pixel: q, k, v (N, C) of one picture; pairs of held (edit, source) tokens."""
    (q0, k0, v0), (q1, k1, v1) = ([t.double() for t in branch] for branch in (source, edit))
    out = torch.zeros_like(q1)
    size = q1.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        before = torch.softmax(q0[:, part] @ k0[:, part].T / size**0.5, dim=1)
        after = torch.softmax(q1[:, part] @ k1[:, part].T / size**0.5, dim=1)
        for own, partner in pairs:
            after[:, own] = before[:, partner]
        out[:, part] = w[:, None] * (after @ v1[:, part]) + (1 - w[:, None]) * (before @ v0[:, part])
    return out


# start, a, star, end, padding: of the source 0 1 3 4 5 5, of the edit 0 1 4 5 6 7
PARTNERS = {0: 0, 1: 1, 4: 3, 5: 4, 6: 5, 7: 5}


@pytest.mark.parametrize(
    ("taus", "sigma", "held"),
    [
        ((0.0, 0.0, 0.0, 0.0), 0.5, ()),  # tau 0: own maps always
        ((1.0, 0.0, 0.0, 1.0), 0.5, (0, 1, 4, 5, 6, 7)),  # tau 1: the source's always, but new words' own
        ((0.25, 0.0, 0.0, 0.75), 0.8, (1, 4, 0, 5, 6, 7)),  # the tokens of no word have the smallest, 0.25
        ((0.25, 0.0, 0.0, 0.75), 0.625, (4,)),
        ((0.25, 0.0, 0.0, 0.75), 0.25, ()),  # while more than 1 - tau is left, not when it is just that
    ],
)
def test_equations_4_and_8(taus, sigma, held):
    found = timings(taus)
    space = weight(found, lambda_s=0.9, lambda_sv=0.8)
    source, edit = tensors(keys=6, seed=1), tensors(keys=8, seed=11)
    got = both(run(found, space, sigma), source, edit)
    saliency = F.interpolate((0.8 * found.saliency)[None, None], GRID, mode="bilinear", antialias=True)
    w = 0.9 * saliency.flatten().double()
    assert w.std() > 0.02
    for image in range(2):
        pairs = [(token, PARTNERS[token]) for token in held]
        want = written_out([t[image] for t in source], [t[image] for t in edit], pairs, w)
        assert (got[image] - want).abs().max() < 1e-5
    plain = plainly(edit)
    assert (got - plain).abs().max() > 0.1


def test_only_the_rows_of_the_branch_change_and_are_kept():
    """The source's rows may be anywhere in its call, with the negative's, and so may the edit's."""
    found = timings((1.0, 0.0, 0.0, 1.0))
    source, edit = tensors(4, 6, seed=1), tensors(6, 8, seed=11)
    got = both(run(found), source, edit, slice(2, 4), slice(2, 4))
    want = both(run(found), [t[2:] for t in source], [t[2:4] for t in edit])
    plain = plainly(edit)
    assert torch.equal(got[:2], plain[:2]) and torch.equal(got[4:], plain[4:])
    assert (got[2:4] - want).abs().max() < 1e-6 and (got[2:4] - plain[2:4]).abs().max() > 0.1


def test_conditionings_that_the_host_has_repeated_are_folded():
    """Of 6 and 8 tokens in batches with others of 12 and 24: as if each were alone."""
    found = timings((1.0, 0.0, 0.0, 1.0))
    source, edit = tensors(keys=6, seed=1), tensors(keys=8, seed=11)
    repeated = [(q, k.repeat(1, n, 1), v.repeat(1, n, 1)) for (q, k, v), n in ((source, 2), (edit, 3))]
    got = both(run(found), repeated[0], repeated[1])
    assert (got - both(run(found), source, edit)).abs().max() < 1e-5


@pytest.mark.parametrize("repeats", [1, 2])
def test_keys_that_other_patches_appended_take_part_and_are_never_held(repeats):
    found = timings((1.0, 0.0, 0.0, 1.0))
    source, edit = tensors(keys=6 + 2, seed=1), tensors(keys=8 + 3, seed=11)
    given = [
        (q, *(torch.cat([t[:, :n].repeat(1, repeats, 1), t[:, n:].repeat(1, repeats, 1)], dim=1) for t in (k, v)))
        for (q, k, v), n in ((source, 6), (edit, 8))
    ]
    got = both(run(found), given[0], given[1], contexts=(6 * repeats, 8 * repeats))
    for image in range(2):
        want = written_out(
            [t[image] for t in source], [t[image] for t in edit], list(PARTNERS.items()), torch.ones(CELLS).double()
        )
        assert (got[image] - want).abs().max() < 1e-5


def test_weight_1_and_no_held_word_leaves_the_edit_alone():
    made = run(timings((0.0, 0.0, 0.0, 0.0)))
    assert not made.needs_source
    edit = tensors(keys=8, seed=11)
    handed = plainly(edit)
    assert attend(EditPass(made, [slice(0, 2)]), edit, attention=lambda *args: handed) is handed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("space", [{"lambda_s": 0.0}, {"mask": torch.zeros(1, 20, 28)}])
def test_weight_0_is_the_source_exactly(space, dtype):
    found = timings((1.0, 0.0, 0.0, 1.0))
    source, edit = ([t.to(dtype) for t in branch] for branch in (tensors(keys=6, seed=1), tensors(seed=11)))
    got = both(run(found, weight(found, **space)), source, edit)
    assert got.dtype == dtype and torch.equal(got, plainly(source))


def test_half_precision_mixes_in_float32():
    found = timings((1.0, 0.0, 0.0, 1.0))
    branches = [tensors(keys=6, seed=1), tensors(seed=11)]
    half = [[t.to(torch.bfloat16) for t in branch] for branch in branches]
    exact = both(run(found), [t.float() for t in half[0]], [t.float() for t in half[1]])
    assert (both(run(found), half[0], half[1]).float() - exact).abs().max() < 0.02


def test_what_comes_back_is_never_the_attentions_own_tensor():
    """A replacement of another pack may hand out what it keeps."""
    made = run(timings((1.0, 0.0, 0.0, 1.0)))
    attend(SourcePass(made, [slice(0, 2)]), tensors(keys=6, seed=1))
    edit, handed = tensors(seed=11), random(2, CELLS, WIDTH, seed=5)
    before = handed.clone()
    got = attend(EditPass(made, [slice(0, 2)]), edit, attention=lambda *args: handed)
    assert torch.equal(handed, before) and not torch.equal(got, handed)


def test_replacements_of_other_packs_are_mixed_whole():
    """Their output counts, whatever they call inside; q, k and v are those that they are given."""
    found = timings((1.0, 0.0, 0.0, 1.0))
    made = run(found)
    source, edit = tensors(keys=6, seed=1), tensors(seed=11)
    got = None
    for branch, given in ((SourcePass(made, [slice(0, 2)]), source), (EditPass(made, [slice(0, 2)]), edit)):
        q, k, v = given
        branch.mark(q, k, v, options())

        def replacement(q, k, v, extra, inner=branch):
            return inner.attend(fused, q, k, v * 0.5, 3) + 1

        got = branch.forget(branch.replaced(replacement, q, k, v, options()), options())
    assert got is not None
    change = both(run(found), source, edit) - plainly(edit)
    assert (got - (fused(edit[0], edit[1], edit[2] * 0.5, 3) + 1 + change)).abs().max() < 1e-5


def test_guidance_that_evaluates_again_finds_the_first_source():
    found = timings((1.0, 0.0, 0.0, 1.0))
    made = run(found, weight(found))
    source, edit = tensors(keys=6, seed=1), tensors(seed=11)
    want = both(made, source, edit)
    attend(SourcePass(made, [slice(0, 2)]), tensors(keys=6, seed=77))
    assert torch.equal(attend(EditPass(made, [slice(0, 2)]), edit), want)


def test_nothing_outlives_an_evaluation():
    made = run(timings((1.0, 0.0, 0.0, 1.0)), hold_blocks=frozenset([BLOCK]), hold_sigma=0.0)
    attend(SourcePass(made, [slice(0, 2)]), tensors(keys=6, seed=1))
    hidden = random(2, CELLS, WIDTH)
    SourcePass(made, [slice(0, 2)]).self_mark(hidden, hidden, hidden, options())
    assert made.kept and made.kept_hidden
    made.end()
    assert not made.kept and not made.kept_hidden and made.held is None and not made.hold_blocks
    with pytest.raises(ValueError, match="the source has left nothing that fits block"):
        made.begin(0.5, CPU)
        attend(EditPass(made, [slice(0, 2)]), tensors(seed=11))


def test_queries_and_keys_of_no_held_word_are_not_kept():
    found = timings()
    made = run(found, weight(found))
    attend(SourcePass(made, [slice(0, 2)]), tensors(keys=6, seed=1))
    assert [(kept.q, kept.k) for kept in made.kept.values()] == [(None, None)]


@pytest.mark.parametrize(("sigma", "holds"), [(0.7, True), (0.6, False)])
def test_held_self_attention_has_the_sources_queries_and_keys(sigma, holds):
    made = run(timings(), sigma=sigma, hold_sigma=0.6, hold_blocks=frozenset([BLOCK]))
    assert made.needs_source is holds
    source, edit = random(2, CELLS, WIDTH, seed=1), random(6, CELLS, WIDTH, seed=2)
    for hidden in (source, -source):  # guidance that evaluates again
        SourcePass(made, [slice(0, 2)]).self_mark(hidden, hidden, hidden, options())
    branch, before = EditPass(made, [slice(2, 4)]), edit.clone()
    q, k, v = branch.self_mark(edit, edit, edit, options())
    want = torch.cat([edit[:2], source, edit[4:]]) if holds else edit
    assert torch.equal(q, want) and torch.equal(k, want) and v is edit and torch.equal(edit, before)
    elsewhere = branch.self_mark(edit, edit, edit, options(block=("output", 3, 0)))
    assert all(t is edit for t in elsewhere)


@pytest.mark.parametrize(("sigma", "early"), [(0.7, True), (0.6, False)])
@pytest.mark.parametrize("strength", [0.0, 0.2, 0.8])
def test_beside_the_edit_self_attention_is_the_sources_to_the_end(sigma, early, strength):
    """Queries, keys and values are the edit's own from a weight of a quarter on; early, queries and keys nowhere."""
    found = timings()
    space = weight(found, lambda_s=strength, mask=MASK)
    made = run(found, space, sigma=sigma, hold_sigma=0.6, hold_blocks=frozenset([BLOCK]))
    source, edit = random(2, CELLS, WIDTH, seed=1), random(6, CELLS, WIDTH, seed=2)
    SourcePass(made, [slice(0, 2)]).self_mark(source, source, source, options())
    branch, before = EditPass(made, [slice(2, 4)]), edit.clone()
    q, k, v = branch.self_mark(edit, edit, edit, options())
    share = (4 * strength * to_grid(MASK, *GRID).double().flatten(1)[..., None]).clamp(max=1)
    mixed = share * edit[2:4].double() + (1 - share) * source.double()
    assert (v[2:4] - mixed).abs().max() < 1e-5
    assert torch.equal(q, k) and (q[2:4] - (source if early else mixed)).abs().max() < 1e-5
    assert all(torch.equal(t[rows], edit[rows]) for t in (q, v) for rows in (slice(0, 2), slice(4, 6)))
    assert torch.equal(edit, before)
    assert (share < 1).any() or strength == 0.8
    if strength == 0:
        assert torch.equal(q[2:4], source) and torch.equal(v[2:4], source)


@pytest.mark.parametrize(("mask_mode", "mask"), [("multiply", None), ("multiply", MASK), ("replace", MASK)])
def test_weight_on_a_grid(mask_mode, mask):
    found = timings()
    space = weight(found, 0.9, 1.3, mask, mask_mode)
    salient = F.interpolate((1.3 * found.saliency).clamp(0, 1)[None, None], GRID, mode="bilinear", antialias=True)[0]
    area = torch.ones(1, *GRID) if mask is None else to_grid(mask, *GRID)
    want = 0.9 * (area if mask_mode == "replace" else area * salient)
    got = space.on(*GRID, CPU)
    assert got.shape == (1 if mask is None else 2, CELLS, 1)
    assert (got.squeeze(2).unflatten(1, GRID) - want).abs().max() < 1e-6
    assert got.max() <= 0.9 and got.min() >= 0


def test_equation_9_is_read_in_the_edit_and_acts_from_the_next_evaluation_on():
    found = timings(centre=random(WIDTH, seed=3))
    space = weight(found, 1.0, 0.8, spatial="moving")
    made = run(found, space)
    first = space.on(*GRID, CPU)
    hidden = random(4, CELLS, WIDTH, seed=6)
    branch = EditPass(made, [slice(2, 4)])
    branch.mark(hidden, hidden, hidden, options(block=("output", 3, 0)))  # another block
    branch.mark(hidden, hidden, hidden, options())
    branch.mark(-hidden, hidden, hidden, options())  # guidance that evaluates again
    assert torch.equal(space.on(*GRID, CPU), first)
    assert first.shape[0] == 1 and found.centre is not None
    made.begin(0.4, CPU)
    got = space.on(*GRID, CPU).squeeze(2)
    values = hidden[2:4].double() - found.centre.double()
    want = 0.8 * (values / values.norm(dim=2, keepdim=True)) @ found.keyword.double()
    assert (got - want.clamp(0, 1)).abs().max() < 1e-5 and want.max() > 0.3
    made.begin(0.3, CPU)  # an evaluation that read nothing: the last one read stays
    assert torch.equal(space.on(*GRID, CPU).squeeze(2), got)


@pytest.mark.parametrize(("space", "reads"), [({"spatial": "fixed"}, False), ({"mask": ONES}, False), ({}, True)])
def test_hidden_states_are_read_only_where_they_act(space, reads):
    given = {"spatial": "moving", **space}
    assert weight(timings(), **given).is_read is reads


@pytest.mark.parametrize(
    ("space", "is_one"),
    [
        ({"mask": ONES}, True),
        ({"mask": ONES, "lambda_s": 0.99}, False),
        ({"mask": ONES, "mask_mode": "multiply"}, False),
        ({"mask": torch.cat([ONES, ONES * 0.99])}, False),
        ({}, False),
    ],
)
def test_when_the_weight_is_1_everywhere(space, is_one):
    assert weight(timings(), **space).is_one is is_one


def test_errors_name_the_block_and_the_remedy():
    made = run(timings((1.0, 0.0, 0.0, 1.0)))
    branch = EditPass(made, [slice(0, 2)])
    q, k, v = tensors(seed=11)
    mark = partial(branch.mark, k=k, v=v, extra=options())
    with pytest.raises(ValueError, match=r"^Adaptive Attention Guider: another patch has left 34 queries of a grid"):
        mark(q[:, 1:])
    mark(q)
    with pytest.raises(ValueError, match="without the host's attention function; take that patch off"):
        branch.forget(q, options())
    with pytest.raises(ValueError, match="its conditioning has to act over the whole schedule"):
        attend(branch, (q, k, v))
    attend(SourcePass(made, [slice(0, 2)]), tensors(keys=6, seed=1))
    with pytest.raises(ValueError, match=r"the edit conditioning has 8 tokens and its attention 7 keys, but .* has 8"):
        attend(branch, (q, k[:, 1:], v[:, 1:]), context=8)
    held = run(timings(), hold_blocks=frozenset([BLOCK]), hold_sigma=0.0)
    with pytest.raises(ValueError, match="its conditioning has to act over the whole schedule"):
        EditPass(held, [slice(0, 2)]).self_mark(q, q, q, options())
