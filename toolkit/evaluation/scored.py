"""Parse and score saved predictions: those of this evaluation, of earlier ones, and of the baselines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.sample import Answer, Sample
from toolkit.errors import RunError
from toolkit.evaluation.answers import Reply, judge, read_reply
from toolkit.evaluation.context import Context
from toolkit.evaluation.episodes import rollout
from toolkit.evaluation.generate_answers import answers_file, known_replies
from toolkit.evaluation.prompts import OWN, REFERENCE, EvaluationSet
from toolkit.evaluation.results import BASELINE, EVALUATE, EvaluationResult
from toolkit.models.prompts import Prompts
from toolkit.runfolder import RunFolder, read_json, write_json
from toolkit.scoring.statistics import ScoredAnswer

Rows = list[ScoredAnswer]
Answered = list[tuple[Sample, Answer]]


def read_mode(questions: EvaluationSet, mode: str, file: Path) -> Answered:
    """Return every sample of a mode with its agent memory, and its parsed answer. A rollout is replayed.

    Raises:
        RunError: a prediction is missing.
    """
    known = _complete(file, [sample.id for sample in questions.samples_of(mode)])
    if mode != OWN:
        return [(sample, read_reply(questions.task, sample, known[sample.id])) for sample in questions.samples_of(mode)]
    turns = rollout(questions.task, questions.samples, questions.episodes, known, lambda _: [], len(questions.samples))
    return [(turn.question, turn.answer) for batch in turns for turn in batch]


def judge_predictions(context: Context, prompts: Prompts, samples: Sequence[Sample], file: Path) -> Rows:
    """Parse and score saved completions. Return one row per sample, in order."""
    known, task = _complete(file, [sample.id for sample in samples]), prompts.task
    by = context.recipe.results_by
    return [judge(task, sample, read_reply(task, sample, known[sample.id]), by) for sample in samples]


def earlier_rows(context: Context, questions: EvaluationSet, name: str) -> dict[str, Rows]:
    """Return mode -> the rows of an earlier evaluation, for the common modes."""
    files = _answers_of(context.run, context.run.result(EVALUATE + name, EvaluationResult))
    return {
        mode: questions.judge(read_mode(questions, mode, files[mode]), context.recipe)
        for mode in questions.modes
        if mode in files
    }


@dataclass(frozen=True, slots=True)
class Baselines:
    """The rows of the baselines.

    Attributes:
        rows: label -> rows, with the majority baseline first.
        own: score -> the rows of its own majority baseline.
    """

    rows: Mapping[str, Rows]
    own: Mapping[str, Rows]

    def of(self, score: str) -> dict[str, Rows]:
        """Return label -> the rows of the baselines of a score."""
        return {**self.rows, BASELINE: self.own.get(score, self.rows[BASELINE])}


def baseline_rows(context: Context, questions: EvaluationSet) -> Baselines:
    """Return the baselines, scored like a model's completions."""

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


def _answers_of(run: RunFolder, result: EvaluationResult) -> dict[str, Path]:
    """Return mode -> the predictions file of a finished evaluation."""
    main = run.path / result.predictions
    modes = result.agent_memory.modes if result.agent_memory else ()
    return {REFERENCE: main, **{mode: main.with_name(answers_file(mode)) for mode in modes if mode != REFERENCE}}


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


def _majority(context: Context, questions: EvaluationSet) -> dict[str, dict[str, str]]:
    """Return score -> sample id -> the majority answer, with the primary score first.

    They are saved in the run, because computing them reads every training row.
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
