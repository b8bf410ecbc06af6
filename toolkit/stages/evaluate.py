"""Evaluation: greedy answers to held-out questions, judged, with intervals, the majority baseline and differences."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toolkit.backends import Backend, choose_backend
from toolkit.backends.base import Completion, Policy, Sampling
from toolkit.errors import DataError, RunError
from toolkit.metrics import Comparison, Judged, compare, draw_confusion, share, summarise
from toolkit.run import Record, append_line, cut_torn_line, read_json, read_lines, write_json
from toolkit.sample import Answer, Sample
from toolkit.stages.answers import judge, read_answer
from toolkit.stages.context import Context, EvaluationRecord, ScoreRecord
from toolkit.stages.lengths import check_lengths
from toolkit.stages.prompts import Prompts
from toolkit.tasks.loading import SampleSet
from toolkit.tasks.loading.samples import limit

log = logging.getLogger(__name__)
PREDICTIONS = "predictions.jsonl"
CONFUSION = "confusion.png"
PARTIAL = "predictions.{}.partial.jsonl"
"""Its name says what is asked and how: answers of another model, prompt or limit are not taken for these."""


def evaluate(context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationRecord:
    """Ask every held-out question and judge the answers; see ``context.EvaluateStage``.

    An interrupted evaluation goes on after the last answer that was written.
    """
    recipe, section = context.recipe, context.recipe.evaluation
    samples = held_out(context)
    folder = context.run.stage_folder(f"evaluate-{name}")
    prompts = Prompts.of(recipe, context.images)
    partial = folder / PARTIAL.format(_identity(context, weights))
    cut_torn_line(partial)
    done = {line["id"]: line for line in read_lines(partial)}
    waiting = [sample for sample in samples if sample.id not in done]
    if waiting:
        backend = choose_backend(recipe.model)
        policy = backend.load(recipe, weights, trainable=False)
        most = recipe.model.max_tokens
        check_lengths(policy.processor, prompts, waiting, most, section.max_completion_tokens, tell=context.no_step_yet)
        for sample, completion in _ask(context, name, backend, policy, prompts, waiting):
            answer = read_answer(prompts.task, sample, completion)
            append_line(partial, {"split": section.split, **_prediction(sample, answer)})
    rows = judge_predictions(context, prompts, samples, partial)
    partial.replace(folder / PREDICTIONS)
    for other in folder.glob(PARTIAL.format("*")):
        other.unlink()
    return _record(context, name, rows, earlier, prompts)


def _identity(context: Context, weights: Path | None) -> str:
    """A digest of the weights' files, the rows, the prompt, the pictures' policy and how answers are generated."""
    recipe = context.recipe
    files = sorted(weights.iterdir()) if weights else []
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    section = recipe.evaluation
    how = (recipe.model.name, recipe.model.precision, section.max_completion_tokens, recipe.prompt.model_dump_json())
    asked = (context.data.fingerprint, section.split, context.images.policy.key)
    return blake2b(repr((str(weights), seen, how, asked)).encode(), digest_size=6).hexdigest()


def held_out(context: Context) -> Sequence[Sample]:
    """The split that the recipe evaluates on.

    Raises:
        DataError: it has no rows.
    """
    section = context.recipe.evaluation
    samples: SampleSet = getattr(context.data, section.split)
    if section.limit is not None:
        samples = samples.take(limit(samples.rows, section.limit, context.recipe.run.seed, "evaluate"))
    if not len(samples):
        raise DataError(
            "an evaluation must have questions",
            place=f"[evaluate] split = {section.split!r}",
            value="no rows",
            remedy="Name a file for it in [data], or give it a share in [data.split].",
        )
    return samples


def judge_predictions(context: Context, prompts: Prompts, samples: Sequence[Sample], file: Path) -> list[Judged]:
    """The written completions, parsed and judged anew: one row a sample, in the samples' order."""
    lines = {line["id"]: line for line in read_lines(file)}
    if missing := [sample.id for sample in samples if sample.id not in lines]:
        raise RunError(
            "the answers of a finished evaluation must be there",
            place=file,
            value=f"{len(missing):,} of {len(samples):,} are missing, the first {missing[0]}",
            remedy="Bring the file back, or begin anew with --fresh (the old folder is kept under another name).",
        )
    rows = []
    for sample in samples:
        line = lines[sample.id]
        answer = read_answer(prompts.task, sample, Completion(line["completion"], 0, line["truncated"]))
        rows.append(judge(prompts.task, sample, answer, context.recipe.results_by))
    return rows


def _ask(
    context: Context, name: str, backend: Backend, policy: Policy, prompts: Prompts, samples: Sequence[Sample]
) -> Iterator[tuple[Sample, Completion]]:
    section = context.recipe.evaluation
    sampling = Sampling(section.max_completion_tokens)
    for start in range(0, len(samples), section.batch_size):
        batch = samples[start : start + section.batch_size]
        groups = backend.generate(policy, [prompts.row(sample) for sample in batch], sampling)
        for sample, group in zip(batch, groups, strict=True):
            yield sample, group[0]
        stage = f"evaluate-{name}"
        context.progress(stage, start + len(batch), len(samples), "")
        if start + len(batch) < len(samples):
            context.stop.check(f"{stage} is saved after {start + len(batch)} of {len(samples)} questions")


def _prediction(sample: Sample, answer: Answer) -> Record:
    return {
        "id": sample.id,
        "group": sample.group,
        "question": sample.fields.get("question"),
        "reference": dict(sample.reference),
        "completion": answer.text,
        "answer": {key: value for key, value in answer.values.items() if _is_plain(value)},
        "problem": answer.problem,
        "truncated": answer.truncated,
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _record(
    context: Context, name: str, rows: list[Judged], earlier: Sequence[str], prompts: Prompts
) -> EvaluationRecord:
    recipe, score = context.recipe, prompts.task.primary
    section, seed = recipe.evaluation, recipe.run.seed
    others = {"baseline": _baseline_rows(context, prompts)}
    others |= {other: _earlier_rows(context, prompts, other) for other in earlier}
    summary = summarise(rows, recipe.results_by, section.bootstrap, seed, positive=recipe.positive)
    if summary.confusion.labels:
        draw_confusion(summary.confusion, context.run.stage_folder(f"evaluate-{name}") / CONFUSION, f"{name}: answers")
    _warn(name, summary.overall.truncated.value, summary.overall.unreadable.value)
    return {
        "split": section.split,
        "score": score,
        **_score_record(context, score, rows, others),
        "also": {name: _score_record(context, name, rows, others) for name in _applying(prompts.task.also, rows)},
        "summary": summary.to_dict(),
        "pictures": context.count_pictures(f"evaluate-{name}"),
        "predictions": f"stages/evaluate-{name}/{PREDICTIONS}",
    }


def _applying(names: Sequence[str], rows: Sequence[Judged]) -> list[str]:
    """The scores that apply to some of the questions."""
    return [name for name in names if any(row.scores[name] is not None for row in rows)]


def _score_record(context: Context, score: str, rows: list[Judged], others: Mapping[str, list[Judged]]) -> ScoreRecord:
    resamples, seed = context.recipe.evaluation.bootstrap, context.recipe.run.seed
    return {
        "value": asdict(_share(rows, score, resamples, seed)),
        "baseline": asdict(_share(others["baseline"], score, resamples, seed)),
        "differences": {
            other: _paired(compare(before, rows, score, resamples, seed)) for other, before in others.items()
        },
    }


def _paired(found: Comparison) -> Record:
    return {
        **asdict(found.paired),
        "clear": found.paired.clear,
        "only_before": found.only_before,
        "only_after": found.only_after,
    }


def _baseline_rows(context: Context, prompts: Prompts) -> list[Judged]:
    """The majority answer of the training rows, judged as a model's would be."""
    task, samples, by = prompts.task, held_out(context), context.recipe.results_by
    completions = _baseline(context, prompts, samples)
    return [judge(task, sample, task.parse(completions[sample.id], sample), by) for sample in samples]


def _baseline(context: Context, prompts: Prompts, samples: Sequence[Sample]) -> dict[str, str]:
    """Sample id -> the baseline's completion; kept in the run, since finding it reads every training row."""
    file = context.run.stage_folder("baseline") / f"{context.recipe.evaluation.split}.json"
    known: dict[str, str] = read_json(file)["completions"] if file.is_file() else {}
    if any(sample.id not in known for sample in samples):
        complete = prompts.task.baseline(context.data.train)
        known = {sample.id: complete(sample) for sample in samples}
        write_json(file, {"completions": known})
    return known


def _earlier_rows(context: Context, prompts: Prompts, name: str) -> list[Judged]:
    file = context.run.path / context.run.record(f"evaluate-{name}")["predictions"]
    return judge_predictions(context, prompts, held_out(context), file)


def _share(rows: Sequence[Judged], score: str, resamples: int, seed: int) -> Any:
    judged = [(row.scores[score], row.group) for row in rows if row.scores[score] is not None]
    return share([value for value, _ in judged if value is not None], [group for _, group in judged], resamples, seed)


def _warn(name: str, truncated: float | None, unreadable: float | None) -> None:
    for what, value in (("ran into the token limit", truncated), ("could not be read", unreadable)):
        if value:
            expected = " (the format is not trained yet)" if name == "before" else ""
            level = logging.INFO if expected else logging.WARNING
            log.log(level, "evaluate-%s: %.0f%% of the answers %s%s", name, 100 * value, what, expected)
