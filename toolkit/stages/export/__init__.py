"""Export: adapter and merged weights, reloaded and asked again before they count as done."""

import logging
from collections.abc import Sequence
from pathlib import Path

from toolkit.backends import Backend, choose_backend
from toolkit.errors import ModelError
from toolkit.recipe import Export, Recipe
from toolkit.run import EXPORT, Record, RunFolder
from toolkit.stages.context import Context
from toolkit.stages.evaluate import held_out
from toolkit.stages.export.beside import digest_of
from toolkit.stages.export.card import CardFacts, read_facts
from toolkit.stages.export.forms import Job, export_form
from toolkit.stages.export.next_use import Serving
from toolkit.stages.export.place import Place, Written, begin, refuse_small_disk
from toolkit.stages.export.size import form_bytes
from toolkit.stages.prompts import Prompts

__all__ = ["export"]

log = logging.getLogger(__name__)
WRITTEN = "written.json"
"""What this run exported outside itself, in the stage's folder."""
MOST_LOOKED_AT = 1000
"""Questions whose pictures are counted for the commands of servers."""


def export(context: Context, backend: Backend | None = None, *, out: Path | None = None, force: bool = False) -> Record:
    """Write the weights in each form the recipe names, reload them, and compare greedy answers.

    A form's folder is there only once it has passed. Merged weights are compared with the adapter beside a base that
    is not quantised either, since a quantised base gives other answers by itself.

    Args:
        context: the run; its newest weights are exported.
        backend: who loads, asks and writes; default: the recipe's.
        out: where the folders of the forms go; default: the run's ``stages/export``.
        force: a folder in ``out`` that this run's export has not written is renamed instead of refused.

    Raises:
        ModelError: nothing was trained, or the reloaded weights answer otherwise; they stay in a folder whose name
            says so.
        RunError: the disk is too small, or the place of a form cannot be taken.
        Interrupted: a signal came; the forms that were finished are there.
    """
    recipe, section = context.recipe, context.recipe.export or Export()
    if context.weights is None:
        raise ModelError("there is nothing to export: no stage has trained", place=context.run.path)
    prompts = Prompts.of(recipe, context.images)
    # Without a held-out split, training rows serve: what is compared is one answer with the same answer reloaded.
    samples = held_out(context) if recipe.evaluate or len(context.data.test) else context.data.train
    record, run, weights = _earlier(context.run, context.weights), context.run, context.weights
    forms = _writable(section.to, recipe)
    folder = out.absolute() if out else run.stage_folder(EXPORT)
    written = Written(run.stage_folder(EXPORT) / WRITTEN)
    places = {form: _place(run, written, folder / form, force=force) for form in forms}
    sizes = [form_bytes(form, weights, recipe.model) for form in forms]
    refuse_small_disk(folder, sum(size or 0 for size in sizes), f"export of {' and '.join(forms)}")
    for place in places.values():
        begin(place)
    backend = backend or choose_backend(recipe.model)
    rows = [prompts.row(sample) for sample in samples[: section.verify]]
    pictures = max(len(sample.images) for sample in samples[:MOST_LOOKED_AT])
    serving = Serving.of(recipe, backend.load_reader(recipe).processor, pictures)

    def facts(form: str, proof: Record) -> CardFacts:
        return read_facts(run, recipe, weights, form, serving=serving, proof=proof)

    job = Job(backend, recipe, weights, rows, facts, context.stop.check)
    record |= {"asked": list(dict.fromkeys([*record["asked"], *section.to]))}
    for form, place in places.items():
        context.stop.check(f"{form} was not written")
        record[form] = {"folder": run.relative(place.target), **export_form(job, form, place)}
        written.add(place.target, record[form]["digest"])
    return record


def _writable(to: Sequence[str], recipe: Recipe) -> list[str]:
    if recipe.model.tuning == "full" and "adapter" in to:
        log.warning("export: full fine-tuning leaves no adapter; only merged weights are written")
        return [form for form in to if form != "adapter"]
    return list(to)


def _place(run: RunFolder, written: Written, target: Path, *, force: bool) -> Place:
    """The place of a form: its own where it lies in the run, or holds what this run wrote there."""
    inside = target.is_relative_to(run.path / "stages" / EXPORT)
    own = inside or (target.is_dir() and written.digest(target) == digest_of(target))
    return Place(target, own=own, force=force)


def _earlier(run: RunFolder, weights: Path) -> Record:
    """What an earlier export of the same weights left: forms that are not asked for now stay."""
    earlier = run.record(EXPORT) if run.is_done(EXPORT) else {}
    name = run.relative(weights)
    return earlier if earlier.get("weights") == name else {"weights": name, "asked": []}
