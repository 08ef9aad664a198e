"""DDIM inversion: from a clean latent up to noise.

DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 13, run backwards), as
DesignEdit uses it to obtain the noisy latents of an image. In the host's parametrisation
x(σ) = z + σ·ε, where the paper's latent is x/√(σ²+1), the DDIM update is an Euler step in σ:

    x(σ') = x(σ) + (σ' − σ)·ε

Upwards the step wants ε at x(σ'), which is what it is about to compute. The usual
inversion takes ε of the network at the upper level's timestep on the lower latent.
Fixed-point refinement evaluates it again at the estimate of x(σ').

Here the first estimate of x(σ') is made with the ε of the step below, which is known
already: the same number of evaluations, and the round trip is as exact as after one
refinement of the usual way.

Models with zero terminal SNR reach up to σ in the thousands, in one or two steps. There x
is nearly all noise, and what is wrong in an estimate of x(σ') goes back into ε almost
whole, so that the iteration hardly moves. What it predicts of the picture, D = x − σ·ε,
depends little on x there, and the same fixed point is looked for by it:

    x(σ') = D(x(σ')) + (x(σ) − D(x(σ')))·σ'/σ
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

Sigma = Tensor | float

# From here on, above all that models without zero terminal SNR know, and for steps that
# multiply σ by more than this, the fixed point is looked for by D.
_FAR = 15.0
_WIDE = 1.5


def vp_input_scale(sigma: Sigma) -> Sigma:
    """Factor from x(σ) to the network's input, 1/√(σ²+1): SD's variance-preserving latent."""
    return (sigma**2 + 1) ** -0.5


def ddim_inversion_step(
    x: Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    predict_noise: Callable[[Tensor, Sigma], Tensor],
    refinements: int = 0,
    input_scale: Callable[[Sigma], Sigma] = vp_input_scale,
    guess: Tensor | None = None,
) -> Tensor:
    """One step upwards: x(σ_next) from x(σ), σ < σ_next; σ = 0 is allowed. (B, C, H, W) both.

    `predict_noise(x, σ)` is the model's ε at x at level σ > 0; it is called
    1 + refinements times. `input_scale(σ)` is the factor by which the model scales x
    before its network sees it. `guess` is an ε (B, C, H, W) to begin with; without one the
    network sees the lower latent, as in the usual inversion.
    """
    # The network must see the lower latent in the scaling of its own level: whoever
    # evaluates it at σ_next will apply σ_next's scale, so exchange one for the other.
    if guess is not None and float(sigma) > _FAR and float(sigma_next) > _WIDE * float(sigma):
        x_next = x + (sigma_next - sigma) * guess
        for _ in range(1 + refinements):
            denoised = x_next - sigma_next * predict_noise(x_next, sigma_next)
            x_next = denoised + (x - denoised) * (sigma_next / sigma)
        return x_next
    shown = x * (input_scale(sigma) / input_scale(sigma_next)) if guess is None else x + (sigma_next - sigma) * guess
    x_next = x + (sigma_next - sigma) * predict_noise(shown, sigma_next)
    for _ in range(refinements):
        # The estimate is at σ_next's own level already: no rescaling.
        x_next = x + (sigma_next - sigma) * predict_noise(x_next, sigma_next)
    return x_next


@torch.no_grad()
def invert(
    x: Tensor,
    sigmas: Tensor,
    predict_noise: Callable[[Tensor, Sigma], Tensor],
    refinements: int = 0,
    input_scale: Callable[[Sigma], Sigma] = vp_input_scale,
    usual: bool = False,
) -> Iterator[Tensor]:
    """Yield x at sigmas[1], sigmas[2], … from x at sigmas[0]; ascending σs (T+1).

    Evaluates `predict_noise` T·(1 + refinements) times, see `ddim_inversion_step`. Each step
    begins with the ε of the one below; `usual` is the published way, without.
    """
    epsilon = None
    for sigma, sigma_next in pairwise(sigmas):
        x_next = ddim_inversion_step(x, sigma, sigma_next, predict_noise, refinements, input_scale, epsilon)
        epsilon = None if usual else (x_next - x) / (sigma_next - sigma)
        x = x_next
        yield x
