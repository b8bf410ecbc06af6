"""The selector: from an image to its quality in [0, 1], learned from expert ratings. The judge is another selector.

A vision tower, and an ensemble of heads with CORN logits. The judge scores results and is never a reward. A generator
that is optimised against a selector learns the selector's errors too. Only a model with other errors can notice, so the
judge has its own seed, its own encoder and its own partition of the ratings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from toolkit.errors import DataError, ModelError
from toolkit.imagegen.scorers.fitting import FitSettings, Fitting, RatedImages, check_training_levels
from toolkit.imagegen.scorers.heads import (
    HeadEnsemble,
    HeadSettings,
    Scored,
    Standardise,
    corn_exceedance,
    corn_loss,
    head_weights,
    lower_bound,
)
from toolkit.imagegen.scorers.vision_tower import (
    CNN,
    FrozenBackbones,
    TowerSettings,
    all_features,
    build_tower,
    held_out_features,
    training_features,
)

SCORING_BATCH = 64
"""Images whose features the heads take at a time."""

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class SelectorSettings:
    """Architecture and training of a selector. ``augment`` mirrors and shifts training images."""

    tower: TowerSettings = field(default_factory=TowerSettings)
    heads: HeadSettings = field(default_factory=HeadSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    augment: bool = True
    seed: int = 0


class Selector(nn.Module):
    """A vision tower and heads with one logit fewer than there are levels. ``shared`` are loaded backbones."""

    def __init__(
        self, settings: SelectorSettings, n_levels: int, image_size: int, shared: FrozenBackbones | None = None
    ) -> None:
        super().__init__()
        self.settings, self.n_levels = settings, n_levels
        self.tower = build_tower(settings.tower, image_size, settings.seed, shared)
        self.standardise = Standardise(self.tower.num_features)
        self.heads = HeadEnsemble(self.tower.num_features, n_levels - 1, settings.heads, settings.seed + 1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return logits_HNK: heads x images x (levels - 1)."""
        return self.head_logits(self.tower(images_NCHW))

    def head_logits(self, features_NF: Tensor) -> Tensor:
        """Return logits_HNK of the tower's features."""
        logits_HNK: Tensor = self.heads(self.standardise(features_NF))
        return logits_HNK

    @torch.no_grad()
    def score(self, images_NCHW: Tensor) -> Scored:
        """Score images in eval mode, a batch at a time."""
        was_training = self.training
        self.eval()
        batches = all_features(self.tower, images_NCHW).split(SCORING_BATCH) if len(images_NCHW) else ()
        parts = [corn_exceedance(self.head_logits(features_BF)).cpu() for features_BF in batches]
        self.train(was_training)
        exceedance_HNK = torch.cat(parts, dim=1) if parts else torch.zeros(len(self.heads.heads), 0, self.n_levels - 1)
        scores_HN = exceedance_HNK.mean(dim=-1)
        levels_N = (exceedance_HNK.mean(dim=0) > 0.5).sum(dim=-1)
        return Scored(scores_HN.mean(dim=0), lower_bound(scores_HN), levels_N)


def start_fitting(
    selector: Selector, train: RatedImages, validation: RatedImages | None, refresh: FitSettings | None = None
) -> Fitting:
    """Return the training of a selector on ratings.

    The features of a frozen tower are computed once, for each image and its mirror image.

    Args:
        selector: The model to train, in place.
        train: Training rows.
        validation: Rows whose loss decides which epoch is kept. The last one without such rows.
        refresh: Settings to train an already fitted selector further. The scale of its features stays as it is.

    Raises:
        DataError: A level has no training row, except in a refresh.
    """
    if refresh is None:
        check_training_levels(train.levels_N, selector.n_levels)
    settings, device = selector.settings, selector.standardise.mean_F.device
    head_HN = head_weights(train.groups, settings.heads.count, settings.fit.seed).to(device)
    weights_HN = head_HN * train.weights_N.to(device)
    levels_N = train.levels_N.to(device)
    features, plain_NF = training_features(selector.tower, train.images_NCHW, settings.augment)
    if refresh is None:
        selector.standardise.fit(plain_NF)

    def loss(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        logits_HBK = selector.head_logits(features(rows_B, generator))
        losses = [
            corn_loss(logits_BK, levels_N[rows_B], weights_B)
            for logits_BK, weights_B in zip(logits_HBK, weights_HN[:, rows_B], strict=True)
        ]
        return torch.stack(losses).mean()

    check = None if validation is None or not len(validation) else _validation(selector, validation)
    return Fitting(selector, len(train), loss, refresh or settings.fit, check)


def check_independent(
    selector: SelectorSettings,
    judge: SelectorSettings,
    selector_groups: Iterable[str],
    judge_groups: Iterable[str],
) -> None:
    """Raise an error if the judge has the seed, the encoder or a group of ratings of the selector.

    Two small CNNs of different width are different encoders.

    Raises:
        ModelError: The seed or the encoder is the same.
        DataError: A group is in both partitions.
    """
    if selector.seed == judge.seed:
        raise ModelError(
            "imagegen.judge_seed_reused",
            "the judge must have another seed than the selector",
            place="judge.seed",
            value=judge.seed,
            remedy="Change one of the seeds.",
        )
    if _encoder(selector) == _encoder(judge):
        raise ModelError(
            "imagegen.judge_encoder_reused",
            "the judge must have another encoder than the selector",
            place="judge.encoder",
            value=judge.tower.encoder,
            remedy="Change one of the encoders, or the width of one CNN.",
        )
    if shared := sorted(set(selector_groups) & set(judge_groups)):
        raise DataError(
            "imagegen.judge_groups_overlap",
            f"ratings of the judge and the selector must be of different groups ({len(shared)} are in both)",
            place="ratings",
            value=shared[:_EXAMPLES],
            remedy="Split the ratings by patient or image.",
        )


def _validation(selector: Selector, rated: RatedImages) -> Callable[[], float]:
    """Return the CORN loss on some ratings as a function of the present parameters: the mean of the heads' losses."""
    features = held_out_features(selector.tower, rated.images_NCHW)

    def check() -> float:
        logits = [selector.head_logits(features_BF).cpu() for features_BF in features().split(SCORING_BATCH)]
        losses = [float(corn_loss(logits_NK, rated.levels_N, rated.weights_N)) for logits_NK in torch.cat(logits, 1)]
        return sum(losses) / len(losses)

    return check


def _encoder(settings: SelectorSettings) -> tuple[str, str | None, int]:
    tower = settings.tower
    return tower.encoder, tower.revision, tower.width if tower.encoder == CNN else 0
