"""The stages of [imagegen] in order, with resume: ratings, scorers, base, control, sft, ddpo."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

from toolkit.errors import warn
from toolkit.imagegen.checkpoints import Checkpoints, open_run_checkpoints
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.generators.generator import Generator, load_generator
from toolkit.imagegen.generators.lora import reset_lora
from toolkit.imagegen.lora_card import check_lora_file, describe_lora, read_lora_record
from toolkit.imagegen.ratings.prepare import PreparedRatings, RatingsResult, prepare_ratings
from toolkit.imagegen.scorers.text_tower import TextReader
from toolkit.imagegen.scorers.train_scorers import (
    STAGE,
    ScorersResult,
    ScoringModels,
    all_prompts,
    build_models,
    check_trained,
    load_models,
    train_scorers,
)
from toolkit.imagegen.seeds import seed_of
from toolkit.imagegen.settings import generator_settings
from toolkit.imagegen.training.arm import ArmContext, ArmFigures, reference_of
from toolkit.imagegen.training.ddpo_stage import DdpoResult, train_ddpo
from toolkit.imagegen.training.sft_stage import SftResult, train_sft
from toolkit.runfolder import RunFolder

RATINGS, BASE = "ratings", "base"
_ARMS = ("control", "sft", "ddpo")

StageResult = RatingsResult | ScorersResult | ArmFigures | SftResult | DdpoResult


@dataclass(eq=False)
class RunSession:
    """One start of a run. Objects that several stages need are created once, when the first stage needs them."""

    context: StageContext

    @cached_property
    def ratings(self) -> tuple[PreparedRatings, RatingsResult]:
        """The ratings, and the result of their stage."""
        return prepare_ratings(self.context)

    @property
    def prepared(self) -> PreparedRatings:
        """The ratings."""
        return self.ratings[0]

    @cached_property
    def generator(self) -> Generator:
        """The generator with a new LoRA."""
        return load_generator(generator_settings(self.context.recipe, self.context.device), self.context.device)

    @cached_property
    def models(self) -> ScoringModels:
        """The scoring models, not yet trained or loaded."""
        return build_models(self.context, self.prepared)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return open_run_checkpoints(self.context.run, self.context.recipe.run.keep_checkpoints)

    @cached_property
    def arm_context(self) -> ArmContext:
        """The generator with the models that score its images."""
        load_models(self.context, self.models)
        result = self.context.run.result(STAGE, ScorersResult)
        reference = reference_of(self.context, self.prepared, self.models)
        scorers = self.models.scorers(result)
        return ArmContext(
            self.context, self.prepared, self.models, scorers, self.generator, reference, self.checkpoints
        )


def check_inputs(session: RunSession) -> None:
    """Check the inputs of all stages before any training: ratings, base, scorers, and the length of prompts.

    Raises:
        DataError: ratings cannot be used, or a prompt is too long for the generator.
        ImageError: an image cannot be read.
        ModelError: a model cannot be loaded, or a prompt is too long for the policy.
    """
    prompts = all_prompts(session.context, session.prepared)
    session.generator.check_prompts(prompts)
    reader = session.models.policy.text.reader
    if isinstance(reader, TextReader):
        reader.check(prompts)


def check_finished(run: RunFolder) -> None:
    """Check that what the finished stages have trained is as they saved it.

    Raises:
        RunError, ModelError: a file is missing or damaged.
    """
    if run.is_done(STAGE):
        check_trained(run)
    for arm in filter(run.is_done, _ARMS):
        check_lora_file(run.weights_folder(arm), read_lora_record(run, arm))


def run_stage(session: RunSession, name: str) -> None:
    """Run one stage and save its result.

    Raises:
        ToolkitError: the stage failed. Finished epochs and rounds are saved.
    """
    result = _WORK[name](session)
    if isinstance(result, SftResult | DdpoResult):
        describe_lora(session.context, session.generator.base, name, result.figures)
    _report_figures(session.context, name, result)
    session.context.run.mark_done(name, result)


def _report_figures(context: StageContext, name: str, result: StageResult) -> None:
    """Report an arm's figures of the table, to the log and to trackers."""
    figures = result.figures if isinstance(result, SftResult | DdpoResult) else result
    if not isinstance(figures, ArmFigures):
        return
    arms = context.section.arms
    metrics = figures.metrics
    shown = {
        f"{name}_judge": metrics.judge.value,
        f"{name}_judge_pass_rate": metrics.judge_pass_rate.value,
        f"{name}_selector": metrics.selector.value,
        f"{name}_selector_pass_rate": metrics.selector_pass_rate.value,
        f"{name}_diversity": metrics.diversity.distance.value,
    }
    values = {key: value for key, value in shown.items() if value is not None}
    context.run.remove_metrics("table", arms.index(name))  # if the stage was killed after its report
    context.report("table", arms.index(name) + 1, len(arms), values)


def _ratings(session: RunSession) -> RatingsResult:
    check_inputs(session)
    prepared, result = session.ratings
    for notice in (*prepared.notices, *(one.notice("left out") for one in result.dropped)):
        warn(notice.code, notice.rule, place=notice.place, value=notice.value, remedy=notice.remedy)
    return result


def _scorers(session: RunSession) -> ScorersResult:
    check_inputs(session)
    return train_scorers(session.context, session.prepared, session.models, session.checkpoints, session.generator.base)


def _base(session: RunSession) -> ArmFigures:
    arm_context = session.arm_context
    reset_lora(arm_context.generator.network, seed_of(session.context.recipe, "generator"))
    return arm_context.figures(BASE)


def _sft(session: RunSession, arm: Literal["sft", "control"]) -> SftResult:
    return train_sft(session.arm_context, arm)


def _ddpo(session: RunSession) -> DdpoResult:
    return train_ddpo(session.arm_context)


_WORK: Mapping[str, Callable[[RunSession], StageResult]] = {
    RATINGS: _ratings,
    STAGE: _scorers,
    BASE: _base,
    "control": partial(_sft, arm="control"),
    "sft": partial(_sft, arm="sft"),
    "ddpo": _ddpo,
}
