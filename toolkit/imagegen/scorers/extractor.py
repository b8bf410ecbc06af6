"""The feature extractor of KID, FID, diversity and copy distance: a vision tower reduced to at most 64 features.

Inception features need a download and say little about medical images, and FID needs several times as many images as
features. A pretrained tower is used as it is. A tower with random parameters is first trained to classify the real
images by their labels. The tower's standardised features are then projected on their principal components over the real
images. Neither ratings nor generated images are used, so that the extractor is no part of a reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toolkit.errors import DataError, ModelError
from toolkit.imagegen.scorers.fitting import EpochRecord, FitSettings, Fitting
from toolkit.imagegen.scorers.heads import Standardise
from toolkit.imagegen.scorers.vision_tower import (
    FrozenBackbones,
    TowerSettings,
    all_features,
    build_tower,
    training_features,
)

MAX_FEATURES = 64


@dataclass(frozen=True, slots=True)
class ExtractorSettings:
    """Tower, number of features, and the training of a tower with random parameters."""

    tower: TowerSettings = field(default_factory=TowerSettings)
    num_features: int = 48
    fit: FitSettings = field(default_factory=lambda: FitSettings(epochs=10))
    seed: int = 0


class Extractor(nn.Module):
    """Images to features. torchmetrics requires ``num_features`` of a feature module. ``shared``: loaded backbones.

    Attributes:
        num_features: Length of a feature vector.
        explained: Fraction of the variance of the tower's features that the principal components keep.
    """

    components_FK: Tensor
    explained: Tensor

    def __init__(self, settings: ExtractorSettings, image_size: int, shared: FrozenBackbones | None = None) -> None:
        super().__init__()
        if not 1 <= settings.num_features <= MAX_FEATURES:
            raise ModelError(
                "imagegen.extractor_features_out_of_range",
                f"num_features must be from 1 to {MAX_FEATURES}",
                place="extractor",
                value=settings.num_features,
            )
        self.settings, self.num_features = settings, settings.num_features
        self.tower = build_tower(settings.tower, image_size, settings.seed, shared)
        if self.tower.num_features < settings.num_features:
            raise ModelError(
                "imagegen.extractor_features_above_tower",
                f"num_features must be at most the tower's {self.tower.num_features}",
                place="extractor",
                value=settings.num_features,
                remedy="Lower num_features.",
            )
        self.standardise = Standardise(self.tower.num_features)
        self.register_buffer("components_FK", torch.zeros(self.tower.num_features, settings.num_features))
        self.register_buffer("explained", torch.zeros(()))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features_NK of images in [0, 1]."""
        features_NK: Tensor = self.standardise(self.tower(images_NCHW)) @ self.components_FK
        return features_NK

    @torch.no_grad()
    def features(self, images_NCHW: Tensor) -> Tensor:
        """Return features_NK on the CPU in eval mode, a batch at a time."""
        if not len(images_NCHW):
            return torch.zeros(0, self.num_features)
        features_NK: Tensor = self.standardise(all_features(self.tower, images_NCHW)) @ self.components_FK
        return features_NK.cpu()


def fit_extractor(extractor: Extractor, images_NCHW: Tensor, labels: Sequence[str]) -> tuple[EpochRecord, ...]:
    """Train the tower if it has random parameters, then set the principal components.

    Args:
        extractor: The extractor to fit.
        images_NCHW: Real images in [0, 1].
        labels: Classes that the tower learns to distinguish, such as the prompts or the modalities.

    Returns:
        The records of the tower's training. Empty for a frozen tower.

    Raises:
        DataError: There are fewer images than features, or a tower with random parameters has fewer than 2 labels.
    """
    if len(images_NCHW) <= extractor.num_features:
        raise DataError(
            "imagegen.extractor_images_too_few",
            f"the extractor must have more real images than its {extractor.num_features} features",
            place="extractor",
            value=len(images_NCHW),
            remedy="Add real images, or lower num_features.",
        )
    records = () if extractor.tower.frozen else _train_tower(extractor, images_NCHW, labels)
    features_NF = all_features(extractor.tower, images_NCHW)
    extractor.standardise.fit(features_NF)
    standard_NF = extractor.standardise(features_NF).double()
    # Eigenvectors in descending order. Their signs are free: no distance depends on them.
    variances_F, vectors_FF = torch.linalg.eigh(standard_NF.T @ standard_NF / len(standard_NF))
    extractor.components_FK.copy_(vectors_FF.flip(1)[:, : extractor.num_features])
    explained = variances_F.flip(0)[: extractor.num_features].sum() / variances_F.sum().clamp_min(1e-12)
    extractor.explained.copy_(explained)
    extractor.eval()
    return records


def _train_tower(extractor: Extractor, images_NCHW: Tensor, labels: Sequence[str]) -> tuple[EpochRecord, ...]:
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise DataError(
            "imagegen.extractor_labels_too_few",
            "an extractor with random parameters must have at least 2 labels to learn",
            place="extractor",
            value=classes,
            remedy="Use a pretrained encoder.",
        )
    targets_N = torch.tensor([classes.index(label) for label in labels], device=extractor.standardise.mean_F.device)
    features, plain_NF = training_features(extractor.tower, images_NCHW, augment=True)
    extractor.standardise.fit(plain_NF)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(extractor.settings.seed)
        classifier = nn.Linear(extractor.tower.num_features, len(classes)).to(targets_N.device)

    def loss(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        logits_BC = classifier(extractor.standardise(features(rows_B, generator)))
        return cross_entropy(logits_BC, targets_N[rows_B])

    module = nn.ModuleDict({"tower": extractor.tower, "classifier": classifier})
    return Fitting(module, len(images_NCHW), loss, extractor.settings.fit).run()
