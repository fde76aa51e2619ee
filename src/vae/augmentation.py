"""Data augmentation: random small rotations, scales, shears and shifts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vae.idx import SIDE

# The largest change in each direction. One call draws a map for each image, while torchvision's transforms draw one for
# a whole batch.
ROTATION = 0.2  # radians
SCALE = 0.12  # of each axis separately
SHEAR = 0.2
SHIFT = 0.12  # of half the width of an image


def affine_maps(count: int, generator: torch.Generator) -> Tensor:
    """Random rotations, each with a scale of each axis, a shear and a shift. Returns (count, 2, 3)."""
    uniform = 2 * torch.rand(6, count, generator=generator, device=generator.device) - 1
    angle, wide, high, shear, right, down = uniform  # (count,) each
    cos, sin = torch.cos(ROTATION * angle), torch.sin(ROTATION * angle)
    wide, high = 1 + SCALE * wide, 1 + SCALE * high
    across = torch.stack([cos * wide, SHEAR * shear - sin * high, SHIFT * right], dim=1)
    along = torch.stack([sin * wide, cos * high, SHIFT * down], dim=1)
    return torch.stack([across, along], dim=1)


def augment(grey: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Moves each image with the probability `share`, by bilinear interpolation. (B, P) uint8 -> (B, P) uint8."""
    if share <= 0:
        return grey
    (chosen,) = torch.nonzero(torch.rand(len(grey), generator=generator, device=grey.device) < share, as_tuple=True)
    if not len(chosen):
        return grey
    images = grey[chosen].view(-1, 1, SIDE, SIDE).float()
    grid = F.affine_grid(affine_maps(len(chosen), generator), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)  # black beyond the edges
    return grey.index_copy(0, chosen, moved.round().to(torch.uint8).flatten(1))
