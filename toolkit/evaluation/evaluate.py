"""Evaluate a model with greedy decoding on a held-out split: scores, intervals, baselines and differences.

A task with agent memory (``Task.carried``) is evaluated in several modes: with the reference's memory, the model's own,
and none. Each mode has its own file of predictions, and all are scored in the same way.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from toolkit.evaluation.context import Context
from toolkit.evaluation.generate import weights_identity
from toolkit.evaluation.generate_answers import PARTIAL, PREDICTIONS, answers_file, generate_missing
from toolkit.evaluation.output_files import write_outputs
from toolkit.evaluation.prompts import EvaluationSet, held_out
from toolkit.evaluation.record import CONFUSION, make_result
from toolkit.evaluation.results import EVALUATE, EvaluationResult
from toolkit.evaluation.scored import Rows, baseline_rows, earlier_rows, judge_predictions, read_mode
from toolkit.models import Backend

__all__ = ["CONFUSION", "PARTIAL", "PREDICTIONS", "evaluate", "held_out", "judge_predictions"]


def evaluate(
    context: Context, name: str, weights: Path | None, earlier: Sequence[str], backend: Backend | None = None
) -> EvaluationResult:
    """Evaluate weights on the held-out split. Its files are in ``stages/evaluate-NAME``.

    An interrupted evaluation resumes after the last saved prediction.

    Args:
        context: the run.
        name: the name of the evaluation.
        weights: the weights. None: the base model.
        earlier: earlier evaluations to compare with.
        backend: loads the model. Default: that of the recipe.
    """
    questions = EvaluationSet.of(context)
    folder = context.run.stage_folder(EVALUATE + name)
    digest = _identity(context, weights)
    partial = {mode: folder / answers_file(mode, digest) for mode in questions.modes}
    generate_missing(context, name, questions, partial, weights, backend)
    answers = {mode: read_mode(questions, mode, file) for mode, file in partial.items()}
    rows: dict[str, Rows] = {mode: questions.judge(found, context.recipe) for mode, found in answers.items()}
    for mode, file in partial.items():
        file.replace(folder / answers_file(mode))
    for other in folder.glob(PARTIAL.format("*")):
        other.unlink()
    before = {other: earlier_rows(context, questions, other) for other in earlier}
    result = make_result(context, name, questions, rows, (baseline_rows(context, questions), before))
    if questions.carried:
        write_outputs(folder, questions, answers, result)
    return result


def _identity(context: Context, weights: Path | None) -> str:
    """Return a digest of the weights' files, the rows, the prompt, the image policy and the generation settings."""
    recipe = context.recipe
    section = recipe.evaluation
    how = (recipe.model.name, recipe.model.precision, section.max_completion_tokens, recipe.prompt.model_dump_json())
    asked = (context.data.fingerprint, section.split, section.max_tasks, context.images.policy.key)
    return blake2b(repr((weights_identity(weights), how, asked)).encode(), digest_size=6).hexdigest()
