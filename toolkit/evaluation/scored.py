"""Written answers read again and judged: those of this evaluation, of earlier ones, and of the baselines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.sample import Answer, Sample
from toolkit.errors import RunError
from toolkit.evaluation.answers import Reply, judge, read_reply
from toolkit.evaluation.context import Context
from toolkit.evaluation.episodes import rollout
from toolkit.evaluation.generate_answers import answers_file, known_replies
from toolkit.evaluation.prompts import OWN, REFERENCE, Questions
from toolkit.models.prompts import Prompts
from toolkit.runfolder import RunFolder, read_json, write_json
from toolkit.scoring.statistics import ScoredAnswer

Rows = list[ScoredAnswer]
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


@dataclass(frozen=True, slots=True)
class Baselines:
    """Label -> rows, the majority baseline first; ``own``: score -> the rows of its own majority baseline."""

    rows: Mapping[str, Rows]
    own: Mapping[str, Rows]

    def of(self, score: str) -> dict[str, Rows]:
        """Label -> the rows that a score is set against."""
        return {**self.rows, BASELINE: self.own.get(score, self.rows[BASELINE])}


def baseline_rows(context: Context, questions: Questions) -> Baselines:
    """The baselines, judged as a model's answers would be."""

    samples, task = questions.samples, questions.task

    def judged(texts: Iterable[str]) -> Rows:
        answers = [(sample, task.parse(text, sample)) for sample, text in zip(samples, texts, strict=True)]
        return questions.judge(answers, context.recipe)

    majority = {
        score: judged(known[sample.id] for sample in samples) for score, known in _majority(context, questions).items()
    }
    rows = {BASELINE: majority.pop(task.primary)}
    for label, complete in (questions.carried.baselines if questions.carried else {}).items():
        rows[label] = judged(map(complete, samples))
    return Baselines(rows, majority)


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
            "evaluate.answers_missing",
            "the file must have all answers of a finished evaluation",
            place=file,
            value=f"{len(missing):,} of {len(ids):,} are missing, the first is {missing[0]}",
            remedy="Restore the file, or start again with --fresh (the old folder is kept under another name).",
        )
    return known


def _majority(context: Context, questions: Questions) -> dict[str, dict[str, str]]:
    """Score -> sample id -> the majority answer, the primary score first.

    They are kept in the run, since finding them reads every training row.
    """
    file = context.run.stage_folder(BASELINE) / f"{context.recipe.evaluation.split}.json"
    task = questions.task
    wanted = {task.primary: task.baseline, **task.baselines}
    known: dict[str, dict[str, str]] = read_json(file).get("scores", {}) if file.is_file() else {}
    if known.keys() != wanted.keys() or any(sample.id not in known[task.primary] for sample in questions.samples):
        found = {score: baseline(context.data.train) for score, baseline in wanted.items()}
        known = {score: {one.id: complete(one) for one in questions.samples} for score, complete in found.items()}
        write_json(file, {"scores": known})
    return {score: known[score] for score in wanted}
