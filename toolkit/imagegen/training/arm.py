"""The context of an arm (base, control, sft, ddpo): the generator, evaluations on paired noise, and checkpoints."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from toolkit.errors import warn
from toolkit.imagegen.checkpoints import (
    POLICY,
    SELECTOR,
    SYNTHETIC,
    Checkpoints,
    GeneratorCheckpoint,
    ScorerCheckpoint,
    last_epoch,
    load_part,
    save_epoch,
    to_plain,
)
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.evaluation.evaluate import (
    GeneratedImages,
    ImageMetrics,
    Reference,
    Scorers,
    evaluate_images,
    make_reference,
)
from toolkit.imagegen.evaluation.image_metrics import FeatureSet
from toolkit.imagegen.evaluation.statistics import ImageKey
from toolkit.imagegen.generators.ddim import make_schedule
from toolkit.imagegen.generators.generator import Generator
from toolkit.imagegen.generators.lora import reset_lora
from toolkit.imagegen.generators.sampling import generate
from toolkit.imagegen.ratings.load import RatedImage
from toolkit.imagegen.ratings.oracle import load_oracle
from toolkit.imagegen.ratings.prepare import PreparedRatings
from toolkit.imagegen.samples import MOST, save_samples
from toolkit.imagegen.scorers.fitting import load_trained_state, trained_state
from toolkit.imagegen.scorers.train_scorers import ScoringModels, all_prompts, load_models, passing_level
from toolkit.imagegen.seeds import SEED_RANGE, derive_seed, seed_of
from toolkit.imagegen.settings import evaluation_settings
from toolkit.imagegen.training.update_state import UpdateState, dump_state, restore_state, start_update
from toolkit.models.random_state import seed_all
from toolkit.runfolder import from_json
from toolkit.scoring.statistics import Estimate, bootstrap_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

Rounds = TypeVar("Rounds")
"""An arm's own dataclass of its finished rounds."""

TABLE, ROUNDS = "table", "rounds"
"""Noise of the results table, and of the evaluations after each round, which select the best round. The same noise
gives the same prompts and noise for every arm."""


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """An arm's images for the table.

    Attributes:
        metrics: the metrics of ``judge.images`` images on the noise of the table, which is the same for all arms.
        oracle: mean score by the oracle of synthetic data. It is shown beside the judge's and decides nothing.
    """

    metrics: ImageMetrics
    oracle: Estimate | None


@dataclass(frozen=True, slots=True, eq=False)
class ArmContext:
    """The generator of an arm with the models that score its images, and the checkpoints of the run."""

    context: StageContext
    prepared: PreparedRatings
    models: ScoringModels
    scorers: Scorers
    generator: Generator
    reference: Reference
    checkpoints: Checkpoints

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that images are generated for: the recipe's, otherwise those of the ratings."""
        own = [prompt for prompts in self.context.section.prompts.values() for prompt in prompts]
        return tuple(own) if own else tuple(sorted(all_prompts(self.context, self.prepared)))

    def evaluate_round(self, arm: str, number: int) -> ImageMetrics:
        """Generate and score the images of a round, on the noise of ``ROUNDS``, and keep some of them."""
        generated = self._generate(ROUNDS)
        self._keep(generated, arm, f"round-{number:03d}")
        return self._measure(generated)

    def figures(self, arm: str) -> ArmFigures:
        """Return the arm's figures of the table, by the scorers of stage 1, and keep some of its images."""
        load_models(self.context, self.models)  # a refresh may have changed them
        generated = self._generate(TABLE)
        self._keep(generated, arm, TABLE)
        metrics = self._measure(generated)
        oracle = None
        if self.context.section.synthetic is not None and not self.context.section.prompts:
            scores = load_oracle().score(generated.images_NCHW, generated.prompts).tolist()
            boot = evaluation_settings(self.context.recipe).bootstrap
            oracle = bootstrap_mean(scores, generated.prompts, boot.resamples, boot.seed, boot.confidence)
        return ArmFigures(metrics, oracle)

    def _generate(self, noise: str) -> GeneratedImages:
        section, prompts = self.context.section, self.prompts
        wanted = [prompts[number % len(prompts)] for number in range(section.judge.images)]
        schedule = make_schedule(self.generator.scheduler, section.generator.steps)
        seed = derive_seed(seed_of(self.context.recipe, "evaluation"), noise)
        images = generate(self.generator, schedule, wanted, seed, section.generator.batch_size)
        return GeneratedImages(images, tuple(ImageKey(prompt, number) for number, prompt in enumerate(wanted)))

    def _keep(self, generated: GeneratedImages, arm: str, name: str) -> None:
        first_NCHW = generated.images_NCHW[:MOST].float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
        save_samples(self.context.run, arm, name, first_NCHW.permute(0, 2, 3, 1).numpy(), generated.prompts[:MOST])

    def _measure(self, generated: GeneratedImages) -> ImageMetrics:
        settings = evaluation_settings(self.context.recipe)
        return evaluate_images(generated, self.scorers, self.models.extractor, self.reference, settings)


def well_rated(context: StageContext, images: Sequence[RatedImage]) -> tuple[RatedImage, ...]:
    """Return the images whose mean rating is closer to a good rating than to the level below it.

    If fewer than a quarter of the images are rated well, all images are returned.
    """
    least = passing_level(context) - 0.5
    good = tuple(image for image in images if sum(image.levels) / len(image.levels) >= least)
    if 4 * len(good) >= len(images):
        return good
    warn(
        "imagegen.few_images_rated_well",
        "reference figures use all images, because fewer than a quarter are rated well",
        place="imagegen.ratings",
        value=f"{len(good)} of {len(images)}",
    )
    return tuple(images)


def reference_of(context: StageContext, prepared: PreparedRatings, models: ScoringModels) -> Reference:
    """Return the reference images of KID, FID, diversity and copy distance.

    KID, FID and diversity take well-rated images of the judge's splits and of the test split, which no method is
    trained on. Copies are searched among the selector's images, on which ``sft`` and its control are trained.
    """
    chosen, own = well_rated(context, prepared.unseen), prepared.trainable
    with models.resident("extractor"):
        features_NF = models.extractor.features(prepared.images(own))
        return make_reference(
            models.extractor,
            prepared.images(chosen),
            [image.prompt for image in chosen],
            [image.group for image in chosen],
            evaluation_settings(context.recipe),
            FeatureSet(features_NF, tuple(image.group for image in own)),
        )


def begin_arm(arm_context: ArmContext, arm: str, learning_rate: float) -> UpdateState:
    """Return the state of an arm before its first round: the scorers of stage 1, and a LoRA that changes nothing.

    The global generators are seeded, because checkpoints hold their states. Without it, these would depend on what the
    process did before, such as the stages before a kill.
    """
    context, generator = arm_context.context, arm_context.generator
    load_models(context, arm_context.models)
    reset_lora(generator.network, seed_of(context.recipe, "generator"))
    seed_all(derive_seed(context.recipe.run.seed, arm) % SEED_RANGE)
    return start_update(generator, learning_rate)


def save_round(arm_context: ArmContext, arm: str, state: UpdateState, progress: "DataclassInstance") -> None:
    """Save a round of an arm as the run's next epoch.

    Args:
        arm_context: the context of the arm.
        arm: control, sft or ddpo.
        state: the state of the update.
        progress: the arm's own record of its rounds.
    """
    epoch, models = last_epoch(arm_context.checkpoints) + 1, arm_context.models
    update = dump_state(state)
    parts: dict[str, DataclassInstance] = {
        SELECTOR: ScorerCheckpoint(epoch, 2, trained_state(models.selector)),
        POLICY: ScorerCheckpoint(epoch, 2, trained_state(models.policy)),
        SYNTHETIC: GeneratorCheckpoint(epoch, 2, update.base, arm, update, to_plain(progress)),
    }
    save_epoch(arm_context.checkpoints, epoch, parts, arm_context.generator.save_lora)


def resume_round(arm_context: ArmContext, arm: str, state: UpdateState, kind: type[Rounds]) -> Rounds | None:
    """Continue an arm from its newest epoch, and return its progress. None: the arm has no epoch yet."""
    progress = _restored_round(arm_context, arm, state, kind)
    # A round that was killed before its save has reported its metrics, and is trained again.
    arm_context.context.run.remove_metrics(arm, state.round)
    return progress


def _restored_round(arm_context: ArmContext, arm: str, state: UpdateState, kind: type[Rounds]) -> Rounds | None:
    epoch, models = last_epoch(arm_context.checkpoints), arm_context.models
    if not epoch:
        return None
    saved = load_part(arm_context.checkpoints, epoch, SYNTHETIC, GeneratorCheckpoint)
    if saved.arm != arm or saved.update is None:
        return None
    restore_state(state, saved.update, arm_context.checkpoints.path(epoch) / SYNTHETIC)
    for model, part in ((models.selector, SELECTOR), (models.policy, POLICY)):
        load_trained_state(model, load_part(arm_context.checkpoints, epoch, part, ScorerCheckpoint).model)
    log.info("%s: resumed after round %d", arm, state.round)
    return from_json(kind, saved.progress, other_types=True)
