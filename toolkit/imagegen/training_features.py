"""Features of training images: computed once for a frozen tower, and in each batch for a trained one."""

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.imagegen.augment import augmented
from toolkit.imagegen.towers import Tower

Features = Callable[[Tensor, torch.Generator], Tensor]
"""Features of some training rows, given as indices. The generator is for augmentation."""

_BATCH = 64


def training_features(tower: Tower, images_NCHW: Tensor, augment: bool) -> tuple[Features, Tensor]:
    """Return a function from rows to their features, and the features_NF of all images before training."""
    plain_NF, device = all_features(tower, images_NCHW), tower.mean_C.device
    if tower.frozen:
        mirrored_VNF = [all_features(tower, images_NCHW.flip(-1))] if augment else []
        return _views(torch.stack([plain_NF, *mirrored_VNF])), plain_NF

    def features(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        batch = images_NCHW[rows_B]
        found: Tensor = tower((augmented(batch, generator) if augment else batch).to(device))
        return found

    return features, plain_NF


@torch.no_grad()
def all_features(tower: Tower, images_NCHW: Tensor) -> Tensor:
    """Return features_NF of all images in eval mode, a batch at a time."""
    was_training, device = tower.training, tower.mean_C.device
    tower.eval()
    features_NF = torch.cat([tower(batch.to(device)) for batch in images_NCHW.split(_BATCH)])
    tower.train(was_training)
    return features_NF


def _views(features_VNF: Tensor) -> Features:
    """Draw one of the views of each row: the image or its mirror image."""

    def features(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        views_B = torch.randint(0, len(features_VNF), (len(rows_B),), generator=generator)
        return features_VNF[views_B, rows_B]

    return features
