"""Masks that follow the picture's own edges: the guided image filter.

K. He, J. Sun, X. Tang, "Guided Image Filtering" (TPAMI 2013), with a guide of several channels
(section 3.3 and equations 19 to 21). Attention is 16 cells across; a latent is four times as fine
and knows where things end. In every window the map is replaced by the affine function of the
guide that is nearest to it, so that it changes where the guide does and stays even elsewhere.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 1 / 8  # of the shorter side: two cells of the attention
SMOOTHING = 0.1  # of the guide's variance


class GuidedFilter:
    """A guide's part of the filter, worked out once; maps on its grid go through by calling it."""

    def __init__(self, guide: Tensor, radius: int | None = None, smoothing: float = SMOOTHING) -> None:
        """Work out the windows.

        Args:
            guide: (C, h, w), any unit: it is brought to variance 1 over all its values.
            radius: of the square windows, 2 r + 1 cells wide and cut off at the border; None: an
                eighth of the shorter side, at least 1.
            smoothing: epsilon; edges whose variance in a window is far below it are not followed.
        """
        self.radius = max(1, round(RADIUS * min(guide.shape[1:]))) if radius is None else radius
        guide = guide.float()
        guide = guide - guide.mean((1, 2), keepdim=True)
        self._guide = guide / guide.pow(2).mean().sqrt().clamp(min=1e-6)
        self._mean = self._box(self._guide)
        products = self._guide[:, None] * self._guide[None]
        variance = self._box(products.flatten(0, 1)).unflatten(0, (len(guide), -1))
        variance = variance - self._mean[:, None] * self._mean[None]
        identity = torch.eye(len(guide), device=guide.device)
        self._inverse = torch.linalg.inv(variance.permute(2, 3, 0, 1) + smoothing * identity)  # (h, w, C, C)

    def __call__(self, plane: Tensor) -> Tensor:
        """A map (h, w), on the guide's device -> the filtered one, float32."""
        plane = plane.float()
        mean = self._box(plane[None])[0]
        covariance = self._box(self._guide * plane) - self._mean * mean
        slope = torch.einsum("hwcd,dhw->chw", self._inverse, covariance)  # equation 19
        offset = mean - (slope * self._mean).sum(0)  # equation 20
        return (self._box(slope) * self._guide).sum(0) + self._box(offset[None])[0]  # equation 21

    def _box(self, planes: Tensor) -> Tensor:
        """Mean of every window of planes (N, h, w)."""
        size, pad = 2 * self.radius + 1, self.radius
        return F.avg_pool2d(planes[None], size, 1, pad, count_include_pad=False)[0]


def following(guide: Tensor) -> Callable[[Tensor], Tensor]:
    """Filter maps (h, w) by a guide (C, h, w), prepared where the first map is; the device is not asked again."""
    prepared: list[GuidedFilter] = []

    def apply(plane: Tensor) -> Tensor:
        if not prepared:
            prepared.append(GuidedFilter(guide.to(plane.device)))
        return prepared[0](plane)

    return apply
