"""The stages of `toolkit run`. Each is imported when it begins, so a finished run imports no model library.

The rows are prepared before the first stage. Unsloth, which must be imported before transformers, is imported there.
"""

from collections.abc import Sequence
from pathlib import Path

from toolkit.evaluation.results import EvaluationResult
from toolkit.evaluation.stage_context import Context, DataAndImages
from toolkit.exporting.results import ExportResult
from toolkit.pipeline.run import Stages
from toolkit.recipe import Recipe
from toolkit.runfolder import Progress, RunFolder
from toolkit.training.results import DpoResult, GrpoResult, SftResult


def _prepare(recipe: Recipe, run: RunFolder, progress: Progress) -> DataAndImages:
    from toolkit.models import preload
    from toolkit.pipeline.prepare_data import prepare

    preload(recipe, run.path)
    return prepare(recipe, run, progress)


def _look(recipe: Recipe, run: RunFolder) -> DataAndImages:
    from toolkit.models import preload
    from toolkit.pipeline.prepare_data import look

    preload(recipe, run.path)
    return look(recipe, run)


def _sft(context: Context) -> SftResult:
    from toolkit.training.sft import train_sft

    return train_sft(context)


def _dpo(context: Context) -> DpoResult:
    from toolkit.training.dpo import train_dpo

    return train_dpo(context)


def _grpo(context: Context) -> GrpoResult:
    from toolkit.training.grpo import train_grpo

    return train_grpo(context)


def _evaluate(context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationResult:
    from toolkit.evaluation.evaluate import evaluate

    return evaluate(context, name, weights, earlier)


def _export(context: Context, *, out: Path | None = None, force: bool = False) -> ExportResult:
    from toolkit.exporting.export import export

    return export(context, out=out, force=force)


STAGES = Stages(_prepare, _look, _sft, _dpo, _grpo, _evaluate, _export)
"""The stages of `toolkit run`."""
