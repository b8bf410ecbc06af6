"""Evaluation: greedy answers to held-out questions, judged, with intervals, baselines and differences.

Where answers carry a memory (``Task.carried``) every question is asked in several ways: with the reference's memory,
with the model's own, and with none. Each way has its own file of answers, and all are judged alike.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from toolkit.evaluation.context import Context, EvaluationRecord
from toolkit.evaluation.generate import weights_seen
from toolkit.evaluation.generate_answers import PARTIAL, PREDICTIONS, answers_file, ask_open
from toolkit.evaluation.output_files import write_outputs
from toolkit.evaluation.prompts import Questions, held_out
from toolkit.evaluation.record import CONFUSION, make_record
from toolkit.evaluation.scored import Rows, baseline_rows, earlier_rows, judge_predictions, read_way
from toolkit.models import Backend

__all__ = ["CONFUSION", "PARTIAL", "PREDICTIONS", "evaluate", "held_out", "judge_predictions"]


def evaluate(
    context: Context, name: str, weights: Path | None, earlier: Sequence[str], backend: Backend | None = None
) -> EvaluationRecord:
    """Ask every held-out question and judge the answers; see ``context.EvaluateStage``.

    An interrupted evaluation goes on after the last answer that was written. ``backend``: who loads and asks the model;
    default: the recipe's.
    """
    questions = Questions.of(context)
    folder = context.run.stage_folder(f"evaluate-{name}")
    digest = _identity(context, weights)
    partial = {way: folder / answers_file(way, digest) for way in questions.ways}
    ask_open(context, name, questions, partial, weights, backend)
    answers = {way: read_way(questions, way, file) for way, file in partial.items()}
    rows: dict[str, Rows] = {way: questions.judge(found, context.recipe) for way, found in answers.items()}
    for way, file in partial.items():
        file.replace(folder / answers_file(way))
    for other in folder.glob(PARTIAL.format("*")):
        other.unlink()
    before = {other: earlier_rows(context, questions, other) for other in earlier}
    record = make_record(context, name, questions, rows, (baseline_rows(context, questions), before))
    if questions.carried:
        write_outputs(folder, questions, answers, record)
    return record


def _identity(context: Context, weights: Path | None) -> str:
    """A digest of the weights' files, the rows, the prompt, the pictures' policy and how answers are generated."""
    recipe = context.recipe
    section = recipe.evaluation
    how = (recipe.model.name, recipe.model.precision, section.max_completion_tokens, recipe.prompt.model_dump_json())
    asked = (context.data.fingerprint, section.split, section.max_tasks, context.images.policy.key)
    return blake2b(repr((weights_seen(weights), how, asked)).encode(), digest_size=6).hexdigest()
