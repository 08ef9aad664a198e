"""Masks on grids: image -> latent -> every attention grid, by exact area averaging.

A MASK is (B, H, W) in [0, 1] at image size, 1 = edit here. A cell of a coarser grid
takes the mean of the mask over the part of the image that the cell covers, also where
the cell's borders fall inside pixels (a 520x776 image is a 65x97 latent and 33x49,
17x25 ... tokens, none of which divide each other). torch's own `area` interpolation
rounds the borders outwards, so that neighbouring cells overlap; here every pixel is
counted once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# (top, bottom, left, right) as fractions of the whole: the part of the image that a grid covers.
Window = tuple[float, float, float, float]
WHOLE: Window = (0.0, 1.0, 0.0, 1.0)


def area_weights(pixels: int, cells: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """Averaging matrix (cells, pixels), float64, of `cells` equal cells on a line of pixels.

    Row i holds, for each pixel, the share of cell i that the pixel covers; rows sum to 1.
    `start` and `stop` limit the cells to a part of the line (fractions of its length).
    """
    edges = torch.linspace(start * pixels, stop * pixels, cells + 1, dtype=torch.float64)
    lower, upper = edges[:-1, None], edges[1:, None]
    pixel = torch.arange(pixels, dtype=torch.float64)[None, :]
    overlap = (torch.minimum(upper, pixel + 1) - torch.maximum(lower, pixel)).clamp_(min=0)
    return overlap / overlap.sum(dim=1, keepdim=True)


def to_grid(mask: Tensor, height: int, width: int, window: Window = WHOLE) -> Tensor:
    """Area average of a mask (B, H, W) on a grid -> (B, height, width), float32, CPU.

    Works for any two sizes, also for a grid finer than the mask. The sums are taken in
    float64, so that 0 stays exactly 0 and 1 exactly 1, whatever the mask's own precision.
    """
    pixels = mask.detach().to(device="cpu", dtype=torch.float64)
    top, bottom, left, right = window
    rows = area_weights(pixels.shape[-2], height, top, bottom)
    columns = area_weights(pixels.shape[-1], width, left, right)
    return (rows @ pixels @ columns.mT).clamp_(0.0, 1.0).float()


def cover(mask: Tensor, height: int, width: int) -> Tensor:
    """Largest value of a mask (B, H, W) in each cell of a grid -> (B, height, width), float32, CPU.

    For areas that have to be covered whole: a latent cell that the mask only touches holds
    a piece of the object too, and would keep it if it took the mask's average.
    """
    pixels = mask.detach().to(device="cpu", dtype=torch.float32)
    # a cell's window is widened to whole pixels
    return F.adaptive_max_pool2d(pixels[None], (height, width))[0]


def dilate(mask: Tensor, radius: float) -> Tensor:
    """Grow a mask (B, H, W) by a square kernel (DesignEdit dilates its masks before use).

    `radius` below 1 is a fraction of the width (20/1024 is the paper's 20 px at 1024 px),
    from 1 on it is in pixels. The kernel is (2r+1)x(2r+1); 0 returns the mask unchanged.
    """
    if radius < 0:
        raise ValueError(f"dilate: radius is {radius}; it must be 0 or more")
    pixels = round(radius * mask.shape[-1]) if radius < 1 else round(radius)
    if pixels == 0:
        return mask
    size = 2 * pixels + 1
    # a square maximum is a row maximum of column maxima: 2 passes instead of size**2 work
    grown = F.max_pool2d(mask.float().unsqueeze(1), (size, 1), stride=1, padding=(pixels, 0))
    grown = F.max_pool2d(grown, (1, size), stride=1, padding=(0, pixels))
    return grown.squeeze(1).to(mask.dtype)


def as_mask(mask: Tensor, who: str, name: str = "mask") -> Tensor:
    """A MASK as float32 (B, H, W) on the CPU, with values clamped to [0, 1].

    Accepts (H, W), (B, H, W) and (B, 1, H, W), as the host does. Raises ValueError
    for other shapes and for values that are not numbers.
    """
    pixels = mask.detach().to(device="cpu", dtype=torch.float32)
    if pixels.ndim == 4 and pixels.shape[1] == 1:
        pixels = pixels[:, 0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.numel() == 0:
        raise ValueError(f"{who}: {name} has shape {tuple(mask.shape)}; a MASK is (batch, height, width)")
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{who}: {name} has values that are not numbers; repair the node that makes it")
    return pixels.clamp(0.0, 1.0)


def check_painted(mask: Tensor, who: str, name: str = "mask", verb: str = "remove") -> None:
    """Raise ValueError where an image's mask (B, H, W) is empty (all 0) or full (all 1)."""
    for index, image in enumerate(mask):
        which = name if len(mask) == 1 else f"{name} {index + 1} of {len(mask)}"
        if not bool((image > 0).any()):
            raise ValueError(f"{who}: {which} is empty (all 0); paint the area to {verb}")
        if bool((image >= 1).all()):
            raise ValueError(f"{who}: {which} is full (all 1); leave something around the area to {verb}")


def check_batch(mask: Tensor, images: int, who: str, name: str = "mask") -> None:
    """Raise ValueError unless there is one mask for all images, or one per image."""
    if len(mask) not in (1, images):
        raise ValueError(f"{who}: {name} has a batch of {len(mask)} for {images} image(s); give 1 mask or {images}")


def check_aspect(
    mask: Tensor, latent: Sequence[int], who: str, name: str = "mask", other: str = "latent's {} cells"
) -> None:
    """Raise ValueError when a mask (B, H, W) cannot be of the same picture as a latent grid.

    `latent` ends in (height, width). A mask of another size is resized, as the host does;
    what is compared is the shape, to within one latent cell (images are cropped to whole
    cells when they are encoded).
    """
    height, width = mask.shape[-2:]
    rows, columns = latent[-2:]
    cell = (height * width / (rows * columns)) ** 0.5
    if abs(height - rows * cell) > cell or abs(width - columns * cell) > cell:
        raise ValueError(
            f"{who}: {name} is {width}x{height}, another shape than the {other.format(f'{columns}x{rows}')}; "
            f"give a mask of the image itself, or crop it the same way"
        )


def union(*masks: Tensor | None) -> Tensor:
    """Largest value of several masks (B, H, W); None is left out, batches of 1 are repeated.

    A mask of another size is brought to the first one's by area averaging.
    """
    given = [mask for mask in masks if mask is not None]
    joined = given[0]
    for mask in given[1:]:
        if mask.shape[-2:] != joined.shape[-2:]:
            mask = to_grid(mask, joined.shape[-2], joined.shape[-1])
        joined = torch.maximum(joined, mask)
    return joined
