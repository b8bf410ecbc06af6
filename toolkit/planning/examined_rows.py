"""Tokens of the rows of a plan, and findings about these rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from huggingface_hub.errors import StrictDataclassError

from toolkit.data.loading import DataSplits
from toolkit.data.sample import Sample, with_row
from toolkit.data.sample_set import SampleSet, limit
from toolkit.errors import DataError, ImageError, MissingExtraError, ModelError, Problem, ToolkitError
from toolkit.images import ImageStore
from toolkit.models.lengths import processor_input_size
from toolkit.planning.architecture import Architecture
from toolkit.planning.findings import PlanFinding, from_error, warning
from toolkit.planning.tokens import COUNTED, TEMPLATE_FAULTS, Rows, Tokens, count_rows, longest_possible_row
from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class ExaminedRows:
    """Tokens of some rows. None: unknown, for the reason in ``unknown``."""

    tokens: Tokens | None = None
    findings: tuple[PlanFinding, ...] = ()
    unknown: str = ""


def training_rows(recipe: Recipe, data: DataSplits) -> SampleSet | None:
    """Return the training rows. None: nothing is trained."""
    return data.train if recipe.training else None


def evaluation_rows(recipe: Recipe, data: DataSplits) -> SampleSet | None:
    """Return the rows that are drawn for evaluation. None: nothing is evaluated."""
    section = recipe.evaluate
    if section is None:
        return None
    samples: SampleSet = getattr(data, section.split)
    return samples.take(limit(samples.rows, section.limit, recipe.run.seed, "evaluate"))


def examine_rows(
    recipe: Recipe, samples: SampleSet, images: ImageStore, model: Architecture | None, *, pairs: bool = False
) -> ExaminedRows:
    """Return the tokens of some samples, evenly spaced, and findings about rows that would end or change a run.

    ``pairs`` counts preferences, as ``count_rows`` does.
    """
    place = f"[data] {samples.origin.file}"
    chosen: Sequence[Sample] = samples[:: max(1, -(-len(samples) // COUNTED))]
    dropped: tuple[PlanFinding, ...] = ()
    try:
        if recipe.images.unreadable == "skip":
            usable = [sample for sample in chosen if _has_usable_images(sample, images)]
            dropped = tuple(_check_skipped(place, len(chosen) - len(usable), len(chosen)))
            chosen = usable
        tokens = count_rows(recipe, chosen, images, model, pairs=pairs) if chosen else None
    except (DataError, ImageError, MissingExtraError) as error:
        error = with_row(error, chosen) if isinstance(error, ImageError) else error
        # The run checks every row and reports all bad ones, so this finding is not certain.
        return ExaminedRows(findings=(from_error(error, place, certain=False),), unknown=str(error))
    except ModelError as error:
        found = (from_error(error, place),) if error.code in TEMPLATE_FAULTS else ()
        return ExaminedRows(findings=(*dropped, *found), unknown=str(error))
    except (ToolkitError, StrictDataclassError, ArithmeticError) as error:  # A corrupt config.json raises the last two.
        return ExaminedRows(findings=dropped, unknown=str(error))
    if tokens is None:
        return ExaminedRows(findings=dropped, unknown="none of the rows checked can be used")
    longest, prompt = (
        tuple(processor_input_size(ref, images) for ref in chosen[tokens.lengths.index(one)].images)
        for one in (tokens.longest, tokens.longest_prompt)
    )
    known = replace(tokens, rows=len(samples), longest_sizes=longest, longest_prompt_sizes=prompt)
    return ExaminedRows(known, dropped)


def _has_usable_images(sample: Sample, images: ImageStore) -> bool:
    try:
        for ref in sample.images:
            processor_input_size(ref, images)
    except ImageError:
        return False
    return True


_INSPECT = "`toolkit data inspect RECIPE` lists these images."


def _check_skipped(place: str, count: int, checked: int) -> Iterator[PlanFinding]:
    if count == checked:
        rule = f"at least one of the {checked} rows checked must have usable images"
        yield PlanFinding(Problem("plan.no_usable_rows", rule, place, 0, _INSPECT), certain=False)
    elif count:
        rule = f"{count} of {checked} rows checked have an unusable image and will be skipped"
        yield warning(Problem("plan.rows_skipped", rule, place, remedy=_INSPECT))


@dataclass(frozen=True, slots=True)
class CountedTokens:
    """The tokens of training and evaluation rows, findings about these rows, and why other facts are unknown."""

    trained: Tokens | None
    evaluated: Tokens | None
    pairs: Tokens | None
    findings: tuple[PlanFinding, ...]
    unknown: Mapping[str, str]


def count_tokens(recipe: Recipe, rows: Rows | ToolkitError, model: Architecture | None) -> CountedTokens:
    """Return the tokens of training and evaluation rows, or those of the longest possible row."""
    if not isinstance(rows, Rows):
        return _assume_longest_row(recipe, model)

    def examine(samples: SampleSet | None, *, pairs: bool = False) -> ExaminedRows:
        return examine_rows(recipe, samples, rows.images, model, pairs=pairs) if samples else ExaminedRows()

    evaluated, trained, pairs = examine(evaluation_rows(recipe, rows.data)), ExaminedRows(), ExaminedRows()
    trains = training_rows(recipe, rows.data)
    if trains is not None:
        trained = examine(trains)
        pairs = examine(trains, pairs=True) if recipe.dpo else pairs
    reasons = [examined.unknown for examined in (evaluated, trained, pairs) if examined.unknown]
    findings = dict.fromkeys((*evaluated.findings, *trained.findings, *pairs.findings))
    return CountedTokens(
        trained=evaluated.tokens if trains is None else trained.tokens,
        evaluated=evaluated.tokens,
        pairs=pairs.tokens,
        findings=tuple(findings),
        unknown={"tokens": reasons[0]} if reasons else {},
    )


def _assume_longest_row(recipe: Recipe, model: Architecture | None) -> CountedTokens:
    """Return the tokens of the longest possible row, because the rows cannot be read."""
    unknown = {"data": "the rows cannot be read: rows, tokens, steps"}
    longest = None
    if model is not None:
        try:
            longest = longest_possible_row(recipe, model)
        except ToolkitError as error:
            unknown["tokens"] = str(error)
    return CountedTokens(longest, None, None, (), unknown)
