"""A linear autoencoder: the principal components of 8×8 patches, then a small learned touch-up.

Encoding is one strided convolution and decoding its transpose, both found in closed form
from a few hundred scenes. What eight components cannot say about an edge, a few
convolutions over the neighbouring latents guess.
"""

from typing import cast

import torch
from torch import Tensor, nn

PATCH = 8
CHANNELS = 8


class PatchAutoencoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, 8, H/8, W/8) of about unit variance, and back."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.analysis = nn.Conv2d(3, CHANNELS, PATCH, stride=PATCH)
        self.synthesis = nn.ConvTranspose2d(CHANNELS, 3, PATCH, stride=PATCH)
        last = nn.Conv2d(width, 3 * PATCH * PATCH, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast(Tensor, last.bias))
        self.refinement = nn.Sequential(
            nn.Conv2d(CHANNELS, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            last,
            nn.PixelShuffle(PATCH),
        )

    def encode(self, pixels: Tensor) -> Tensor:
        return self.analysis(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self.synthesis(latents) + self.refinement(latents)


@torch.no_grad()
def fit_linear(autoencoder: PatchAutoencoder, pictures: Tensor) -> None:
    """Set analysis and synthesis to the principal components of the pictures' patches.

    Components are divided by the square root of their standard deviation: halfway
    between whitening, which would make the diffusion model spend its capacity on detail,
    and none, which would drown detail in noise at almost every σ.

    Args:
        pictures: (N, 3, H, W) in [-1, 1], sides divisible by 8.
    """
    patches = nn.functional.unfold(pictures, PATCH, stride=PATCH).movedim(1, 2).flatten(0, 1).double()
    # one mean per colour, since a transposed convolution has one bias per colour
    colour = patches.mean(0).reshape(3, -1).mean(1)
    mean = colour.repeat_interleave(PATCH * PATCH)
    variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    basis, deviation = vectors[:, -CHANNELS:].flip(1), variances[-CHANNELS:].flip(0).sqrt()
    scale = deviation.sqrt() * deviation.mean().sqrt()  # so the latents' mean square is 1
    analysis = (basis / scale).T
    autoencoder.analysis.weight.copy_(analysis.reshape(CHANNELS, 3, PATCH, PATCH))
    cast(Tensor, autoencoder.analysis.bias).copy_(-(analysis @ mean))
    autoencoder.synthesis.weight.copy_((basis * scale).T.reshape(CHANNELS, 3, PATCH, PATCH))
    cast(Tensor, autoencoder.synthesis.bias).copy_(colour)
