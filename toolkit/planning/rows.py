"""Which rows a plan looks at, and what is wrong with those that cannot be shown to the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from huggingface_hub.errors import StrictDataclassError

from toolkit.data.loading import DataSplits, SampleSet
from toolkit.data.loading.sample_set import limit
from toolkit.data.sample import Sample
from toolkit.errors import DataError, ImageError, MissingExtraError, Problem, ToolkitError
from toolkit.images import ImageStore
from toolkit.models.lengths import processor_input_size
from toolkit.planning.architecture import Architecture
from toolkit.planning.findings import Finding, from_error, warning
from toolkit.planning.tokens import COUNTED, Tokens, count_rows
from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Looked:
    """Tokens of some rows; None: they cannot be told, for the reason in ``unknown``."""

    tokens: Tokens | None = None
    findings: tuple[Finding, ...] = ()
    unknown: str = ""


def rows_to_train(recipe: Recipe, data: DataSplits) -> SampleSet | None:
    """The rows that training uses; None: nothing is trained."""
    return data.train if recipe.sft or recipe.grpo else None


def rows_to_ask(recipe: Recipe, data: DataSplits) -> SampleSet | None:
    """The rows that are drawn for the evaluation; None: nothing is evaluated."""
    section = recipe.evaluate
    if section is None:
        return None
    samples: SampleSet = getattr(data, section.split)
    return samples.take(limit(samples.rows, section.limit, recipe.run.seed, "evaluate"))


def look_at(recipe: Recipe, samples: SampleSet, images: ImageStore, model: Architecture | None) -> Looked:
    """Tokens of some of the samples, evenly spread, and what in them ends or changes a run."""
    place = f"[data] {samples.source.file}"
    chosen: Sequence[Sample] = samples[:: max(1, -(-len(samples) // COUNTED))]
    left_out: tuple[Finding, ...] = ()
    try:
        if recipe.images.unreadable == "skip":
            shown = [sample for sample in chosen if _can_be_shown(sample, images)]
            left_out = tuple(_describe_left_out(place, len(chosen) - len(shown), len(chosen)))
            chosen = shown
        tokens = count_rows(recipe, chosen, images, model) if chosen else None
    except (
        DataError,
        ImageError,
        MissingExtraError,
    ) as error:  # not certain: the run looks at every row, and names all that are bad
        return Looked(findings=(from_error(error, place, certain=False),), unknown=str(error))
    except (
        ToolkitError,
        StrictDataclassError,
        ArithmeticError,
    ) as error:  # the latter: the model's damaged config.json
        return Looked(findings=left_out, unknown=str(error))
    if tokens is None:
        return Looked(findings=left_out, unknown="no row that was looked at can be used")
    longest, prompt = (
        tuple(processor_input_size(ref, images) for ref in chosen[tokens.lengths.index(one)].images)
        for one in (tokens.longest, tokens.longest_prompt)
    )
    known = replace(tokens, rows=len(samples), longest_sizes=longest, longest_prompt_sizes=prompt)
    return Looked(known, left_out)


def _can_be_shown(sample: Sample, images: ImageStore) -> bool:
    try:
        for ref in sample.images:
            processor_input_size(ref, images)
    except ImageError:
        return False
    return True


def _describe_left_out(place: str, count: int, looked: int) -> Iterator[Finding]:
    if count == looked:
        rule = f"at least one of the {looked} rows checked must have usable images"
        yield Finding(Problem("plan.no_usable_rows", rule, place, 0), certain=False)
    elif count:
        rule = f"{count} of {looked} rows checked have an unusable image and will be skipped"
        yield warning(Problem("plan.rows_skipped", rule, place))
