"""Lookalikes against a plain search over all pairs of cells, in float64."""

import numpy as np
import pytest
import torch

from latent_layers.masks.lookalikes import REACH, lookalikes


def random(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(latent, mask, likeness):
    """One picture, latent (C, h, w) and a mask (h, w) on its cells, 0 or 1."""
    latent, (height, width) = latent.double().numpy(), mask.shape
    masked = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
    around = [
        (y, x) for y in range(height) for x in range(width)
        if not mask[y, x] and any(max(abs(y - v), abs(x - u)) <= REACH for v, u in masked)
    ]  # fmt: skip
    found = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        object_, rest = (
            min(np.linalg.norm(latent[:, y, x] - latent[:, v, u]) for v, u in cells) for cells in (masked, around)
        )
        found[y, x] = not mask[y, x] and object_ < likeness * rest
    return found


@pytest.mark.parametrize(("size", "likeness"), [((9, 14), 0.9), ((12, 7), 0.5), ((5, 6), 1.0)])
def test_every_pair_of_cells(size, likeness):
    latents, cells = random(2, 4, *size), torch.zeros(2, *size)
    cells[0, 0:2, 0:2] = 1
    cells[1, 2:4, 0:2] = 1
    latents[0, :, -1, -1] = latents[0, :, 1, 1] + 0.01
    masks = torch.nn.functional.interpolate(cells[:, None], scale_factor=8)[:, 0]
    found = lookalikes(latents, masks, likeness)
    assert found.shape == masks.shape and found.dtype == torch.float32
    expected = np.stack([by_hand(z, m, likeness) for z, m in zip(latents, cells.numpy(), strict=True)])
    assert expected[0].any()
    assert np.array_equal(found[:, 4::8, 4::8].numpy(), expected)


def scene(unit=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A striped ground, an object, its twin, and a thing of another kind; the object's mask."""
    latent = torch.zeros(1, 4, 16, 24)
    latent[:, 0, :, ::2] = 1
    latent[:, 1, 2:6, 2:6] = 5
    latent[:, 1, 9:13, 15:19] = 5.2
    latent[:, 2, 2:6, 16:20] = 5
    mask = torch.zeros(1, 128, 192)
    mask[:, 12:52, 12:52] = 1  # with a margin of half a cell
    return unit * latent + 0.05 * unit * random(1, 4, 16, 24), mask


def test_a_twin_is_found_and_nothing_else():
    latent, mask = scene()
    twin = torch.zeros(1, 128, 192)
    twin[:, 72:104, 120:152] = 1
    assert torch.equal(lookalikes(latent, mask), twin)
    assert not lookalikes(latent, mask, 0.0).any()


def test_the_latents_unit_and_precision_do_not_matter():
    latent, mask = scene()
    other, _ = scene(unit=0.13)
    assert torch.equal(lookalikes(other, mask), lookalikes(latent, mask))
    assert torch.equal(lookalikes(latent.half(), mask), lookalikes(latent, mask))


def test_one_mask_serves_a_batch():
    latent, mask = scene()
    both = torch.cat([latent, latent.flip(3)])
    found = lookalikes(both, mask)
    assert found.shape == (2, 128, 192) and torch.equal(found[:1], lookalikes(latent, mask))
    assert torch.equal(found[1:], lookalikes(both[1:], mask))


def test_nothing_to_compare():
    latent, mask = scene()
    thin = torch.zeros_like(mask)
    thin[:, 20:23, 20:23] = 1  # no whole cell
    assert not lookalikes(latent, thin).any()
    assert not lookalikes(latent, torch.ones_like(mask)).any()
