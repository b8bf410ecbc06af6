"""Export: adapter and merged weights, reloaded and asked again before they count as done."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.backends import Backend, choose_backend
from toolkit.backends.base import Policy, Row, Sampling
from toolkit.errors import ModelError
from toolkit.recipe import Export, Recipe
from toolkit.run import EXPORT, Record, RunFolder, flush_folder
from toolkit.stages.context import Context
from toolkit.stages.evaluate import held_out
from toolkit.stages.prompts import Prompts

log = logging.getLogger(__name__)
ROUNDING = 0.25
"""Merging into weights of 16 bits rounds them: at most this share of the answers may change by it."""


def export(context: Context, backend: Backend | None = None) -> Record:
    """Write the weights in each form the recipe names, reload them, and compare greedy answers.

    A form's folder is there only once it has passed. Merged weights are compared with the adapter beside a base that
    is not quantised either, since a quantised base gives other answers by itself.

    Args:
        context: the run; its newest weights are exported.
        backend: who loads, asks and writes; default: the recipe's.

    Raises:
        ModelError: nothing was trained, or the reloaded weights answer otherwise; they stay in a folder whose name
            says so.
    """
    recipe, section = context.recipe, context.recipe.export or Export()
    if context.weights is None:
        raise ModelError("there is nothing to export: no stage has trained", place=context.run.path)
    prompts = Prompts.of(recipe, context.images)
    # Without a held-out split, training rows serve: what is compared is one answer with the same answer reloaded.
    samples = held_out(context) if recipe.evaluate or len(context.data.test) else context.data.train
    rows = [prompts.row(sample) for sample in samples[: section.verify]]
    job = _Job(backend or choose_backend(recipe.model), recipe, context.weights, rows)
    record = _earlier(context.run, context.weights)
    record |= {"asked": list(dict.fromkeys([*record["asked"], *section.to]))}
    for form in section.to:
        if form == "adapter" and recipe.model.tuning == "full":
            log.warning("export: full fine-tuning leaves no adapter; only merged weights are written")
        else:
            record[form] = _export(job, form, context.run.stage_folder(EXPORT) / form)
    return record


def _earlier(run: RunFolder, weights: Path) -> Record:
    """What an earlier export of the same weights left: forms that are not asked for now stay."""
    earlier = run.record(EXPORT) if run.is_done(EXPORT) else {}
    name = run.relative(weights)
    return earlier if earlier.get("weights") == name else {"weights": name, "asked": []}


@dataclass(frozen=True, slots=True)
class _Job:
    backend: Backend
    recipe: Recipe
    weights: Path
    rows: Sequence[Row]


def _export(job: _Job, form: str, target: Path) -> Record:
    partial, differs, old = (target.with_name(f"{form}.{end}") for end in ("partial", "differs", "old"))
    for left in (partial, differs, old):
        shutil.rmtree(left, ignore_errors=True)
    expected, bits = _write(job, form, partial)
    found = _answers(job, job.backend.load(job.recipe, partial, trainable=False, mergeable=form == "merged"))
    differing = [i for i, (old, new) in enumerate(zip(expected, found, strict=True)) if old != new]
    rounds = form == "merged" and bits < 32
    if len(differing) > (ROUNDING * len(found) if rounds else 0):
        partial.replace(differs)
        first = differing[0]
        raise ModelError(
            "reloaded weights must give the same greedy answers",
            place=differs,
            value=f"{len(differing)} of {len(found)} differ; first: {expected[first]!r} became {found[first]!r}",
            remedy="Compare precision and library versions; the weights were kept for a look.",
        )
    flush_folder(partial)
    if target.exists():
        target.replace(old)
    partial.replace(target)
    shutil.rmtree(old, ignore_errors=True)
    _tell(form, len(found), len(differing), bits)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    folder = f"stages/{EXPORT}/{form}"
    return {
        "folder": folder,
        "megabytes": round(size / 1e6, 2),
        "bits": bits,
        "questions": len(found),
        "differing": len(differing),
    }


def _write(job: _Job, form: str, target: Path) -> tuple[list[str], int]:
    """The answers before writing and the bits of the base weights; the model leaves memory before the next comes."""
    policy = job.backend.load(job.recipe, job.weights, trainable=False, mergeable=form == "merged")
    expected, bits = _answers(job, policy), policy.bits
    (job.backend.save_merged if form == "merged" else job.backend.save)(policy, target)
    return expected, bits


def _answers(job: _Job, policy: Policy) -> list[str]:
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
