"""Custom metrics of a recipe (``evaluate.metrics``): functions in a Python file, such as scores by another model.

A function gets all samples and answers of an evaluation at once, so that it can work in batches. Its results are stored
in the run, because the same answers are scored again for comparisons with later evaluations.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from numbers import Real
from pathlib import Path
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.errors import MetricError, Problem
from toolkit.identifiers import Description, without_names
from toolkit.recipe.user_code import UserCode, load_user_code, raised_at
from toolkit.runfolder import from_json, read_json, write_json

Answered = Sequence[tuple[Sample, Answer]]

ROUNDING = 1e-6
"""A value may leave the range from 0 to 1 by this much, as sums of 32-bit numbers do."""

_SHAPE = "def my_metric(samples, answers): return [0.0 to 1.0, or None, for each answer]"


@dataclass(frozen=True, slots=True)
class MetricValues:
    """The values of one function.

    Attributes:
        each: metric -> a value in [0, 1] of each answer, or None if the metric does not apply to it.
        whole: metric -> a value in [0, 1] of all answers together.
    """

    each: Mapping[str, list[float | None]]
    whole: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CustomMetrics:
    """The custom metrics of a recipe.

    Attributes:
        entries: ``file.py:function`` of each.
        folder: where their values are stored.
        taken: names of the task's scores, which a metric must not have.
    """

    entries: tuple[str, ...]
    folder: Path
    taken: frozenset[str] = frozenset()

    def values(self, answers: Answered) -> MetricValues:
        """Return the values of all functions, from the run if the same answers were scored before.

        Raises:
            MetricError: A function is missing, raised an exception, or returned something else than values.
        """
        each: dict[str, list[float | None]] = {}
        whole: dict[str, float] = {}
        for entry in self.entries:
            found = self._stored(entry, answers)
            if taken := sorted({*found.each, *found.whole} & {*each, *whole, *self.taken}):
                rule = "the name of a custom metric must not be that of another metric"
                raise MetricError("evaluate.metric_name_taken", rule, place=entry, value=taken, remedy="Rename it.")
            each |= found.each
            whole |= found.whole
        return MetricValues(each, whole)

    def _stored(self, entry: str, answers: Answered) -> MetricValues:
        key = blake2b(code_digest([entry]).encode(), digest_size=12)
        lines = [[entry, sample.id, dict(sample.reference), answer.text] for sample, answer in answers]
        key.update(json.dumps(lines, default=str).encode())
        file = self.folder / f"{key.hexdigest()}.json"
        try:
            return from_json(MetricValues, read_json(file))
        except (FileNotFoundError, ValueError):
            found = _compute(entry, answers)
        write_json(file, {"each": found.each, "whole": found.whole}, private=True)
        return found


def code_digest(entries: Iterable[str]) -> str:
    """Return a digest of the files of custom metrics and of the Python files beside them, which they can import.

    Raises:
        MetricError: A file is missing.
    """
    digest = blake2b(digest_size=12)
    for entry in entries:
        source = Path(entry.rpartition(":")[0])
        if not source.is_file():
            load_user_code(entry, Path(), _METRIC)  # raises the error
        for code in sorted(source.parent.glob("*.py")):
            digest.update(f"{code.name} ".encode() + code.read_bytes())
    return digest.hexdigest()


def load_metric(entry: str) -> Callable[[Sequence[Sample], Sequence[Answer]], Any]:
    """Return the function that ``file.py:function`` names.

    Raises:
        MetricError: As ``load_user_code``, or it is no function of two arguments.
    """
    function = load_user_code(entry, Path(), _METRIC)
    if not callable(function):
        rule = "a custom metric must be a function"
        raise MetricError("evaluate.metric_not_a_function", rule, place=entry, remedy=f"Write: {_SHAPE}.")
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:  # ValueError: a built-in function without a signature
        rule, remedy = "a custom metric must take two positional arguments, samples and answers", f"Write: {_SHAPE}."
        raise MetricError("evaluate.metric_signature_wrong", rule, place=entry, value=error, remedy=remedy) from error
    return function


def _compute(entry: str, answers: Answered) -> MetricValues:
    function = load_metric(entry)
    try:
        returned = function([sample for sample, _ in answers], [answer for _, answer in answers])
    except Exception as error:  # Any exception of the user's file is reported with its line.
        rule, remedy = "a custom metric must not raise an exception", f"Correct {raised_at(error)}."
        value = Description(f"{type(error).__name__}: {without_names(str(error))}")
        raise MetricError("evaluate.metric_raised", rule, place=entry, value=value, remedy=remedy) from error
    return _read(entry, returned, len(answers))


def _read(entry: str, returned: Any, count: int) -> MetricValues:
    """Return values from a list for the function itself, or from a mapping of names to lists or numbers."""
    named = returned if isinstance(returned, Mapping) else {entry.rpartition(":")[2]: returned}
    if not named or not all(isinstance(name, str) and name.strip() for name in named):
        rule = "an object of custom metrics must have at least one metric, and names that are texts"
        raise MetricError(
            "evaluate.metric_name_missing", rule, place=entry, value=list(named), remedy="Name each metric."
        )
    each, whole = {}, {}
    for name, value in named.items():
        place = f"{entry}: {name}"
        if _is_list(value):
            each[name] = [None if one is None else _unit(one, place) for one in value]
            if len(value) != count:
                rule = f"a custom metric must return a value for each of {count} answers"
                raise MetricError(
                    "evaluate.metric_count", rule, place=place, value=len(value), remedy=f"Write: {_SHAPE}."
                )
        else:
            whole[name] = _unit(value, place)
    return MetricValues(each, whole)


def _is_list(value: Any) -> bool:
    """Return whether a value is a sequence of values, such as a list, an array or a tensor with an axis."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__getitem__"):
        return False
    try:
        return len(value) >= 0
    except TypeError:  # an array or tensor without an axis has the method, but no length
        return False


def _unit(value: Any, place: str) -> float:
    number = _number(value)
    if number is None:
        rule, remedy = "a value of a custom metric must be a number, or None for an answer", f"Write: {_SHAPE}."
        raise MetricError("evaluate.metric_not_a_number", rule, place=place, value=value, remedy=remedy)
    if not -ROUNDING <= number <= 1 + ROUNDING:
        rule = "a custom metric must have values from 0 to 1"
        remedy = "Divide values of another scale by their maximum."
        raise MetricError("evaluate.metric_out_of_range", rule, place=place, value=value, remedy=remedy)
    return min(1.0, max(0.0, number))


def _number(value: Any) -> float | None:
    """Return a number, or that of an array or tensor with one value. NaN is a number outside every range."""
    if hasattr(value, "item") and not isinstance(value, Real):
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # NumPy and torch: several values
            return None
    return float(value) if isinstance(value, Real) else None


def _error(problem: Problem) -> MetricError:
    return MetricError(problem.code, problem.rule, place=problem.place, value=problem.value, remedy=problem.remedy)


_METRIC = UserCode("evaluate", "function", "a custom metric", "my_metrics.py:my_metric", _error, inspect.isfunction)
