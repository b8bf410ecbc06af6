"""One form of the weights: written beside its place, reloaded, asked again, and then put there."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from toolkit.backends import Backend
from toolkit.errors import ModelError
from toolkit.recipe import Recipe
from toolkit.run import Record, flush_folder
from toolkit.stages.export.proof import BOUNDS, Asked, Bound, Comparison, Questions, ask, compare, primary_score

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Whose weights are exported, and the questions that prove it; none: nothing is proven."""

    backend: Backend
    recipe: Recipe
    weights: Path
    questions: Questions


@dataclass(frozen=True, slots=True)
class Place:
    """Where a form goes, and the names beside it: while it is written, if it answers otherwise, and what was there."""

    target: Path

    @property
    def partial(self) -> Path:
        """While it is written."""
        return self._beside("partial")

    @property
    def differs(self) -> Path:
        """Where it stays if it answers otherwise."""
        return self._beside("differs")

    def clear(self) -> None:
        """Take away what an earlier try left."""
        for left in (self.partial, self.differs, self._beside("old")):
            shutil.rmtree(left, ignore_errors=True)

    def put(self) -> None:
        """What was written takes its place, once it is on disk."""
        flush_folder(self.partial)
        old = self._beside("old")
        if self.target.exists():
            self.target.replace(old)
        self.partial.replace(self.target)
        shutil.rmtree(old, ignore_errors=True)

    def _beside(self, end: str) -> Path:
        return self.target.with_name(f"{self.target.name}.{end}")


def export_form(job: Job, form: str, target: Path) -> Record:
    """Write one form to ``target``, reload it and compare it with the run's weights.

    Raises:
        ModelError: the reloaded weights answer otherwise; they stay in ``FORM.differs`` beside ``target``.
    """
    place = Place(target)
    place.clear()
    before, bits, dequantised = _write(job, form, place.partial)
    record: Record = {"bits": bits, "questions": 0, "differing": 0}
    if dequantised:
        record["dequantised"] = True
    if job.questions.rows:
        policy = job.backend.load(job.recipe, place.partial, trainable=False, mergeable=form == "merged")
        after = ask(job.backend, policy, job.questions, before.texts)
        compared = compare(before, after)
        bound = BOUNDS["16" if form == "merged" and bits < 32 else "32"]
        if not compared.fits(bound):
            _keep_apart(place, before, after, compared, bound)
        _tell(form, compared, bits)
        record |= compared.to_record() | {"score": primary_score(job.questions, after.answers)}
    place.put()
    return {"folder": str(target), "megabytes": megabytes(target), **record}


def megabytes(path: Path) -> float:
    """The size of a file, or of all files below a folder, in units of a million bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 2)


def _write(job: Job, form: str, target: Path) -> tuple[Asked, int, bool]:
    """The answers before writing, the bits of the base weights, and whether these were dequantised.

    The model leaves memory before the next comes.
    """
    policy = job.backend.load(job.recipe, job.weights, trainable=False, mergeable=form == "merged")
    expected = ask(job.backend, policy, job.questions)
    bits, dequantised = policy.bits, policy.dequantised
    (job.backend.save_merged if form == "merged" else job.backend.save)(policy, target)
    return expected, bits, dequantised


def _keep_apart(place: Place, before: Asked, after: Asked, compared: Comparison, bound: Bound) -> None:
    place.partial.replace(place.differs)
    first = compared.differing[0] if compared.differing else 0
    change = f"first: {before.texts[first]!r} became {after.texts[first]!r}"
    raise ModelError(
        "reloaded weights must give the same greedy answers",
        place=place.differs,
        value=f"{len(compared.differing)} of {compared.questions} differ; a token's log-probability moved by up to "
        f"{compared.gap:.3g} (bound {bound.gap}); {change}",
        remedy="Compare precision and library versions; the weights were kept for a look.",
    )


def _tell(form: str, compared: Comparison, bits: int) -> None:
    if compared.differing:
        rounds = f"merging rounds to {bits} bits"
        share = f"{len(compared.differing)} of {compared.questions}"
        log.warning("export: %s answers %s questions otherwise: %s", form, share, rounds)
    else:
        same = f"gives the same answers to {compared.questions} held-out questions after reloading"
        log.info("export: %s %s (log-probabilities within %.2g)", form, same, compared.gap)
