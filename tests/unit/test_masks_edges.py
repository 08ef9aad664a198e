"""The guided filter against its equations, window by window, in float64."""

import numpy as np
import pytest
import torch

from latent_layers.masks.edges import GuidedFilter, following


def random(*shape, seed=0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def window(row, column, radius, height, width):
    return (
        slice(max(0, row - radius), min(height, row + radius + 1)),
        slice(max(0, column - radius), min(width, column + radius + 1)),
    )


def by_hand(guide, plane, radius, smoothing):
    """Equations 19 to 21 of the article, with windows cut off at the border."""
    guide, plane = guide.double().numpy(), plane.double().numpy()
    guide = guide - guide.mean((1, 2), keepdims=True)
    guide = guide / np.sqrt((guide**2).mean())
    channels, height, width = guide.shape
    slope, offset = np.zeros((channels, height, width)), np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            rows, columns = window(row, column, radius, height, width)
            inside, values = guide[:, rows, columns].reshape(channels, -1), plane[rows, columns].ravel()
            mean = inside.mean(1)
            covariance = np.cov(inside, bias=True).reshape(channels, channels)
            both = (inside * values).mean(1) - mean * values.mean()
            slope[:, row, column] = np.linalg.solve(covariance + smoothing * np.eye(channels), both)
            offset[row, column] = values.mean() - slope[:, row, column] @ mean
    result = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            rows, columns = window(row, column, radius, height, width)
            own = slope[:, rows, columns].mean((1, 2)) @ guide[:, row, column]
            result[row, column] = own + offset[rows, columns].mean()
    return result


@pytest.mark.parametrize(
    ("channels", "height", "width", "radius", "smoothing"),
    [(4, 17, 26, 2, 0.1), (8, 12, 9, 3, 0.01), (1, 7, 11, 1, 0.5), (4, 5, 6, 7, 0.1)],
)
def test_the_articles_equations(channels, height, width, radius, smoothing):
    guide, plane = 5 * random(channels, height, width) + 3, random(height, width, seed=1)
    filtered = GuidedFilter(guide, radius, smoothing)(plane)
    assert filtered.dtype == torch.float32
    assert np.abs(filtered.numpy() - by_hand(guide, plane, radius, smoothing)).max() < 1e-4


def test_the_guides_unit_does_not_matter_and_half_precision_will_do():
    guide, plane = random(4, 16, 24), random(16, 24, seed=1)
    plain = GuidedFilter(guide)(plane)
    assert torch.allclose(GuidedFilter(0.13 * guide - 2)(plane), plain, atol=1e-4)
    assert (GuidedFilter(guide.half())(plane.half()) - plain).abs().max() < 2e-2


def test_windows_are_an_eighth_of_the_shorter_side():
    assert GuidedFilter(random(4, 64, 96)).radius == 8 and GuidedFilter(random(4, 33, 20)).radius == 2
    assert GuidedFilter(random(4, 4, 3)).radius == 1


def test_a_map_moves_to_the_guides_edge():
    """An area in a guide, and a soft map that lies three cells beside it: afterwards it fits better."""
    guide = torch.zeros(1, 32, 48)
    guide[:, 8:24, 16:32] = 1
    plane = torch.zeros(32, 48)
    plane[10:22, 19:33] = 1
    plane = torch.nn.functional.avg_pool2d(plane[None, None], 5, 1, 2)[0, 0]

    def overlap(cells):
        truth = guide[0] > 0.5
        return float((cells & truth).sum() / (cells | truth).sum())

    assert overlap(GuidedFilter(guide)(plane) > 0.5) > 1.2 * overlap(plane > 0.5)


def test_nothing_to_follow_and_nothing_to_filter():
    plane = random(9, 14)
    flat = GuidedFilter(torch.full((4, 9, 14), 2.0))(plane)
    assert torch.isfinite(flat).all() and flat.std() < plane.std()
    even = GuidedFilter(random(4, 9, 14))(torch.full((9, 14), 0.4))
    assert (even - 0.4).abs().max() < 1e-5


def test_a_guide_is_prepared_once():
    guide = random(4, 9, 14)
    apply = following(guide)
    first = apply(random(9, 14, seed=1))
    assert torch.equal(first, GuidedFilter(guide)(random(9, 14, seed=1)))
    guide.zero_()
    assert torch.equal(apply(random(9, 14, seed=1)), first)
