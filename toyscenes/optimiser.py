"""Muon for the weight matrices, AdamW for the rest: half the steps of AdamW alone for the same loss."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .training import Settings

_OTHERS = ("tokens.", "shapes.", "embedding", "unet.input_blocks.0.", "unet.out.")


class Optimiser:
    """Both optimisers of a model whose convolutions are in channels-last order.

    Muon moves a matrix by its momentum's nearest orthogonal matrix (Jordan et al.,
    https://kellerjordan.github.io/posts/muon/). A convolution is the matrix from its
    patches to its outputs, in which the order of the columns makes no difference.

    Raises:
        ValueError: a convolution is in another order, so that its matrix would be a copy.
    """

    def __init__(self, model: nn.Module, settings: "Settings"):
        weights, others = [], []
        for name, parameter in model.named_parameters():
            matrix = parameter.ndim > 1 and not any(other in name for other in _OTHERS)
            (weights if matrix else others).append(parameter)
        self.weights: list[nn.Parameter] = weights
        self.matrices = [nn.Parameter(_matrix(w.data)) for w in weights]
        if any(m.data_ptr() != w.data_ptr() for m, w in zip(self.matrices, weights, strict=True)):
            raise ValueError("Optimiser: convolutions must be in channels_last order, or their weights are not trained")
        self.rates = settings.learning_rate, settings.learning_rate_other
        self.parts = (
            torch.optim.Muon(self.matrices, settings.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, settings.learning_rate_other, betas=(0.9, 0.99), fused=True),
        )

    def step(self, share: float) -> None:
        """One step by the gradients that the model has, at this share of the learning rates."""
        for matrix, weight in zip(self.matrices, self.weights, strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad)
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()

    def state_dict(self) -> list[dict]:
        """States of both, in order."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """What `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _matrix(weight: Tensor) -> Tensor:
    """(outputs, inputs) of a layer's weight: a view, where a convolution's is in channels-last order."""
    return weight.movedim(1, -1).flatten(1)
