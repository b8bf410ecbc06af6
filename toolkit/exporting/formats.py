"""One form of the weights: written beside its place, reloaded, asked again, and then put there."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ModelError, warn
from toolkit.exporting.atomic_output import Place
from toolkit.exporting.card import CardFacts
from toolkit.exporting.extra_files import name_base, put_beside
from toolkit.exporting.verification import BOUNDS, Asked, Bound, Comparison, Questions, ask, compare, primary_score
from toolkit.models import Backend
from toolkit.recipe import Recipe
from toolkit.runfolder import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Whose weights are exported, and the questions that prove it; none: nothing is proven."""

    backend: Backend
    recipe: Recipe
    weights: Path
    questions: Questions
    facts: Callable[[str, Record], CardFacts]
    """Form and its proof -> what its card is written from."""
    check: Callable[[str], None]
    """Raises Interrupted once a signal has come."""


def export_form(job: Job, form: str, place: Place) -> Record:
    """Write one form to its place, reload it and compare it with the run's weights.

    Raises:
        ModelError: the reloaded weights answer otherwise; they stay in ``FORM.differs`` beside its place.
        Interrupted: a signal came; nothing has the form's final name that had it not before.
    """
    before, record = _write(job, form, place.partial)
    bits: int = record["bits"]
    if job.questions.rows:
        job.check(f"{form} was not asked yet")
        policy = job.backend.load(job.recipe, place.partial, trainable=False, mergeable=form == "merged")
        after = ask(job.backend, policy, job.questions, before.texts)
        compared = compare(before, after)
        bound = BOUNDS["16" if form == "merged" and bits < 32 else "32"]
        if not compared.fits(bound):
            _keep_apart(place, before, after, compared, bound)
        _tell(form, compared, bits, "held-out" if job.questions.held_out else "training")
        record |= compared.to_record() | {"score": primary_score(job.questions, after.answers)}
        record["held_out"] = job.questions.held_out
    record |= put_beside(place.partial, job.facts(form, record))
    place.put()
    return {"folder": str(place.target), "megabytes": megabytes(place.target), **record}


def megabytes(path: Path) -> float:
    """The size of a file, or of all files below a folder, in units of a million bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 2)


def _write(job: Job, form: str, target: Path) -> tuple[Asked, Record]:
    """The answers before writing, and the record: the base weights' bits, and how the merged matrices compare.

    The model leaves memory before the next comes.
    """
    policy = job.backend.load(job.recipe, job.weights, trainable=False, mergeable=form == "merged")
    expected = ask(job.backend, policy, job.questions)
    record: Record = {"bits": policy.bits, "questions": 0, "differing": 0}
    if policy.dequantised:
        record["dequantised"] = True
    if form == "merged":
        if compared := job.backend.save_merged(policy, target):
            record["compared"] = compared.to_record()
            log.info("export: %d merged matrices are base + scale * B A, within rounding", compared.matrices)
        elif policy.dequantised:
            warn(
                "export.merged_not_compared",
                "the base is dequantised, so merged matrices are not compared with base + scale * B A",
                place="merged",
            )
    else:
        job.backend.save(policy, target)
    name_base(target)
    return expected, record


def _keep_apart(place: Place, before: Asked, after: Asked, compared: Comparison, bound: Bound) -> None:
    place.partial.replace(place.differs)
    first = compared.differing[0] if compared.differing else 0
    change = f"first: {before.texts[first]!r} became {after.texts[first]!r}"
    raise ModelError(
        "export.answers_differ",
        "reloaded weights must generate the same greedy completions",
        place=place.differs,
        value=f"{len(compared.differing)} of {compared.questions} differ; a token's log-probability moved by up to "
        f"{compared.gap:.3g} (bound {bound.gap}); {change}",
        remedy="Compare the precision and the library versions. The weights are kept for inspection.",
    )


def _tell(form: str, compared: Comparison, bits: int, whose: str) -> None:
    if compared.differing:
        warn(
            "export.answers_differ_by_rounding",
            f"completions should be the same after export, but merging rounds to {bits} bits",
            place=form,
            value=f"{len(compared.differing)} of {compared.questions}",
        )
    else:
        same = f"gives the same answers to {compared.questions} {whose} questions after reloading"
        log.info("export: %s %s (log-probabilities within %.2g)", form, same, compared.gap)
