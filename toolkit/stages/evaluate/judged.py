"""Written answers read again and judged: those of this evaluation, of earlier ones, and of the baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.errors import RunError
from toolkit.metrics import Judged
from toolkit.run import RunFolder, read_json, write_json
from toolkit.sample import Answer, Sample
from toolkit.stages.answers import Reply, judge, read_reply
from toolkit.stages.context import Context
from toolkit.stages.evaluate.ask import answers_file, known_replies
from toolkit.stages.evaluate.questions import OWN, REFERENCE, Questions
from toolkit.stages.prompts import Prompts
from toolkit.stages.rollout import rollout

Rows = list[Judged]
Answered = list[tuple[Sample, Answer]]

BASELINE = "baseline"
"""The majority baseline's name in records."""


def read_way(questions: Questions, way: str, file: Path) -> Answered:
    """Every question of a way as it was asked and its answer, parsed anew; of a rollout the memories come back too.

    Raises:
        RunError: an answer is missing.
    """
    known = _complete(file, [sample.id for sample in questions.asked(way)])
    if way != OWN:
        return [(sample, read_reply(questions.task, sample, known[sample.id])) for sample in questions.asked(way)]
    turns = rollout(questions.task, questions.samples, questions.chains, known, lambda _: [], len(questions.samples))
    return [(turn.question, turn.answer) for batch in turns for turn in batch]


def judge_predictions(context: Context, prompts: Prompts, samples: Sequence[Sample], file: Path) -> Rows:
    """The written completions, parsed and judged anew: one row a sample, in the samples' order."""
    known, task = _complete(file, [sample.id for sample in samples]), prompts.task
    by = context.recipe.results_by
    return [judge(task, sample, read_reply(task, sample, known[sample.id]), by) for sample in samples]


def earlier_rows(context: Context, questions: Questions, name: str) -> dict[str, Rows]:
    """Way -> the rows of an earlier evaluation, for the ways that it has too."""
    files = _answers_of(context.run, context.run.record(f"evaluate-{name}"))
    return {
        way: questions.judge(read_way(questions, way, files[way]), context.recipe)
        for way in questions.ways
        if way in files
    }


def baseline_rows(context: Context, questions: Questions) -> dict[str, Rows]:
    """Label -> the rows of a baseline, judged as a model's would be; the majority answer of the training rows first."""
    completions = _majority(context, questions)
    found = {BASELINE: [completions[sample.id] for sample in questions.samples]}
    for label, complete in (questions.carried.baselines if questions.carried else {}).items():
        found[label] = [complete(sample) for sample in questions.samples]
    task = questions.task
    return {
        label: questions.judge(
            [(sample, task.parse(text, sample)) for sample, text in zip(questions.samples, texts, strict=True)],
            context.recipe,
        )
        for label, texts in found.items()
    }


def _answers_of(run: RunFolder, record: Mapping[str, object]) -> dict[str, Path]:
    """Way -> the file of its answers, of an evaluation that has finished."""
    main = run.path / str(record["predictions"])
    memory = record.get("memory")
    ways = memory["ways"] if isinstance(memory, dict) else ()
    return {REFERENCE: main, **{way: main.with_name(answers_file(way)) for way in ways if way != REFERENCE}}


def _complete(file: Path, ids: Sequence[str]) -> dict[str, Reply]:
    known = known_replies(file)
    if missing := [name for name in ids if name not in known]:
        raise RunError(
            "the answers of a finished evaluation must be there",
            place=file,
            value=f"{len(missing):,} of {len(ids):,} are missing, the first {missing[0]}",
            remedy="Bring the file back, or begin anew with --fresh (the old folder is kept under another name).",
        )
    return known


def _majority(context: Context, questions: Questions) -> dict[str, str]:
    """Sample id -> the majority answer; kept in the run, since finding it reads every training row."""
    file = context.run.stage_folder(BASELINE) / f"{context.recipe.evaluation.split}.json"
    known: dict[str, str] = read_json(file)["completions"] if file.is_file() else {}
    if any(sample.id not in known for sample in questions.samples):
        complete = questions.task.baseline(context.data.train)
        known = {sample.id: complete(sample) for sample in questions.samples}
        write_json(file, {"completions": known})
    return known
