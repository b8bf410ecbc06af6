"""The section of examples: which questions are shown, and what was answered before and after training."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolkit.data.sample import Answer, Sample
from toolkit.data.shapes import Shape
from toolkit.data.task import Task
from toolkit.errors import ToolkitError
from toolkit.identifiers import hidden_id
from toolkit.reporting.blocks import EmbeddedImage, Example, Examples, Reply, Section, Text
from toolkit.reporting.embedding import ImageBudget
from toolkit.reporting.evaluated_rows import EvaluatedRows
from toolkit.reporting.finished_run import FinishedRun, warn_of_code
from toolkit.runfolder import Record
from toolkit.scoring.statistics import ScoredAnswer
from toolkit.training.rewards import RewardTable, explain, recipe_rewards

EACH = 12
"""Worst cases, and further examples of each outcome and of changed ones."""

CANDIDATES = 2000
"""Rows that examples are chosen from. Scoring more would take minutes for some tasks."""

MAX_IMAGES = 4
"""Images of an example."""

MAX_TEXT, MAX_REASON = 4000, 300
"""Characters of a text, and of the reason of a reward."""

MAX_PROBABILITIES = 5
"""Most probable classes of a completion."""

RIGHT, PARTLY, WRONG, UNREADABLE = "right", "partly", "wrong", "unreadable"
"""Outcomes of a completion: score 1, between 0 and 1, score 0, and not parsed."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One candidate.

    Attributes:
        name: the id of the sample.
        outcome: the outcome of the last completion.
        score: its primary score. None: it does not apply.
        gained: the score minus that of the first evaluation. 0: there is only one.
        confidence: the probability of the most probable class, if it is wrong.
    """

    name: str
    outcome: str
    score: float | None
    gained: float
    confidence: float


def examples_section(run: FinishedRun, rows: EvaluatedRows, budget: ImageBudget, each: int = EACH) -> Section:
    """Return questions with their completions: the ``each`` worst cases, and as many of each outcome."""
    cases = _cases(rows)
    worst = _worst(cases)[:each]
    chosen = _choose(cases, worst, each)
    rewards = _rewards(run)
    builder = _Builder(rows, budget, rewards)
    places = {case.name: place for place, case in enumerate(worst, 1)}
    examples = tuple(builder.example(case, places.get(case.name, 0)) for case in chosen)
    blocks = [Text(_about(rows, cases, chosen))]
    last = run.evaluations.get(rows.last) or run.others.get(rows.last)
    if last is not None and last.agent_memory is None and (counted := last.summary.overall.n) != len(rows.ids):
        text = f"The evaluation has {counted:,} rows, but the file of its predictions has {len(rows.ids):,}."
        blocks.append(Text(f"{text} Do not rely on this section.", "warning"))
    if rows.reason:
        blocks.append(Text(f"Images and scores are missing: {rows.reason}.", "warning"))
    return Section("examples", "Examples", (*blocks, Examples(examples)))


def _cases(rows: EvaluatedRows) -> list[_Case]:
    """Return the candidates, which are evenly spaced over the evaluation."""
    names = rows.ids
    names = (
        [names[number * len(names) // CANDIDATES] for number in range(CANDIDATES)] if len(names) > CANDIDATES else names
    )
    labels = list(rows.lines)
    after = rows.scored(labels[-1], names)
    before = rows.scored(labels[0], names) if len(labels) > 1 else {}
    primary = rows.task.primary if rows.task else ""
    return [_case(name, rows.lines[labels[-1]][name], after.get(name), before.get(name), primary) for name in names]


def _case(name: str, line: Record, after: ScoredAnswer | None, before: ScoredAnswer | None, primary: str) -> _Case:
    if after is None:
        return _Case(name, UNREADABLE if line["problem"] else "answered", None, 0.0, 0.0)
    score = after.scores.get(primary)
    first = before.scores.get(primary) if before is not None else None
    gained = score - first if score is not None and first is not None else 0.0
    probabilities = after.probabilities or {}
    top = max(probabilities, key=lambda one: probabilities[one], default=None)
    wrong = top is not None and after.truth.get(top) is False
    return _Case(name, _outcome(after, score), score, gained, probabilities[top] if top is not None and wrong else 0.0)


def _outcome(row: ScoredAnswer, score: float | None) -> str:
    if row.problem is not None:
        return UNREADABLE
    if score is None:
        return "answered"
    return RIGHT if score == 1 else WRONG if score == 0 else PARTLY


def _worst(cases: Sequence[_Case]) -> list[_Case]:
    """Return the cases with the lowest scores. Among equal ones, those that lost most, then the most confident."""
    scored = [case for case in cases if case.score is not None and case.score < 1]
    return sorted(scored, key=lambda case: (case.score, case.gained, -case.confidence))


def _choose(cases: Sequence[_Case], worst: Sequence[_Case], each: int) -> list[_Case]:
    """Return the worst cases and some of each outcome, in the order of the evaluation."""
    wanted = {case.name for case in worst}
    outcomes = dict.fromkeys(case.outcome for case in cases)
    kinds = [[case for case in cases if case.outcome == outcome] for outcome in outcomes]
    for kind in (*kinds, [case for case in cases if case.gained]):
        spaced = [kind[number * len(kind) // each] for number in range(each)] if len(kind) > each else kind
        wanted |= {case.name for case in spaced}
    return [case for case in cases if case.name in wanted]


def _about(rows: EvaluatedRows, cases: Sequence[_Case], chosen: Sequence[_Case]) -> str:
    counts = Counter(case.outcome for case in cases)
    listed = ", ".join(f"{number:,} {outcome}" for outcome, number in counts.most_common())
    of = "" if len(cases) == len(rows.ids) else f" of {len(cases):,} evenly spaced rows"
    return (
        f"{len(chosen):,} of {len(rows.ids):,} questions are shown: the worst cases, and some of each outcome. They "
        f"are no random sample. Outcomes{of} ({rows.last}): {listed}. Right is score 1, wrong is 0, and changed is "
        "another score than in the first evaluation. Boxes, outlines and targets are solid lines for the reference and "
        "dashed lines for the completion. A point is a circle for the reference and a cross for the completion. Images "
        "are as the model sees them. Text that is burnt into an image is not hidden."
    )


def _rewards(run: FinishedRun) -> RewardTable | None:
    """Return the rewards of the recipe. None: the recipe or a custom reward cannot be read."""
    if run.recipe is None:
        return None
    try:
        return recipe_rewards(run.recipe)
    except ToolkitError as error:
        warn_of_code(run.folder, error)
        return None


@dataclass(frozen=True, slots=True)
class _Builder:
    rows: EvaluatedRows
    budget: ImageBudget
    rewards: RewardTable | None

    def example(self, case: _Case, worst: int) -> Example:
        rows, name = self.rows, case.name
        sample, line, task = rows.samples.get(name), rows.lines[rows.last][name], rows.task
        labels = [label for label in rows.lines if name in rows.lines[label]]
        question, reference = str(line.get("question") or ""), json.dumps(line.get("reference"), ensure_ascii=False)
        shapes: tuple[Shape, ...] = ()
        if sample is not None and task is not None:
            question, reference, shapes = task.question(sample), task.target(sample), _shapes(task, sample, None)
        return Example(
            name=hidden_id(name),
            place=sample.place.rpartition(", ")[2] if sample is not None else "",
            question=_cut(question),
            reference=_cut(reference),
            outcome=case.outcome,
            changed=case.gained != 0,
            worst=worst,
            images=tuple(self.images(sample)) if sample is not None else (),
            shapes=shapes,
            replies=tuple(self.reply(label, name) for label in labels),
        )

    def images(self, sample: Sample) -> Iterator[EmbeddedImage]:
        for ref in sample.images[:MAX_IMAGES]:
            yield self.budget.embed(ref, self.rows.images)
        if (more := len(sample.images) - MAX_IMAGES) > 0:
            yield EmbeddedImage("", reason=f"{more:,} further images are left out.")

    def reply(self, label: str, name: str) -> Reply:
        line, found = self.rows.lines[label][name], self.rows.answer(label, name)
        text, truncated = _cut(line["completion"]), bool(line["truncated"])
        if found is None or self.rows.task is None:
            return Reply(label, text, None, line["problem"], truncated)
        sample, answer = found
        task = self.rows.task
        return Reply(
            label=label,
            text=text,
            score=task.scores(sample, answer).get(task.primary),
            problem=answer.problem,
            truncated=truncated,
            rewards=_explained(sample, answer, self.rewards),
            probabilities=_most_probable(answer.probabilities or {}),
            shapes=_shapes(task, sample, answer),
        )


def _shapes(task: Task, sample: Sample, answer: Answer | None) -> tuple[Shape, ...]:
    """Return what a task draws. Nothing if the file of a mask cannot be read, because the rest is still of use."""
    try:
        return task.shapes(sample, answer)
    except ToolkitError:
        return ()


def _explained(sample: Sample, answer: Answer, table: RewardTable | None) -> Mapping[str, tuple[float | None, str]]:
    if table is None:
        return {}
    try:
        return {one.reward: (one.value, _cut(one.why, MAX_REASON)) for one in explain(sample, answer, table)}
    except ToolkitError as error:
        return {"not computed": (None, error.rule)}


def _most_probable(probabilities: Mapping[str, float]) -> Mapping[str, float]:
    ordered = sorted(probabilities.items(), key=lambda pair: -pair[1])
    return dict(ordered[:MAX_PROBABILITIES])


def _cut(text: str, most: int = MAX_TEXT) -> str:
    """Return a text of at most ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters left out)"
