"""One form of the weights: written beside its place, reloaded, asked again, and then put there."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.backends import Backend
from toolkit.backends.base import Policy, Row, Sampling
from toolkit.errors import ModelError
from toolkit.recipe import Recipe
from toolkit.run import Record
from toolkit.stages.export.beside import name_base, put_beside
from toolkit.stages.export.card import CardFacts
from toolkit.stages.export.place import Place, settle

log = logging.getLogger(__name__)
ROUNDING = 0.25
"""Merging into weights of 16 bits rounds them: at most this share of the answers may change by it."""


@dataclass(frozen=True, slots=True)
class Job:
    """Whose weights are exported, and the questions that prove it."""

    backend: Backend
    recipe: Recipe
    weights: Path
    rows: Sequence[Row]
    facts: Callable[[str, Record], CardFacts]
    """Form and its proof -> what its card is written from."""
    check: Callable[[str], None]
    """Raises Interrupted once a signal has come."""


def export_form(job: Job, form: str, place: Place) -> Record:
    """Write one form to its place, reload it and compare its greedy answers with those of the run's weights.

    Raises:
        ModelError: the reloaded weights answer otherwise; they stay in ``FORM.differs`` beside its place.
        Interrupted: a signal came; nothing has the form's final name that had it not before.
    """
    expected, bits = _write(job, form, place.partial)
    job.check(f"{form} was not asked yet")
    found = _answers(job, job.backend.load(job.recipe, place.partial, trainable=False, mergeable=form == "merged"))
    differing = [i for i, (old, new) in enumerate(zip(expected, found, strict=True)) if old != new]
    rounds = form == "merged" and bits < 32
    if len(differing) > (ROUNDING * len(found) if rounds else 0):
        place.partial.replace(place.differs)
        first = differing[0]
        raise ModelError(
            "reloaded weights must give the same greedy answers",
            place=place.differs,
            value=f"{len(differing)} of {len(found)} differ; first: {expected[first]!r} became {found[first]!r}",
            remedy="Compare precision and library versions; the weights were kept for a look.",
        )
    proof = {"bits": bits, "questions": len(found), "differing": len(differing)}
    beside = put_beside(place.partial, job.facts(form, proof))
    settle(place)
    _tell(form, len(found), len(differing), bits)
    size = sum(file.stat().st_size for file in place.target.rglob("*") if file.is_file())
    return {"megabytes": round(size / 1e6, 2), **proof, **beside}


def _write(job: Job, form: str, target: Path) -> tuple[list[str], int]:
    """The answers before writing and the bits of the base weights; the model leaves memory before the next comes."""
    policy = job.backend.load(job.recipe, job.weights, trainable=False, mergeable=form == "merged")
    expected, bits = _answers(job, policy), policy.bits
    (job.backend.save_merged if form == "merged" else job.backend.save)(policy, target)
    name_base(target)
    return expected, bits


def _answers(job: Job, policy: Policy) -> list[str]:
    section = job.recipe.evaluation
    sampling = Sampling(section.max_completion_tokens)
    batches = [job.rows[i : i + section.batch_size] for i in range(0, len(job.rows), section.batch_size)]
    return [group[0].text for batch in batches for group in job.backend.generate(policy, batch, sampling)]


def _tell(form: str, questions: int, differing: int, bits: int) -> None:
    if differing:
        rounds = f"merging rounds to {bits} bits"
        log.warning("export: %s answers %d of %d questions otherwise: %s", form, differing, questions, rounds)
    else:
        log.info("export: %s gives the same answers to %d held-out questions after reloading", form, questions)
