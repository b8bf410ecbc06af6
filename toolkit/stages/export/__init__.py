"""Export: adapter and merged weights, reloaded and asked again before they count as done."""

import logging
from pathlib import Path

from toolkit.backends import Backend, choose_backend
from toolkit.errors import ModelError
from toolkit.recipe import Export
from toolkit.run import EXPORT, Record, RunFolder
from toolkit.stages.context import Context
from toolkit.stages.evaluate import held_out
from toolkit.stages.export.forms import Job, export_form
from toolkit.stages.prompts import Prompts

__all__ = ["export"]

log = logging.getLogger(__name__)


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
    job = Job(backend or choose_backend(recipe.model), recipe, context.weights, rows)
    record = _earlier(context.run, context.weights)
    record |= {"asked": list(dict.fromkeys([*record["asked"], *section.to]))}
    for form in section.to:
        if form == "adapter" and recipe.model.tuning == "full":
            log.warning("export: full fine-tuning leaves no adapter; only merged weights are written")
        else:
            record[form] = export_form(job, form, context.run.stage_folder(EXPORT) / form)
    return record


def _earlier(run: RunFolder, weights: Path) -> Record:
    """What an earlier export of the same weights left: forms that are not asked for now stay."""
    earlier = run.record(EXPORT) if run.is_done(EXPORT) else {}
    name = run.relative(weights)
    return earlier if earlier.get("weights") == name else {"weights": name, "asked": []}
