"""Export: adapter, merged weights and GGUF, reloaded and asked again before they count as done."""

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from toolkit.data.loading import SampleSet
from toolkit.data.sample import Sample
from toolkit.errors import DataError, ModelError, warn
from toolkit.evaluation.context import Context
from toolkit.evaluation.evaluate import held_out
from toolkit.exporting.atomic_output import Place, Written, free_name, refuse_small_disk
from toolkit.exporting.card import CardFacts, read_facts
from toolkit.exporting.card.facts import is_verified
from toolkit.exporting.extra_files import digest_of
from toolkit.exporting.formats import Job, export_form
from toolkit.exporting.gguf import export_gguf
from toolkit.exporting.serving import Serving
from toolkit.exporting.size import form_bytes
from toolkit.exporting.verification import Questions
from toolkit.models import Backend, choose_backend
from toolkit.models.hf import base_source
from toolkit.models.lengths import prompt_checker
from toolkit.models.llamacpp import formats_of, mergeable_formats, missing_requirement
from toolkit.models.loading import stored_quantised
from toolkit.models.lora import is_adapter
from toolkit.models.prompts import Prompts
from toolkit.recipe import Export, Recipe
from toolkit.runfolder import EXPORT, Record, RunFolder

__all__ = ["export"]

log = logging.getLogger(__name__)
WRITTEN = "written.json"
"""What this run exported outside itself, in the stage's folder."""
MOST_LOOKED_AT = 1000
"""Questions whose pictures are counted for the commands of servers."""


def export(context: Context, backend: Backend | None = None, *, out: Path | None = None, force: bool = False) -> Record:
    """Write the weights in each form the recipe names, reload them, and compare greedy answers.

    A form's folder is there only once it has passed. Merged weights are compared with the adapter beside a base that
    is not quantised either, since a quantised base gives other answers by itself. A GGUF is made from merged weights,
    which are written first if they are not there, and compared with them.

    Args:
        context: the run; its newest weights are exported.
        backend: who loads, asks and writes; default: the recipe's.
        out: where the forms' folders go; default: the run's own folder. The caller keeps the record of what is in the
            run; of what is elsewhere ``WRITTEN`` in the run has it.
        force: a folder in ``out`` that this run's export has not written is renamed instead of refused.

    Raises:
        ModelError: nothing was trained, or what was written answers otherwise; it stays in a folder whose name says so.
        MissingExtraError: GGUF is asked for, and what it needs is not installed.
        RunError: the disk is too small, or the place of a form cannot be taken.
        Interrupted: a signal came; the forms that were finished are there.
    """
    recipe, section = context.recipe, context.recipe.export or Export()
    if context.weights is None:
        raise ModelError(
            "export.nothing_trained", "a run must be trained before it is exported", place=context.run.path
        )
    if not section.verify:
        warn(
            "export.not_verified",
            "the exported weights are not verified and may answer differently from the run's model",
            place="export.verify",
            value=section.verify,
        )
    run, folder = context.run, out.absolute() if out else context.run.stage_folder(EXPORT)
    record = _earlier(run, context.weights, out)
    makeable = _makeable(section, recipe, context.weights)
    forms = _in_order(makeable, record, folder)
    record |= {"asked": list(dict.fromkeys([*record["asked"], *forms]))}
    if makeable != section:
        record["left_out"] = list(section.optional)
    if "adapter" in forms and recipe.model.tuning == "full":
        warn(
            "export.no_adapter_to_write",
            "full fine-tuning has no adapter, so only merged weights are written",
            place="export.to",
            value="adapter",
        )
        forms.remove("adapter")
    if out is None:
        _set_aside(folder, keep={*forms, *record})
    written = Written(run.stage_folder(EXPORT) / WRITTEN)
    places = _take_places(context, {form: _place(run, written, folder / form, force=force) for form in forms})
    job = _job(context, backend or choose_backend(recipe.model), context.weights)
    for place in places.values():
        written.begin(place.target)
    for form, place in places.items():
        context.stop.check(f"{form} was not written")
        found = export_gguf(job, folder / "merged", place) if form == "gguf" else export_form(job, form, place)
        record[form] = {**found, "folder": run.relative(place.target)}
        written.add(place.target, record[form])
    return record


def _job(context: Context, backend: Backend, weights: Path) -> Job:
    recipe = context.recipe
    # Without a held-out split, training rows serve: what is compared is one answer with the same answer reloaded.
    samples = held_out(context) if recipe.evaluate or len(context.data.test) else context.data.train
    if samples is context.data.train:
        warn(
            "export.verified_on_training_rows",
            "no held-out rows exist, so training rows verify the export",
            place="export",
        )
    pictures = max(len(sample.images) for sample in samples[:MOST_LOOKED_AT])
    processor = backend.load_without_model(recipe).processor
    serving = Serving.of(recipe, processor, pictures)

    def facts(form: str, proof: Record) -> CardFacts:
        return read_facts(context.run, recipe, weights, form, serving=serving, proof=proof)

    return Job(backend, recipe, weights, _questions(context, processor, samples), facts, context.stop.check)


def _questions(context: Context, processor: Any, samples: SampleSet) -> Questions:
    recipe, section = context.recipe, context.recipe.export or Export()
    prompts = Prompts.of(recipe, context.images)
    unfit = prompt_checker(processor, prompts, recipe.model.max_tokens, 0)  # a GGUF has room for the answer besides
    chosen: list[Sample] = []
    left_out: Counter[str] = Counter()
    for sample in samples:
        if len(chosen) == section.verify:
            break
        if reason := unfit(sample):
            left_out[reason] += 1
        else:
            chosen.append(sample)
    for reason, count in left_out.items():
        warn(
            "export.questions_replaced",
            f"the number of questions that verification skips should be 0: {reason}",
            place="export",
            value=count,
        )
    if section.verify and not chosen:
        raise DataError(
            "export.no_question_fits",
            "at least one question for verification must fit into model.max_tokens",
            place="[model] max_tokens",
            value=recipe.model.max_tokens,
        )
    held_out = samples is not context.data.train
    return Questions(recipe, prompts.task, chosen, [prompts.row(sample) for sample in chosen], held_out)


def _take_places(context: Context, places: dict[str, Place]) -> dict[str, Place]:
    """The places, once all of them can be taken and the disk has room for what they get."""
    quant = (context.recipe.export or Export()).quant
    if context.weights is not None and places:
        sizes = [form_bytes(form, context.weights, context.recipe.model, quant) for form in places]
        first = next(iter(places.values()))
        refuse_small_disk(first.target.parent, sum(size or 0 for size in sizes), f"export of {' and '.join(places)}")
    for place in places.values():
        place.take()
    return places


def _place(run: RunFolder, written: Written, target: Path, *, force: bool) -> Place:
    """The place of a form: its own where it lies in the run, or holds what this run wrote there."""
    inside = target.is_relative_to(run.path / "stages" / EXPORT)
    own = inside or (target.is_dir() and written.digest(target) == digest_of(target))
    return Place(target, own=own, begun=inside or written.has(target), force=force)


def _makeable(section: Export, recipe: Recipe, weights: Path) -> Export:
    """The section without an optional form that the base does not give, which is told."""
    if "gguf" not in formats_of(section) or not (is_adapter(weights) and section.optional):
        return section
    method = stored_quantised(base_source(recipe, weights), recipe.model)
    makeable = mergeable_formats(section, quantised=method is not None)
    if makeable != section:
        warn(
            "export.gguf_left_out",
            "no GGUF is written, because the base is stored quantised",
            place="export.optional",
            value=method,
            remedy="Set export.allow_dequantised = true to merge into dequantised weights.",
        )
    return makeable


def _in_order(section: Export, record: Record, folder: Path) -> list[str]:
    """The forms that are written now; GGUF comes last, after the merged weights that it is made from."""
    wanted = formats_of(section)
    forms = [form for form in wanted if form != "gguf"]
    if "gguf" not in wanted:
        if section.optional:
            log.info("export: no GGUF is written here: %s", missing_requirement(section))
        return forms
    if "merged" not in forms and not _stands(record.get("merged", {}), folder / "merged", proven=section.verify > 0):
        log.info("export: a GGUF is made from merged weights, which are written first")
        forms.append("merged")
    return [*forms, "gguf"]


def _stands(found: Record, folder: Path, *, proven: bool) -> bool:
    """Whether a form is as an earlier export left it; ``proven``: and was asked again then."""
    return folder.is_dir() and found.get("digest") == digest_of(folder) and (is_verified(found) or not proven)


def _set_aside(folder: Path, keep: Collection[str]) -> None:
    """Rename forms that lie in the run and are in no record of these weights: they may be of earlier ones."""
    forms = [form for form in ("adapter", "merged", "gguf") if form not in keep]
    for old in (folder / f"{form}{end}" for form in forms for end in ("", ".comparison.jsonl")):
        if old.exists():
            new = free_name(old)
            old.rename(new)
            warn(
                "export.outdated_renamed",
                f"an export of other weights, or an unfinished one, is now {new.name}",
                place=old,
            )


def _earlier(run: RunFolder, weights: Path, out: Path | None) -> Record:
    """What an earlier export of the same weights left: forms that are not asked for now stay."""
    earlier = run.record(EXPORT) if out is None and run.is_done(EXPORT) else {}
    name = run.relative(weights)
    return earlier if earlier.get("weights") == name else {"weights": name, "asked": []}
