"""Random mirroring and small shifts of training images. Neither changes the quality that a rating is about."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def augmented(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images from left to right, and shift the batch by at most 1/16 of the side."""
    mirror_N = torch.rand(len(images_NCHW), generator=generator) < 0.5
    images_NCHW = torch.where(mirror_N[:, None, None, None], images_NCHW.flip(-1), images_NCHW)
    side = images_NCHW.shape[-1]
    reach = side // 16
    if not reach:
        return images_NCHW
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = pad(images_NCHW, (reach, reach, reach, reach), mode="reflect")
    return padded[:, :, top : top + side, left : left + side]
