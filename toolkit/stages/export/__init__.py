"""Export: adapter, merged weights and GGUF, reloaded and asked again before they count as done."""

import logging
from pathlib import Path

from toolkit.backends import Backend, choose_backend
from toolkit.errors import ModelError
from toolkit.recipe import Export
from toolkit.run import EXPORT, Record, RunFolder, write_json
from toolkit.stages.context import Context
from toolkit.stages.evaluate import held_out
from toolkit.stages.export.forms import Job, export_form
from toolkit.stages.export.gguf import export_gguf
from toolkit.stages.export.proof import Questions
from toolkit.stages.prompts import Prompts

__all__ = ["export"]

log = logging.getLogger(__name__)


def export(context: Context, backend: Backend | None = None, out: Path | None = None) -> Record:
    """Write the weights in each form the recipe names, reload them, and compare greedy answers.

    A form's folder is there only once it has passed. Merged weights are compared with the adapter beside a base that
    is not quantised either, since a quantised base gives other answers by itself. A GGUF is made from merged weights,
    which are written first if they are not there, and compared with them.

    Args:
        context: the run; its newest weights are exported.
        backend: who loads, asks and writes; default: the recipe's.
        out: where the forms' folders go, with ``export.json``, the record; default: the run's own, whose record the
            caller keeps.

    Raises:
        ModelError: nothing was trained, or what was written answers otherwise; it stays in a folder whose name says so.
        MissingExtraError: GGUF is asked for, and what it needs is not installed.
    """
    recipe, section = context.recipe, context.recipe.export or Export()
    if context.weights is None:
        raise ModelError("there is nothing to export: no stage has trained", place=context.run.path)
    if not section.verify:
        log.warning("export: nothing is verified, as asked: what is written may answer otherwise than the run's model")
    folder = out or context.run.stage_folder(EXPORT)
    job = Job(backend or choose_backend(recipe.model), recipe, context.weights, _questions(context, section.verify))
    record = _earlier(context.run, context.weights, out)
    forms = _in_order(section, record, folder)
    record |= {"asked": list(dict.fromkeys([*record["asked"], *forms]))}
    for form in forms:
        if form == "adapter" and recipe.model.tuning == "full":
            log.warning("export: full fine-tuning leaves no adapter; only merged weights are written")
        elif form == "gguf":
            record[form] = export_gguf(job, folder / "merged", folder / form)
        else:
            record[form] = export_form(job, form, folder / form)
        if form in record:
            record[form]["folder"] = context.run.relative(folder / form)
    if out:
        write_json(out / "export.json", record)
    return record


def _questions(context: Context, count: int) -> Questions:
    # Without a held-out split, training rows serve: what is compared is one answer with the same answer reloaded.
    recipe = context.recipe
    samples = held_out(context) if recipe.evaluate or len(context.data.test) else context.data.train
    prompts = Prompts.of(recipe, context.images)
    chosen = list(samples[:count])
    return Questions(recipe, prompts.task, chosen, [prompts.row(sample) for sample in chosen])


def _in_order(section: Export, record: Record, folder: Path) -> list[str]:
    """The forms that are written now; GGUF comes last, after the merged weights that it is made from."""
    forms: list[str] = [form for form in section.to if form != "gguf"]
    if "gguf" not in section.to:
        return forms
    if "merged" not in forms and not ("merged" in record and (folder / "merged").is_dir()):
        log.info("export: a GGUF is made from merged weights, which are written first")
        forms.append("merged")
    return [*forms, "gguf"]


def _earlier(run: RunFolder, weights: Path, out: Path | None) -> Record:
    """What an earlier export of the same weights left: forms that are not asked for now stay."""
    earlier = run.record(EXPORT) if out is None and run.is_done(EXPORT) else {}
    name = run.relative(weights)
    return earlier if earlier.get("weights") == name else {"weights": name, "asked": []}
