"""Export: adapter and merged weights, reloaded and asked again before they count as done."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from toolkit.backends import Backend, choose_backend
from toolkit.backends.base import Policy, Row, Sampling
from toolkit.errors import ModelError
from toolkit.recipe import Evaluate, Export, Recipe
from toolkit.run import Record
from toolkit.stages.context import Context
from toolkit.stages.evaluate import held_out
from toolkit.stages.prompts import Prompts

log = logging.getLogger(__name__)
STAGE = "export"


def export(context: Context) -> Record:
    """Write the weights in each form the recipe names, reload them, and compare greedy answers.

    Raises:
        ModelError: the reloaded weights answer otherwise; they stay in a folder whose name says so.
    """
    recipe, section = context.recipe, context.recipe.export or Export()
    backend = choose_backend(recipe.model)
    prompts = Prompts.of(recipe, context.images)
    samples = list(held_out(context)[: section.verify])
    rows = [prompts.row(sample) for sample in samples]
    policy = backend.load(recipe, context.weights, trainable=False)
    expected = _answers(backend, policy, rows, recipe)
    folder = context.run.stage_folder(STAGE)
    record: Record = {"questions": len(rows)}
    for form in section.to:
        target = folder / form
        record[form] = _write(backend, policy, form, target)
        _prove(backend, recipe, target, rows, expected)
        log.info("export: %s gives the same answers to %d held-out questions after reloading", form, len(rows))
    return record


def _write(backend: Backend, policy: Policy, form: str, target: Path) -> Record:
    partial = target.with_name(f"{target.name}.partial")
    for old in (partial, target):
        if old.exists():
            shutil.rmtree(old)
    (backend.save if form == "adapter" else backend.save_merged)(policy, partial)
    partial.replace(target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return {"folder": f"stages/{STAGE}/{form}", "megabytes": round(size / 1e6, 2)}


def _prove(backend: Backend, recipe: Recipe, target: Path, rows: Sequence[Row], expected: list[str]) -> None:
    found = _answers(backend, backend.load(recipe, target, trainable=False), rows, recipe)
    differing = [i for i, (old, new) in enumerate(zip(expected, found, strict=True)) if old != new]
    if differing:
        kept = target.with_name(f"{target.name}.differs")
        if kept.exists():
            shutil.rmtree(kept)
        target.replace(kept)
        first = differing[0]
        raise ModelError(
            "reloaded weights must give the same greedy answers",
            place=kept,
            value=f"{len(differing)} of {len(rows)} differ; first: {expected[first]!r} became {found[first]!r}",
            remedy="Compare precision and library versions; the weights were kept for a look.",
        )


def _answers(backend: Backend, policy: Policy, rows: Sequence[Row], recipe: Recipe) -> list[str]:
    section = recipe.evaluate or Evaluate()
    sampling = Sampling(section.max_completion_tokens)
    batches = [rows[i : i + section.batch_size] for i in range(0, len(rows), section.batch_size)]
    return [group[0].text for batch in batches for group in backend.generate(policy, batch, sampling)]
