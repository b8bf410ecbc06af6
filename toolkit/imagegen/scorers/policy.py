"""The policy: from an image and a prompt to their agreement in [0, 1].

The name is that of the system this follows. It is a reward model. The policy in the sense of reinforcement learning is
the generator. An image tower and a text tower, whose features i and t are fused as [i, t, i * t, |i - t|], and an
ensemble of heads. It is trained on matched prompts against mismatched ones, which are drawn anew in each epoch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from toolkit.errors import DataError
from toolkit.imagegen.scorers.fitting import FitSettings, Fitting, RatedImages
from toolkit.imagegen.scorers.heads import HeadEnsemble, HeadSettings, Scored, Standardise, head_weights, lower_bound
from toolkit.imagegen.scorers.text_tower import TextSettings, build_text_tower
from toolkit.imagegen.scorers.vision_tower import (
    FrozenBackbones,
    TowerSettings,
    all_features,
    build_tower,
    held_out_features,
    training_features,
)

SCORING_BATCH = 64
"""Pairs of an image's features and a prompt that are scored at a time."""

_VALIDATION_SEED = 20_251


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Architecture and training of a policy.

    ``width`` is the length of the projected features. ``matched_target`` is the target of an image with its own prompt:
    1, or its rating as rank divided by the highest rank.
    """

    tower: TowerSettings = field(default_factory=TowerSettings)
    text: TextSettings = field(default_factory=TextSettings)
    heads: HeadSettings = field(default_factory=HeadSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    width: int = 48
    matched_target: Literal["one", "rating"] = "one"
    augment: bool = True
    seed: int = 0


class Policy(nn.Module):
    """Two towers, a projection of each, and heads with one logit.

    ``vocabulary`` is that of the training prompts (``vocabulary_of``), which word embeddings need. ``shared`` are
    loaded backbones.
    """

    def __init__(
        self,
        settings: PolicySettings,
        vocabulary: Sequence[str],
        image_size: int,
        shared: FrozenBackbones | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tower = build_tower(settings.tower, image_size, settings.seed, shared)
        self.text = build_text_tower(settings.text, vocabulary, settings.seed + 1)
        self.image_standard = Standardise(self.tower.num_features)
        self.text_standard = Standardise(self.text.num_features)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + 2)
            self.image_projection = _projection(self.tower.num_features, settings.width)
            self.text_projection = _projection(self.text.num_features, settings.width)
        self.heads = HeadEnsemble(4 * settings.width, 1, settings.heads, settings.seed + 3)

    def forward(self, images_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return logits_HN: heads x pairs."""
        return self.fused_logits(self.tower(images_NCHW), self.text(prompts))

    def fused_logits(self, images_NF: Tensor, texts_NF: Tensor) -> Tensor:
        """Return logits_HN of the towers' features."""
        image = self.image_projection(self.image_standard(images_NF))
        text = self.text_projection(self.text_standard(texts_NF))
        fused = torch.cat([image, text, image * text, (image - text).abs()], dim=1)
        logits_HN1: Tensor = self.heads(fused)
        return logits_HN1[:, :, 0]

    @torch.no_grad()
    def score(self, images_NCHW: Tensor, prompts: Sequence[str]) -> Scored:
        """Score each image with its prompt in eval mode."""
        if len(images_NCHW) != len(prompts):
            raise ValueError(f"{len(images_NCHW)} images, but {len(prompts)} prompts")
        scores_HN = self._scores(self._image_features(images_NCHW), prompts)
        return Scored(scores_HN.mean(dim=0), lower_bound(scores_HN))

    @torch.no_grad()
    def score_grid(self, images_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score every image with every prompt in eval mode: scores_NP. Each image is encoded once."""
        features_NF = self._image_features(images_NCHW)
        columns = [self._scores(features_NF, [prompt] * len(features_NF)).mean(dim=0) for prompt in prompts]
        return torch.stack(columns, dim=1)

    def _image_features(self, images_NCHW: Tensor) -> Tensor:
        if not len(images_NCHW):
            return torch.zeros(0, self.tower.num_features, device=self.image_standard.mean_F.device)
        return all_features(self.tower, images_NCHW)

    def _scores(self, features_NF: Tensor, prompts: Sequence[str]) -> Tensor:
        was_training = self.training
        self.eval()
        parts = [
            torch.sigmoid(
                self.fused_logits(
                    features_NF[start : start + SCORING_BATCH], self.text(prompts[start : start + SCORING_BATCH])
                )
            ).cpu()
            for start in range(0, len(features_NF), SCORING_BATCH)
        ]
        self.train(was_training)
        return torch.cat(parts, dim=1) if parts else torch.zeros(len(self.heads.heads), 0)


def start_policy_fitting(
    policy: Policy,
    train: RatedImages,
    validation: RatedImages | None,
    n_levels: int,
    refresh: FitSettings | None = None,
) -> Fitting:
    """Return the training of a policy on images with their prompts.

    Args:
        policy: The model to train, in place.
        train: Training rows.
        validation: Rows whose loss decides which epoch is kept. The last one without such rows.
        n_levels: Number of levels of the ratings, which are targets if the settings say so.
        refresh: Settings to train an already fitted policy further. The scale of its features stays as it is.

    Raises:
        DataError: There is only one distinct prompt.
        ModelError: A prompt is longer than the text encoder takes.
    """
    settings, device = policy.settings, policy.image_standard.mean_F.device
    pool = MismatchPool(train.prompts, train.modalities)
    features, plain_NF = training_features(policy.tower, train.images_NCHW, settings.augment)
    if refresh is None:
        policy.image_standard.fit(plain_NF)
    if refresh is None and policy.text.frozen:
        policy.text_standard.fit(policy.text(pool.distinct))
    weights_HN = head_weights(train.groups, settings.heads.count, settings.fit.seed) * train.weights_N
    weights_HN, targets_N = weights_HN.to(device), _matched_targets(train, n_levels, settings).to(device)

    def loss(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        rows = rows_B.tolist()
        prompts, modalities = [train.prompts[row] for row in rows], [train.modalities[row] for row in rows]
        wrong = pool.draw(prompts, modalities, generator).prompts
        texts = policy.text([*prompts, *wrong])
        logits_H2B = policy.fused_logits(features(rows_B, generator).repeat(2, 1), texts)
        return _pair_loss(logits_H2B, targets_N[rows_B], weights_HN[:, rows_B])

    check = None
    if validation is not None and len(validation):
        check = _validation(policy, validation, pool, _matched_targets(validation, n_levels, settings).to(device))
    return Fitting(policy, len(train), loss, refresh or settings.fit, check)


@dataclass(frozen=True, slots=True)
class Mismatches:
    """One mismatched prompt per row.

    Attributes:
        prompts: A prompt of each row whose text differs from the row's own.
        same_modality: Whether each prompt is one of the row's modality.
        without_same: Rows that should have had a prompt of their modality, which has no other text. They got a prompt
            of another modality.
    """

    prompts: tuple[str, ...]
    same_modality: tuple[bool, ...]
    without_same: int


class MismatchPool:
    """The distinct prompts of some rows, to draw mismatches from.

    Two prompts are the same text if they differ only in case and spaces.

    Raises:
        DataError: There is only one distinct prompt.
    """

    def __init__(self, prompts: Sequence[str], modalities: Sequence[str]) -> None:
        self._by_text = {plain_text(prompt): prompt for prompt in reversed(prompts)}
        if len(self._by_text) < 2:
            raise DataError(
                "imagegen.prompts_too_few",
                "the policy must have ratings of at least 2 distinct prompts",
                place="prompt",
                value=next(iter(self._by_text.values()), ""),
                remedy="Add ratings of images with other prompts, or remove the policy from the recipe.",
            )
        texts: dict[str, set[str]] = {}
        for prompt, modality in zip(prompts, modalities, strict=True):
            texts.setdefault(modality, set()).add(plain_text(prompt))
        # Sorted, so that a seed gives the same draws whatever the order of the rows.
        self._same = {modality: sorted(found) for modality, found in texts.items()}
        self._other = {modality: sorted(set(self._by_text) - found) for modality, found in texts.items()}

    @property
    def distinct(self) -> tuple[str, ...]:
        """The distinct prompts, sorted by text."""
        return tuple(self._by_text[text] for text in sorted(self._by_text))

    def draw(self, prompts: Sequence[str], modalities: Sequence[str], generator: torch.Generator) -> Mismatches:
        """Draw a mismatch for each row, for half of the rows (rounded down) one of the same modality.

        Prompts of the other half are of another modality. If no other modality has another text, they are of the same.
        Distinct texts are equally likely.
        """
        order = torch.randperm(len(prompts), generator=generator).tolist()
        hard = set(order[: len(prompts) // 2])
        picks = torch.rand(len(prompts), generator=generator).tolist()
        drawn, same, without = [], [], 0
        for row, (prompt, modality, pick) in enumerate(zip(prompts, modalities, picks, strict=True)):
            near = self._others(self._same.get(modality, []), prompt)
            far = self._others(self._other.get(modality, sorted(self._by_text)), prompt)
            is_same = bool(near) and (row in hard or not far)
            without += row in hard and not near
            choices = near if is_same else far
            drawn.append(self._by_text[choices[int(pick * len(choices))]])
            same.append(is_same)
        return Mismatches(tuple(drawn), tuple(same), without)

    @staticmethod
    def _others(texts: Sequence[str], prompt: str) -> list[str]:
        own = plain_text(prompt)
        return [text for text in texts if text != own]


def plain_text(prompt: str) -> str:
    """Return the text by which prompts are compared.

    >>> plain_text("Chest  CT: Nodule ")
    'chest ct: nodule'
    """
    return " ".join(prompt.split()).casefold()


def _validation(policy: Policy, rated: RatedImages, pool: MismatchPool, targets_N: Tensor) -> "_Check":
    generator = torch.Generator().manual_seed(_VALIDATION_SEED)
    wrong = pool.draw(rated.prompts, rated.modalities, generator).prompts
    return _Check(policy, rated, held_out_features(policy.tower, rated.images_NCHW), wrong, targets_N)


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    """The loss on validation rows, with the same mismatches in each epoch."""

    policy: Policy
    rated: RatedImages
    features: Callable[[], Tensor]
    wrong: tuple[str, ...]
    targets_N: Tensor

    def __call__(self) -> float:
        features_NF = self.features()
        texts = self.policy.text([*self.rated.prompts, *self.wrong])
        logits_H2N = self.policy.fused_logits(features_NF.repeat(2, 1), texts)
        weights_N = self.rated.weights_N.to(logits_H2N)
        return float(_pair_loss(logits_H2N, self.targets_N, weights_N.expand(len(logits_H2N), -1)))


def _pair_loss(logits_H2N: Tensor, targets_N: Tensor, weights_HN: Tensor) -> Tensor:
    """Return the weighted binary cross-entropy of matched pairs (first half) and mismatched pairs (target 0)."""
    targets_2N = torch.cat([targets_N, torch.zeros_like(targets_N)]).expand_as(logits_H2N)
    losses_H2N = binary_cross_entropy_with_logits(logits_H2N, targets_2N, reduction="none")
    weights_H2N = weights_HN.repeat(1, 2)
    return (losses_H2N * weights_H2N).sum() / weights_H2N.sum()


def _matched_targets(rated: RatedImages, n_levels: int, settings: PolicySettings) -> Tensor:
    if settings.matched_target == "one":
        return torch.ones(len(rated))
    return rated.levels_N.float() / (n_levels - 1)


def _projection(n_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_features, width), nn.LayerNorm(width))
