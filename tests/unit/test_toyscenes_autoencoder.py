"""The linear autoencoder against principal components computed in plain float64 numpy."""

from typing import cast

import numpy as np
import pytest
import torch

from latent_layers.toyscenes.autoencoder import CHANNELS, PATCH, PatchAutoencoder, fit_linear
from latent_layers.toyscenes.scenes import random_scene


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    scenes = [random_scene(seed, stream="training").image() for seed in range(24)]
    return torch.from_numpy(np.stack(scenes)).movedim(3, 1) * 2 - 1


@pytest.fixture(scope="module")
def fitted(pictures) -> PatchAutoencoder:
    autoencoder = PatchAutoencoder()
    fit_linear(autoencoder, pictures)
    return autoencoder.requires_grad_(False)


def patches_of(pictures: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) to float64 patches (N·H/8·W/8, 3, 8, 8), row by row."""
    count, _, height, width = pictures.shape
    cells = pictures.astype(np.float64).reshape(count, 3, height // PATCH, PATCH, width // PATCH, PATCH)
    return cells.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 3, PATCH, PATCH)


def principal(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deviations from the colours' means (P, 192), the first components (8, 192) and their deviations (8,)."""
    patches = patches_of(pictures)
    centred = (patches - patches.mean(axis=(0, 2, 3))[:, None, None]).reshape(len(patches), -1)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    return centred, vectors[:CHANNELS], values[:CHANNELS] / np.sqrt(len(patches))


def test_decoding_is_the_projection_on_the_principal_components(fitted, pictures):
    centred, vectors, _ = principal(pictures.numpy())
    projected = centred @ vectors.T @ vectors
    means = patches_of(pictures.numpy()).mean(axis=(0, 2, 3)).repeat(PATCH * PATCH)
    decoded = patches_of(fitted.decode(fitted.encode(pictures)).numpy()).reshape(len(centred), -1)
    assert np.abs(decoded - (projected + means)).max() < 1e-4


def test_latents_are_the_components_halfway_to_white(fitted, pictures):
    centred, vectors, deviations = principal(pictures.numpy())
    latents = fitted.encode(pictures).movedim(1, 3).reshape(-1, CHANNELS).double().numpy()
    expected = centred @ vectors.T / np.sqrt(deviations * deviations.mean())
    signs = np.sign((latents * expected).sum(axis=0))  # a component may point either way
    assert np.abs(latents - signs * expected).max() < 1e-3
    assert (latents**2).mean() == pytest.approx(1.0, abs=1e-4)
    assert (latents**2).mean(axis=0) == pytest.approx(deviations / deviations.mean(), rel=1e-3)


def test_encoding_a_decoded_picture_changes_nothing(fitted, pictures):
    latents = fitted.encode(pictures[:4])
    assert (fitted.encode(fitted.decode(latents)) - latents).abs().max() < 1e-4


@pytest.mark.parametrize("height, width", [(24, 40), (8, 8), (264, 136), (256, 448)])
def test_every_multiple_of_eight_is_taken(fitted, height, width):
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = fitted.encode(pixels)
    assert latents.shape == (2, CHANNELS, height // PATCH, width // PATCH)
    decoded = fitted.decode(latents)
    assert decoded.shape == pixels.shape
    # every patch is its own: the last one comes out as it does alone
    alone = fitted.decode(fitted.encode(pixels[:, :, -PATCH:, -PATCH:]))
    assert (decoded[:, :, -PATCH:, -PATCH:] - alone).abs().max() < 1e-5


def test_one_colour_is_kept(fitted):
    grey = torch.full((1, 3, 32, 32), 0.25)
    assert (fitted.decode(fitted.encode(grey)) - grey).abs().max() < 0.06


def test_the_touch_up_starts_silent_and_reads_the_neighbours(pictures):
    autoencoder = PatchAutoencoder()
    fit_linear(autoencoder, pictures[:4])
    latents = autoencoder.encode(pictures[:1])
    assert torch.equal(autoencoder.decode(latents), autoencoder.synthesis(latents))
    with torch.no_grad():
        last = cast(torch.nn.Conv2d, autoencoder.refinement[-2])
        last.weight.normal_(generator=torch.Generator().manual_seed(0))
    latents = latents.detach().requires_grad_()
    autoencoder.decode(latents)[0, :, 128:136, 128:136].sum().backward()
    assert latents.grad is not None
    reached = latents.grad[0].abs().sum(0).nonzero() - 16
    assert reached.min() == -3 and reached.max() == 3


def test_fitting_leaves_the_touch_up_alone(pictures):
    autoencoder = PatchAutoencoder()
    before = [p.clone() for p in autoencoder.refinement.parameters()]
    fit_linear(autoencoder, pictures[:2])
    assert all(torch.equal(a, b) for a, b in zip(before, autoencoder.refinement.parameters(), strict=True))
