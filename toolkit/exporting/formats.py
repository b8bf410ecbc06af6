"""Export one format: write it to a temporary folder, reload it, verify it, and rename the folder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ModelError, warn
from toolkit.exporting.atomic_output import OutputFolder
from toolkit.exporting.card import CardFacts
from toolkit.exporting.extra_files import set_public_base_name, write_extra_files
from toolkit.exporting.verification import (
    BOUNDS,
    Bound,
    Comparison,
    GreedyCompletions,
    VerificationSet,
    compare,
    generate_completions,
    primary_score,
)
from toolkit.models import Backend
from toolkit.recipe import Recipe
from toolkit.runfolder import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportJob:
    """What is exported and how it is verified.

    Attributes:
        backend: loads and writes the model.
        recipe: the recipe of the run.
        weights: the trained weights.
        questions: the samples of the verification. Without samples nothing is verified.
        facts: returns the content of the model card, from a format and the record of its verification.
        check: raises Interrupted after a signal.
    """

    backend: Backend
    recipe: Recipe
    weights: Path
    questions: VerificationSet
    facts: Callable[[str, Record], CardFacts]
    check: Callable[[str], None]


def export_format(job: ExportJob, name: str, place: OutputFolder) -> Record:
    """Export the adapter or merged weights, and compare the reloaded model with the run's model.

    Args:
        job: the export.
        name: adapter or merged.
        place: the folder to write to.

    Raises:
        ModelError: the reloaded model generates different completions. Its files stay in ``NAME.differs``.
        Interrupted: after a signal. The final folder is unchanged.
    """
    before, record = _write(job, name, place.partial)
    bits: int = record["bits"]
    if job.questions.rows:
        job.check(f"{name} was not verified yet")
        policy = job.backend.load(job.recipe, place.partial, trainable=False, mergeable=name == "merged")
        after = generate_completions(job.backend, policy, job.questions, before.texts)
        compared = compare(before, after)
        bound = BOUNDS["16" if name == "merged" and bits < 32 else "32"]
        if not compared.fits(bound):
            _reject(place, before, after, compared, bound)
        _log_comparison(name, compared, bits, "held-out" if job.questions.held_out else "training")
        record |= compared.to_record() | {"score": primary_score(job.questions, after.completions)}
        record["held_out"] = job.questions.held_out
    record |= write_extra_files(place.partial, job.facts(name, record))
    place.commit()
    return {"folder": str(place.target), "megabytes": megabytes(place.target), **record}


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files below a folder, in MB."""
    files = path.rglob("*") if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 2)


def _write(job: ExportJob, name: str, target: Path) -> tuple[GreedyCompletions, Record]:
    """Write a format.

    The model is freed at the end, before the exported one is loaded.

    Returns:
        The completions before the export, and the record: bits of the base weights, and the check of merged matrices.
    """
    policy = job.backend.load(job.recipe, job.weights, trainable=False, mergeable=name == "merged")
    expected = generate_completions(job.backend, policy, job.questions)
    record: Record = {"bits": policy.bits, "questions": 0, "differing": 0}
    if policy.dequantised:
        record["dequantised"] = True
    if name == "merged":
        if compared := job.backend.save_merged(policy, target):
            record["compared"] = compared.to_record()
            log.info("export: %d merged matrices equal base + scale * B A within rounding", compared.matrices)
        elif policy.dequantised:
            warn(
                "export.merged_not_compared",
                "the base is dequantised, so merged matrices are not compared with base + scale * B A",
                place="merged",
            )
    else:
        job.backend.save(policy, target)
    set_public_base_name(target)
    return expected, record


def _reject(
    place: OutputFolder, before: GreedyCompletions, after: GreedyCompletions, compared: Comparison, bound: Bound
) -> None:
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


def _log_comparison(name: str, compared: Comparison, bits: int, kind: str) -> None:
    if compared.differing:
        warn(
            "export.answers_differ_by_rounding",
            f"completions should be the same after export, but merging rounds to {bits} bits",
            place=name,
            value=f"{len(compared.differing)} of {compared.questions}",
        )
    else:
        same = f"reproduces all {compared.questions} completions of {kind} samples after reloading"
        log.info("export: %s %s (log-probabilities within %.2g)", name, same, compared.gap)
