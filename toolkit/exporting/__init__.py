"""Export an adapter, merged weights and GGUF. A format is complete only after it is reloaded and verified."""

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
from toolkit.exporting.atomic_output import OutputFolder, WrittenFolders, free_name, require_disk_space
from toolkit.exporting.card import CardFacts, read_facts
from toolkit.exporting.card.facts import is_verified
from toolkit.exporting.extra_files import digest_of
from toolkit.exporting.formats import ExportJob, export_format
from toolkit.exporting.gguf import export_gguf
from toolkit.exporting.serving import Serving
from toolkit.exporting.size import format_bytes
from toolkit.exporting.verification import VerificationSet
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
"""File in the stage's folder with the exports outside the run."""
MAX_COUNTED = 1000
"""Samples whose images are counted for the commands of servers."""


def export(context: Context, backend: Backend | None = None, *, out: Path | None = None, force: bool = False) -> Record:
    """Export each format of the recipe, reload it, and compare greedy completions.

    The folder of a format exists only after verification. Merged weights are compared with the adapter on an
    unquantized base, because a quantized base alone changes completions. GGUF is converted from the merged weights,
    which are written first if they are missing, and compared with them.

    Args:
        context: the run, whose newest weights are exported.
        backend: loads and writes the model. Default: that of the recipe.
        out: parent of the formats' folders. Default: the run folder. The caller saves the record of an export inside
            the run. ``WRITTEN`` has the records of other exports.
        force: rename a folder in ``out`` that this run's export did not write, instead of raising an error.

    Returns:
        The record of the export: format -> folder, size and verification.

    Raises:
        ModelError: there are no trained weights, or the exported model generates other completions. Its files stay in
            ``NAME.differs``.
        MissingExtraError: a package that GGUF needs is not installed.
        RunError: the disk is too small, or a folder of a format cannot be written.
        Interrupted: after a signal. Complete formats are kept.
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
    section_here = _without_optional(section, recipe, context.weights)
    formats = _in_order(section_here, record, folder)
    record |= {"asked": list(dict.fromkeys([*record["asked"], *formats]))}
    if section_here != section:
        record["left_out"] = list(section.optional)
    if "adapter" in formats and recipe.model.tuning == "full":
        warn(
            "export.no_adapter_to_write",
            "full fine-tuning has no adapter, so only merged weights are written",
            place="export.to",
            value="adapter",
        )
        formats.remove("adapter")
    if out is None:
        _set_aside(folder, keep={*formats, *record})
    written = WrittenFolders(run.stage_folder(EXPORT) / WRITTEN)
    places = _prepare_places(context, {name: _place(run, written, folder / name, force=force) for name in formats})
    job = _job(context, backend or choose_backend(recipe.model), context.weights)
    for place in places.values():
        written.begin(place.target)
    for name, place in places.items():
        context.stop.check(f"{name} was not written")
        found = export_gguf(job, folder / "merged", place) if name == "gguf" else export_format(job, name, place)
        record[name] = {**found, "folder": run.relative(place.target)}
        written.add(place.target, record[name])
    return record


def _job(context: Context, backend: Backend, weights: Path) -> ExportJob:
    recipe = context.recipe
    # Without a held-out split, training samples are enough: a completion is compared with that of the reloaded model.
    samples = held_out(context) if recipe.evaluate or len(context.data.test) else context.data.train
    if samples is context.data.train:
        warn(
            "export.verified_on_training_rows",
            "no held-out rows exist, so training rows verify the export",
            place="export",
        )
    images = max(len(sample.images) for sample in samples[:MAX_COUNTED])
    processor = backend.load_without_model(recipe).processor
    serving = Serving.of(recipe, processor, images)

    def facts(name: str, verification: Record) -> CardFacts:
        return read_facts(context.run, recipe, weights, name, serving=serving, verification=verification)

    return ExportJob(backend, recipe, weights, _questions(context, processor, samples), facts, context.stop.check)


def _questions(context: Context, processor: Any, samples: SampleSet) -> VerificationSet:
    recipe, section = context.recipe, context.recipe.export or Export()
    prompts = Prompts.of(recipe, context.images)
    unfit = prompt_checker(
        processor, prompts, recipe.model.max_tokens, 0
    )  # llama.cpp adds the tokens of the completion itself
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
    return VerificationSet(recipe, prompts.task, chosen, [prompts.row(sample) for sample in chosen], held_out)


def _prepare_places(context: Context, places: dict[str, OutputFolder]) -> dict[str, OutputFolder]:
    """Return the folders after checking the disk space and preparing each of them."""
    quant = (context.recipe.export or Export()).quant
    if context.weights is not None and places:
        sizes = [format_bytes(name, context.weights, context.recipe.model, quant) for name in places]
        first = next(iter(places.values()))
        require_disk_space(first.target.parent, sum(size or 0 for size in sizes), f"export of {' and '.join(places)}")
    for place in places.values():
        place.prepare()
    return places


def _place(run: RunFolder, written: WrittenFolders, target: Path, *, force: bool) -> OutputFolder:
    """Return the folder of a format. It is the run's own if it is in the run, or unchanged since this run wrote it."""
    inside = target.is_relative_to(run.path / "stages" / EXPORT)
    own = inside or (target.is_dir() and written.digest(target) == digest_of(target))
    return OutputFolder(target, own=own, begun=inside or written.has(target), force=force)


def _without_optional(section: Export, recipe: Recipe, weights: Path) -> Export:
    """Return the section without an optional format that the base does not support, with a warning."""
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
    """Return the formats to write. GGUF is last, because it is converted from the merged weights."""
    wanted = formats_of(section)
    formats = [name for name in wanted if name != "gguf"]
    if "gguf" not in wanted:
        if section.optional:
            log.info("export: GGUF is skipped on this machine: %s", missing_requirement(section))
        return formats
    if "merged" not in formats and not _is_unchanged(
        record.get("merged", {}), folder / "merged", verified=section.verify > 0
    ):
        log.info("export: GGUF is converted from merged weights, which are written first")
        formats.append("merged")
    return [*formats, "gguf"]


def _is_unchanged(found: Record, folder: Path, *, verified: bool) -> bool:
    """Return whether a format is unchanged since an earlier export, and verified if ``verified``."""
    return folder.is_dir() and found.get("digest") == digest_of(folder) and (is_verified(found) or not verified)


def _set_aside(folder: Path, keep: Collection[str]) -> None:
    """Rename formats in the run that no record of these weights has, because they may be of earlier weights."""
    formats = [name for name in ("adapter", "merged", "gguf") if name not in keep]
    for old in (folder / f"{name}{end}" for name in formats for end in ("", ".comparison.jsonl")):
        if old.exists():
            new = free_name(old)
            old.rename(new)
            warn(
                "export.outdated_renamed",
                f"an export of other weights, or an unfinished one, is now {new.name}",
                place=old,
            )


def _earlier(run: RunFolder, weights: Path, out: Path | None) -> Record:
    """Return the record of an earlier export of the same weights. Its other formats stay valid."""
    earlier = run.record(EXPORT) if out is None and run.is_done(EXPORT) else {}
    name = run.relative(weights)
    return earlier if earlier.get("weights") == name else {"weights": name, "asked": []}
