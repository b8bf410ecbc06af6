"""Evaluation of generated images: one row of the table of results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolkit.imagegen.evaluation.image_metrics import (
    CopyFigures,
    DistributionFigures,
    DistributionSettings,
    DiversityFigures,
    FeatureSet,
    copy_figures,
    distribution_figures,
    diversity_figures,
    prompt_pairs,
)
from toolkit.imagegen.evaluation.statistics import Bootstrap, ImageKey
from toolkit.imagegen.scorers.extractor import Extractor
from toolkit.imagegen.scorers.fitting import on_device
from toolkit.imagegen.scorers.policy import Policy
from toolkit.imagegen.scorers.selector import Selector
from toolkit.scoring.statistics import Estimate, bootstrap_mean, proportion

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ImageEvaluationSettings:
    """``max_pairs`` of images per prompt enter the diversity. ``seed`` draws them and the halves of the real images."""

    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    max_pairs: int = 28
    copy_quantile: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedImages:
    """Images in [0, 1] with the prompt and the noise of each."""

    images_NCHW: Tensor
    keys: tuple[ImageKey, ...]

    def __post_init__(self) -> None:
        """Check that there is a distinct key for each image."""
        if len(self.images_NCHW) != len(self.keys) or len(set(self.keys)) != len(self.keys):
            raise ValueError("each generated image must have its own prompt and noise")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each image."""
        return tuple(key.prompt for key in self.keys)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The reference that generated images are compared with. ``make_reference`` computes it once.

    Attributes:
        features: Of real images that no generator is trained on, for KID and FID.
        diversity: Of the same images.
        training: Features of the images that a generator may be trained on, for the copy distance.
    """

    features: FeatureSet
    diversity: DiversityFigures
    training: FeatureSet


@dataclass(frozen=True, slots=True, eq=False)
class Scorers:
    """The models that score, with the thresholds at which judge and selector pass an image, and where they compute."""

    judge: Selector
    judge_threshold: float
    selector: Selector
    selector_threshold: float
    policy: Policy | None
    device: torch.device = _CPU


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    """The metrics of ``n`` generated images.

    Attributes:
        n: Number of images.
        keys: Prompt and noise of each image.
        judge_scores: The judge's score of each image, for paired differences.
        judge: Mean judge score, with a bootstrap over prompts like all intervals here.
        judge_pass_rate: Fraction of images that the judge passes.
        selector: Mean selector score. The reward contains it, so that it is no evidence.
        selector_pass_rate: Fraction of images that the selector passes.
        agreement: Mean agreement with the prompt by the policy. None without a policy.
        distribution: KID and FID.
        diversity: Within prompts.
        real_diversity: The same of real images that no generator is trained on.
        copies: Distance to the nearest training image.
    """

    n: int
    keys: tuple[ImageKey, ...]
    judge_scores: tuple[float, ...]
    judge: Estimate
    judge_pass_rate: Estimate
    selector: Estimate
    selector_pass_rate: Estimate
    agreement: Estimate | None
    distribution: DistributionFigures
    diversity: DiversityFigures
    real_diversity: DiversityFigures
    copies: CopyFigures

    @property
    def judge_by_key(self) -> Mapping[ImageKey, float]:
        """The judge's score of each image by its key, as ``compare_arms`` takes it."""
        return dict(zip(self.keys, self.judge_scores, strict=True))


def make_reference(
    extractor: Extractor,
    images_NCHW: Tensor,
    prompts: Sequence[str],
    groups: Sequence[str],
    settings: ImageEvaluationSettings,
    training: FeatureSet | None = None,
) -> Reference:
    """Return features and diversity of real images.

    They must not be images that a generator is trained on. A generator that imitates its training images would
    otherwise be nearer to the reference than one that learned the distribution.

    Args:
        extractor: A fitted extractor, on the device where it computes.
        images_NCHW: Real images in uint8 or in [0, 1].
        prompts: Prompt of each image.
        groups: Patient of each image, or the image itself.
        settings: As for the generated images.
        training: Features of the training images. None: the real images are searched for copies.
    """
    features_NF = extractor.features(images_NCHW)
    pairs = prompt_pairs(prompts, settings.max_pairs, settings.seed)
    diversity = diversity_figures(images_NCHW, features_NF, pairs, settings.bootstrap)
    features = FeatureSet(features_NF, tuple(groups))
    return Reference(features, diversity, features if training is None else training)


def evaluate_images(
    generated: GeneratedImages,
    scorers: Scorers,
    extractor: Extractor,
    reference: Reference,
    settings: ImageEvaluationSettings,
) -> ImageMetrics:
    """Score generated images and compare them with the real ones."""
    images_NCHW, prompts, bootstrap = generated.images_NCHW, generated.prompts, settings.bootstrap
    with on_device(scorers.device, scorers.judge):
        judge_scores = scorers.judge.score(images_NCHW).scores_N.double().tolist()
    with on_device(scorers.device, scorers.selector):
        selected = scorers.selector.score(images_NCHW).scores_N.double().tolist()
    with on_device(scorers.device, extractor):
        features = FeatureSet(extractor.features(images_NCHW), prompts)
    pairs = prompt_pairs(prompts, settings.max_pairs, settings.seed)
    return ImageMetrics(
        n=len(prompts),
        keys=generated.keys,
        judge_scores=tuple(judge_scores),
        judge=_mean(judge_scores, prompts, bootstrap),
        judge_pass_rate=_pass_rate(judge_scores, scorers.judge_threshold, prompts, bootstrap),
        selector=_mean(selected, prompts, bootstrap),
        selector_pass_rate=_pass_rate(selected, scorers.selector_threshold, prompts, bootstrap),
        agreement=_agreement(generated, scorers, bootstrap),
        distribution=distribution_figures(
            features, reference.features, DistributionSettings(settings.seed, bootstrap.confidence)
        ),
        diversity=diversity_figures(images_NCHW, features.features_NF, pairs, bootstrap),
        real_diversity=reference.diversity,
        copies=copy_figures(features, reference.training, bootstrap, settings.copy_quantile),
    )


def _agreement(generated: GeneratedImages, scorers: Scorers, bootstrap: Bootstrap) -> Estimate | None:
    if scorers.policy is None:
        return None
    with on_device(scorers.device, scorers.policy):
        scores = scorers.policy.score(generated.images_NCHW, generated.prompts).scores_N.double().tolist()
    return _mean(scores, generated.prompts, bootstrap)


def _mean(values: Sequence[float], prompts: Sequence[str], bootstrap: Bootstrap) -> Estimate:
    return bootstrap_mean(values, prompts, bootstrap.resamples, bootstrap.seed, bootstrap.confidence)


def _pass_rate(scores: Sequence[float], threshold: float, prompts: Sequence[str], bootstrap: Bootstrap) -> Estimate:
    passed = [float(score >= threshold) for score in scores]
    return proportion(passed, prompts, bootstrap.resamples, bootstrap.seed, bootstrap.confidence)
