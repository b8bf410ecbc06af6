"""The stage ``scorers``: stage 1 of the description. It trains selector, policy, judge and feature extractor.

Selector and policy are trained epoch by epoch together, so that each checkpoint holds both. The judge has its own
ratings, and the extractor sees no rating. Training is deterministic, so that an interrupted judge or extractor is
trained again from its start, and a finished one is read.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toolkit.errors import warn
from toolkit.imagegen.checkpoints import (
    POLICY,
    SELECTOR,
    SYNTHETIC,
    Checkpoints,
    GeneratorCheckpoint,
    ScorerCheckpoint,
    check_saved,
    is_saved,
    last_epoch,
    load_part,
    load_tensors,
    save_epoch,
    save_tensors,
)
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.evaluation.evaluate import Scorers
from toolkit.imagegen.generators.generator import BaseModel
from toolkit.imagegen.ratings.prepare import PreparedRatings
from toolkit.imagegen.scorers.extractor import Extractor, fit_extractor
from toolkit.imagegen.scorers.fitting import EpochRecord, Fitting, load_trained_state, on_device, trained_state
from toolkit.imagegen.scorers.metrics import (
    AgreementMetrics,
    RatingMetrics,
    evaluate_policy,
    evaluate_selector,
    selector_threshold,
)
from toolkit.imagegen.scorers.policy import MismatchPool, Policy, start_policy_fitting
from toolkit.imagegen.scorers.reward import Threshold, ThresholdSettings
from toolkit.imagegen.scorers.selector import Selector, check_independent, start_fitting
from toolkit.imagegen.scorers.text_tower import vocabulary_of
from toolkit.imagegen.scorers.vision_tower import FrozenBackbones
from toolkit.imagegen.settings import (
    bootstrap_of,
    extractor_settings,
    judge_settings,
    policy_settings,
    selector_settings,
)
from toolkit.runfolder import RunFolder

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

STAGE = "scorers"
_MODELS = ("selector", "policy", "judge", "extractor")
_RESTORE = "Restore the file, or start again with --fresh. The old folder is kept under another name."
_FEWEST_PASSED, _LEAST_PASSED = 5, 0.1
"""Validation ratings that a threshold must pass, and their fraction. The precision of fewer is unreliable."""


@dataclass(frozen=True, slots=True)
class ScorersResult:
    """The result of the stage ``scorers``, on ratings that no scorer was trained on.

    Attributes:
        selector: agreement of the selector with held-out ratings.
        judge: the same of the judge. Read the judge's scores of generated images with it.
        policy: how well the policy distinguishes matched from mismatched prompts.
        selector_threshold: the lowest score that passes the selector, chosen on validation ratings.
        judge_threshold: the lowest score that passes the judge.
        explained: fraction of the variance that the extractor's features keep.
        selector_epochs, policy_epochs, judge_epochs: the losses of each epoch.
    """

    selector: RatingMetrics
    judge: RatingMetrics
    policy: AgreementMetrics
    selector_threshold: Threshold
    judge_threshold: Threshold
    explained: float
    selector_epochs: tuple[EpochRecord, ...]
    policy_epochs: tuple[EpochRecord, ...]
    judge_epochs: tuple[EpochRecord, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A trained model in the stage's folder, without frozen parameters. ``records`` are the judge's epochs."""

    model: dict[str, Tensor]
    records: tuple[EpochRecord, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ScoringModels:
    """All models of stage 1. They are in RAM, except in ``resident``, and equal frozen backbones are loaded once."""

    selector: Selector
    policy: Policy
    judge: Selector
    extractor: Extractor
    device: torch.device

    @property
    def by_name(self) -> Mapping[str, nn.Module]:
        """Name -> model."""
        return {"selector": self.selector, "policy": self.policy, "judge": self.judge, "extractor": self.extractor}

    def resident(self, *names: str) -> AbstractContextManager[None]:
        """Return a context in which some models are on the device."""
        return on_device(self.device, *(self.by_name[name] for name in names))

    def scorers(self, result: ScorersResult) -> Scorers:
        """Return the models that score images, with their thresholds."""
        return Scorers(
            self.judge,
            result.judge_threshold.value,
            self.selector,
            result.selector_threshold.value,
            self.policy,
            self.device,
        )


def build_models(context: StageContext, prepared: PreparedRatings) -> ScoringModels:
    """Return the untrained models.

    Raises:
        ModelError: an encoder cannot be loaded, or the judge is not independent.
        DataError: the judge and the selector have common ratings.
    """
    recipe, section = context.recipe, context.section
    own, judges = (_groups(prepared, *names) for names in (("train", "validation"), ("judge_train",)))
    check_independent(selector_settings(recipe), judge_settings(recipe), own, judges)
    levels, size = len(section.rating_range), section.size
    shared: FrozenBackbones = {}
    # All prompts, not only those of the training ratings, so that every word of a prompt is in the vocabulary.
    vocabulary = vocabulary_of(all_prompts(context, prepared))
    return ScoringModels(
        Selector(selector_settings(recipe), levels, size, shared),
        Policy(policy_settings(recipe), vocabulary, size, shared),
        Selector(judge_settings(recipe), levels, size, shared),
        Extractor(extractor_settings(recipe), size, shared),
        context.device,
    )


def all_prompts(context: StageContext, prepared: PreparedRatings) -> tuple[str, ...]:
    """Return all distinct prompts of the ratings and of the recipe."""
    own = [prompt for prompts in context.section.prompts.values() for prompt in prompts]
    return tuple(dict.fromkeys([*own, *(image.prompt for image in prepared.ratings.images)]))


def train_scorers(
    context: StageContext,
    prepared: PreparedRatings,
    models: ScoringModels,
    checkpoints: Checkpoints,
    base: BaseModel,
) -> ScorersResult:
    """Train all models, save them in the stage's folder, and evaluate them on held-out ratings.

    Args:
        context: the context of the stage.
        prepared: the ratings.
        models: the models to train, in place.
        checkpoints: the checkpoints of the run.
        base: the generator's base, which the checkpoints name.

    Raises:
        DataError: ratings of a level are missing, or images are too few.
        TrainingError: a loss is not finite.
        Interrupted: a signal came. The last finished epoch is saved.
    """
    with models.resident("selector", "policy"):
        selector_epochs, policy_epochs = _train_rewards(context, prepared, models, checkpoints, base)
    with models.resident("judge"):
        judge_epochs = _train_judge(context, prepared, models.judge)
    with models.resident("extractor"):
        _train_extractor(context, prepared, models.extractor)
    for name in ("selector", "policy"):
        save_model(context, name, models.by_name[name])
    bootstrap, test = bootstrap_of(context.recipe), prepared.rows("test")
    pool = mismatch_pool(prepared)
    with models.resident("selector", "policy"):
        selector = evaluate_selector(models.selector, test, bootstrap)
        policy = evaluate_policy(models.policy, test, pool, bootstrap)
        chosen = choose_threshold_of(context, prepared, models.selector, "validation")
    with models.resident("judge"):
        judge = evaluate_selector(models.judge, test, bootstrap)
        judge_chosen = choose_threshold_of(context, prepared, models.judge, "judge_validation")
    return ScorersResult(
        selector=selector,
        judge=judge,
        policy=policy,
        selector_threshold=chosen,
        judge_threshold=judge_chosen,
        explained=float(models.extractor.explained),
        selector_epochs=selector_epochs,
        policy_epochs=policy_epochs,
        judge_epochs=judge_epochs,
    )


def mismatch_pool(prepared: PreparedRatings) -> MismatchPool:
    """Return the prompts of all ratings, from which mismatched prompts are drawn."""
    images = prepared.ratings.images
    return MismatchPool([image.prompt for image in images], [image.modality for image in images])


def load_models(context: StageContext, models: ScoringModels) -> None:
    """Set the models to those that the finished stage saved."""
    for name, model in models.by_name.items():
        _load_model(context, name, model)


def save_model(context: StageContext, name: str, model: nn.Module) -> None:
    """Save a trained model in the stage's folder, without frozen parameters."""
    save_tensors(_file(context, name), TrainedModel(trained_state(model)))


def load_trained(path: Path) -> TrainedModel:
    """Return a trained model of a finished stage.

    Raises:
        RunError: its file is missing or damaged.
    """
    return load_tensors(path, TrainedModel, _RESTORE)


def check_trained(run: RunFolder) -> None:
    """Check that the models of the finished stage are as they were saved. Raises RunError."""
    for name in _MODELS:
        check_saved(run.path / "stages" / STAGE / f"{name}.pt", _RESTORE)


def choose_threshold_of(context: StageContext, prepared: PreparedRatings, selector: Selector, split: str) -> Threshold:
    """Choose a threshold on validation ratings, and warn if it misses the target precision."""
    keys = context.section.selector
    rated = prepared.rows(split)
    fewest = max(_FEWEST_PASSED, round(_LEAST_PASSED * len(rated)))
    settings = ThresholdSettings(keys.target_precision, min(fewest, len(rated)))
    threshold = selector_threshold(selector, rated, passing_level(context), settings)
    if not threshold.reached:
        warn(
            "imagegen.target_precision_missed",
            f"no threshold reaches the target precision of {keys.target_precision:g} on {split} ratings. The best one "
            f"is {threshold.value:.3f}",
            place="imagegen.selector.target_precision",
            value=threshold.precision,
        )
    return threshold


def passing_level(context: StageContext) -> int:
    """Return the lowest level that counts as rated well."""
    section = context.section
    good = section.selector.good_rating
    return len(section.rating_range) - 1 if good is None else section.rating_range.index(good)


def _load_model(context: StageContext, name: str, model: nn.Module) -> None:
    load_trained_state(model, load_trained(_file(context, name)).model)
    model.eval()


def _file(context: StageContext, name: str) -> Path:
    return context.run.stage_folder(STAGE) / f"{name}.pt"


def _train_rewards(
    context: StageContext,
    prepared: PreparedRatings,
    models: ScoringModels,
    checkpoints: Checkpoints,
    base: BaseModel,
) -> tuple[tuple[EpochRecord, ...], tuple[EpochRecord, ...]]:
    """Train selector and policy, with a checkpoint after each epoch."""
    train, validation = prepared.rows("train"), prepared.rows("validation")
    fittings = {
        "selector": start_fitting(models.selector, train, validation),
        "policy": start_policy_fitting(models.policy, train, validation, len(context.section.rating_range)),
    }
    epoch = last_epoch(checkpoints)
    if epoch:
        for name, part in (("selector", SELECTOR), ("policy", POLICY)):
            saved = load_part(checkpoints, epoch, part, ScorerCheckpoint)
            if saved.fitting is not None:
                fittings[name].restore(saved.model, saved.fitting)
        log.info("scorers: resumed after epoch %d", epoch)
    # An epoch that was killed before its save has reported its metrics, and is trained again.
    context.run.remove_metrics(STAGE, epoch)
    total = max(fitting.settings.epochs for fitting in fittings.values())
    while not all(fitting.is_finished for fitting in fittings.values()):
        context.stop.check(f"epoch {epoch} of stage 1 is saved")
        epoch += 1
        figures = _run_epoch(fittings)
        parts: dict[str, DataclassInstance] = {
            SELECTOR: _checkpoint(epoch, fittings["selector"]),
            POLICY: _checkpoint(epoch, fittings["policy"]),
            SYNTHETIC: GeneratorCheckpoint(epoch, 1, base),
        }
        # Before the save, so that no epoch is missing from the metrics, whenever the run is killed.
        context.report(STAGE, epoch, total, figures)
        save_epoch(checkpoints, epoch, parts)
    for fitting in fittings.values():
        fitting.finish()
    return tuple(fittings["selector"].records), tuple(fittings["policy"].records)


def _run_epoch(fittings: Mapping[str, Fitting]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, fitting in fittings.items():
        if fitting.is_finished:
            continue
        record = fitting.run_epoch()
        figures |= {f"{name}_loss": record.loss, f"{name}_learning_rate": record.learning_rate}
        if record.validation_loss is not None:
            figures[f"{name}_validation_loss"] = record.validation_loss
    return figures


def _checkpoint(epoch: int, fitting: Fitting) -> ScorerCheckpoint:
    return ScorerCheckpoint(epoch, 1, trained_state(fitting.module), fitting.state())


def _train_judge(context: StageContext, prepared: PreparedRatings, judge: Selector) -> tuple[EpochRecord, ...]:
    path = _file(context, "judge")
    if is_saved(path):
        saved = load_trained(path)
        load_trained_state(judge, saved.model)
        judge.eval()
        return saved.records
    fitting = start_fitting(judge, prepared.rows("judge_train"), prepared.rows("judge_validation"))
    context.run.remove_metrics("judge", 0)  # of a judge that was killed before its save
    while not fitting.is_finished:
        context.stop.check("selector and policy are saved")
        record = fitting.run_epoch()
        context.report("judge", record.epoch + 1, fitting.settings.epochs, {"loss": record.loss})
    fitting.finish()
    records = tuple(fitting.records)
    save_tensors(path, TrainedModel(trained_state(judge), records))
    return records


def _train_extractor(context: StageContext, prepared: PreparedRatings, extractor: Extractor) -> None:
    """Fit the extractor on all rated images with their modalities as labels, or read it."""
    if is_saved(_file(context, "extractor")):
        _load_model(context, "extractor", extractor)
        return
    context.stop.check("selector, policy and judge are saved")
    images = prepared.ratings.images
    modalities = {image.modality for image in images}
    # Labels of a single modality carry no information. Prompts differ in the finding.
    labels = [image.modality if len(modalities) > 1 else image.prompt for image in images]
    fit_extractor(extractor, prepared.images(images), labels)
    save_model(context, "extractor", extractor)


def _groups(prepared: PreparedRatings, *splits: str) -> list[str]:
    return [image.group for split in splits for image in prepared.splits[split].images]
