"""The export stage: each format of the recipe is written, reloaded and verified."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.data.sample import Sample
from toolkit.data.sample_set import SampleSet
from toolkit.errors import DataError, ImageError, ModelError, warn
from toolkit.evaluation.evaluation_set import held_out
from toolkit.evaluation.generate import SKIP_REMEDIES
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.atomic_output import (
    OutputFolder,
    WrittenFolders,
    digest_of,
    format_bytes,
    require_disk_space,
)
from toolkit.exporting.formats import ExportJob, export_adapter, export_merged
from toolkit.exporting.gguf import export_gguf
from toolkit.exporting.results import ExportResult, FormatExport
from toolkit.exporting.serving import Serving
from toolkit.exporting.verification import VerificationSet
from toolkit.images.ref import ImageRef
from toolkit.images.store import read_image_header
from toolkit.models import Backend, choose_backend
from toolkit.models.hf import base_source
from toolkit.models.image_limits import PixelLimit, find_pixel_limit
from toolkit.models.lengths import prompt_checker
from toolkit.models.llamacpp import formats_of, mergeable_formats, missing_requirement
from toolkit.models.loading import stored_quantized
from toolkit.models.lora import is_adapter
from toolkit.models.prompts import Prompts
from toolkit.recipe import Export, Recipe
from toolkit.runfolder import EXPORT, RunFolder, free_name
from toolkit.runfolder.manifest import is_as_written

log = logging.getLogger(__name__)
WRITTEN = "written.json"
"""File in the stage's folder with the exports outside the run."""
MAX_COUNTED = 1000
"""Samples whose images are counted for the commands of servers."""


def export(
    context: Context, backend: Backend | None = None, *, out: Path | None = None, force: bool = False
) -> ExportResult:
    """Export each format of the recipe, reload it, and compare greedy completions.

    The folder of a format exists only after verification. Merged weights are compared with the adapter on an
    unquantized base, because a quantized base alone changes completions. GGUF is converted from the merged weights,
    which are written first if they are missing, and compared with them.

    Args:
        context: the run, whose newest weights are exported.
        backend: loads and writes the model. Default: that of the recipe.
        out: parent of the formats' folders. Default: the run folder. The caller saves the result of an export inside
            the run. ``WRITTEN`` has the other exports.
        force: rename a folder in ``out`` that this run's export did not write, instead of raising an error.

    Raises:
        ModelError: there are no trained weights, or the exported model generates other completions. Its files stay in
            ``NAME.differs``.
        MissingExtraError: a package that GGUF needs is not installed.
        RunError: the disk is too small, or a folder of a format cannot be written.
        Interrupted: after a signal. Complete formats are kept.
    """
    weights = _weights(context)
    target = _Target(context.run, out, force=force)
    plan = _plan_export(context, weights, target)
    if target.in_run:
        _rename_outdated(target.folder, keep={*plan.formats, *plan.earlier.formats})
    outputs = _prepare(context, weights, {name: target.output(name) for name in plan.formats})
    job = prepare_job(context, backend or choose_backend(context.recipe.model), weights)
    for output in outputs.values():
        target.written.begin(output.target)
    result = plan.earlier
    for name, output in outputs.items():
        context.stop.check(f"{name} was not written")
        found = _EXPORTS[name](job, target.folder, output)
        target.written.add(output, found)
        output.commit()
        result = result.with_export(found)
    return result


def prepare_job(context: Context, backend: Backend, weights: Path) -> ExportJob:
    """Choose the samples of the verification and the settings of servers.

    Raises:
        DataError: no sample fits into ``model.max_tokens``.
    """
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
    chosen = _verification_set(context, processor, samples)
    limit = _pixel_limit(context, processor, samples)
    return ExportJob(context, backend, weights, chosen, Serving.of(recipe, processor, images, limit))


def _pixel_limit(context: Context, processor: Any, samples: SampleSet) -> PixelLimit | None:
    """Return the limit for servers, with a warning if they see some images of the data at another size."""
    refs = {ref for split in (context.data.train, samples) for sample in split[:MAX_COUNTED] for ref in sample.images}
    limit = find_pixel_limit(processor, context.images.policy, _sizes(context, refs))
    if limit is not None and limit.same < limit.sizes:
        warn(
            "export.image_sizes_differ",
            "a server should resize images as the toolkit does, but a limit of pixels is not one of the longest side",
            place="export",
            value=f"{limit.sizes - limit.same} of {limit.sizes} image sizes differ",
            remedy=f"Reduce images to a longest side of {context.images.policy.max_side} pixels before a server.",
        )
    return limit


def _sizes(context: Context, refs: Iterable[ImageRef]) -> Iterator[tuple[int, int]]:
    """Yield the sizes of the readable images. Unreadable ones were counted before."""
    for ref in refs:
        try:
            yield read_image_header(ref, context.images.policy).size
        except ImageError:
            continue


_EXPORTS: Mapping[str, Callable[[ExportJob, Path, OutputFolder], FormatExport]] = {
    "adapter": lambda job, folder, output: export_adapter(job, output),
    "merged": lambda job, folder, output: export_merged(job, output),
    "gguf": lambda job, folder, output: export_gguf(job, folder / "merged", output),
}
"""Format -> its export. The folder is the parent of all formats."""


@dataclass(frozen=True, slots=True)
class _ExportPlan:
    """The formats of an export.

    Attributes:
        formats: formats to write, in order.
        earlier: the result of an earlier export of the same weights, with the formats that this one requests.
    """

    formats: Sequence[str]
    earlier: ExportResult


@dataclass(frozen=True, slots=True)
class _Target:
    """Where an export writes: ``out``, or the folder of the stage."""

    run: RunFolder
    out: Path | None
    force: bool

    @property
    def in_run(self) -> bool:
        """Return whether the export is that of the run."""
        return self.out is None

    @property
    def folder(self) -> Path:
        """Return the parent of the formats' folders."""
        return self.out.absolute() if self.out else self.run.stage_folder(EXPORT)

    @property
    def written(self) -> WrittenFolders:
        """Return the folders outside the run that its exports wrote."""
        return WrittenFolders(self.run.stage_folder(EXPORT) / WRITTEN)

    def output(self, name: str) -> OutputFolder:
        """Return the folder of a format. It is the run's own if it is in the run, or as the run wrote it."""
        folder = self.folder / name
        inside = folder.is_relative_to(self.run.path / "stages" / EXPORT)
        if inside:  # a folder that was changed is kept under another name
            own = folder.is_dir() and is_as_written(folder)
        else:
            own = folder.is_dir() and digest_of(folder) in self.written.digests(folder)
        return OutputFolder(folder, own=own, begun=inside or self.written.has(folder), force=inside or self.force)


def _weights(context: Context) -> Path:
    """Return the trained weights, and warn if they will not be verified. Raises ModelError as ``export``."""
    section = context.recipe.export_settings
    if context.weights is None:
        rule, remedy = "a run must be trained before it is exported", "Run `toolkit run` first."
        raise ModelError("export.nothing_trained", rule, place=context.run.path, remedy=remedy)
    if not section.verify:
        warn(
            "export.not_verified",
            "the exported weights are not verified and may answer differently from the run's model",
            place="export.verify",
            value=section.verify,
        )
    return context.weights


def _plan_export(context: Context, weights: Path, target: _Target) -> _ExportPlan:
    """Return the formats to write, without those that these weights do not support."""
    recipe, section = context.recipe, context.recipe.export_settings
    earlier = _earlier(context.run, weights, in_run=target.in_run)
    supported = _without_optional(section, recipe, weights)
    formats = _formats_in_order(supported, earlier, target.folder)
    requested = tuple(dict.fromkeys([*earlier.requested, *formats]))
    skipped = section.optional if supported != section else earlier.skipped
    if "adapter" in formats and recipe.model.tuning == "full":
        warn(
            "export.no_adapter_to_write",
            "full fine-tuning has no adapter, so only merged weights are written",
            place="export.to",
            value="adapter",
        )
        formats.remove("adapter")
    return _ExportPlan(formats, replace(earlier, requested=requested, skipped=skipped))


def _earlier(run: RunFolder, weights: Path, *, in_run: bool) -> ExportResult:
    """Return the result of an earlier export of the same weights. Its other formats stay valid."""
    earlier = run.result(EXPORT, ExportResult) if in_run and run.is_done(EXPORT) else None
    name = run.relative(weights)
    return earlier if earlier is not None and earlier.weights == name else ExportResult(name)


def _without_optional(section: Export, recipe: Recipe, weights: Path) -> Export:
    """Return the section without an optional format that the base does not support, with a warning."""
    if "gguf" not in formats_of(section) or not (is_adapter(weights) and section.optional):
        return section
    method = stored_quantized(base_source(recipe, weights), recipe.model)
    makeable = mergeable_formats(section, quantized=method is not None)
    if makeable != section:
        warn(
            "export.gguf_left_out",
            "no GGUF is written, because the base is stored quantized",
            place="export.optional",
            value=method,
            remedy="Set export.allow_dequantized = true to merge into dequantized weights.",
        )
    return makeable


def _formats_in_order(section: Export, earlier: ExportResult, folder: Path) -> list[str]:
    """Return the formats to write. GGUF is last, because it is converted from the merged weights."""
    wanted = formats_of(section)
    formats = [name for name in wanted if name != "gguf"]
    if "gguf" not in wanted:
        if section.optional:
            log.info("export: GGUF is skipped on this machine: %s", missing_requirement(section))
        return formats
    if "merged" not in formats and not _is_unchanged(earlier.merged, folder / "merged", verified=section.verify > 0):
        log.info("export: GGUF is converted from merged weights, which are written first")
        formats.append("merged")
    return [*formats, "gguf"]


def _is_unchanged(found: FormatExport | None, folder: Path, *, verified: bool) -> bool:
    """Return whether a format is unchanged since an earlier export, and verified if ``verified``."""
    if found is None or not folder.is_dir() or found.digest != digest_of(folder):
        return False
    return found.verification is not None or not verified


def _rename_outdated(folder: Path, keep: Collection[str]) -> None:
    """Rename formats in the run that no result of these weights has, because they may be of earlier weights."""
    formats = [name for name in _EXPORTS if name not in keep]
    for old in (folder / f"{name}{end}" for name in formats for end in ("", ".comparison.jsonl")):
        if old.exists():
            new = free_name(old)
            old.rename(new)
            warn(
                "export.outdated_renamed",
                f"an export of other weights, or an unfinished one, is now {new.name}",
                place=old,
            )


def _prepare(context: Context, weights: Path, outputs: dict[str, OutputFolder]) -> dict[str, OutputFolder]:
    """Return the folders after checking the disk space and preparing each of them."""
    if outputs:
        quant = context.recipe.export_settings.quant
        sizes = [format_bytes(name, weights, context.recipe.model, quant) for name in outputs]
        parent = next(iter(outputs.values())).target.parent
        require_disk_space(parent, sum(size or 0 for size in sizes), f"export of {' and '.join(outputs)}")
    for output in outputs.values():
        output.prepare()
    return outputs


def _verification_set(context: Context, processor: Any, samples: SampleSet) -> VerificationSet:
    """Return the first samples that fit into ``model.max_tokens``, with a warning about skipped ones."""
    recipe, section = context.recipe, context.recipe.export_settings
    prompts = Prompts.of(recipe, context.images)
    # The length of the completion is 0 here, because llama.cpp adds it to the context itself.
    unfit = prompt_checker(processor, prompts, recipe.model.max_tokens, 0)
    chosen: list[Sample] = []
    skipped: Counter[str] = Counter()
    for sample in samples:
        if len(chosen) == section.verify:
            break
        if reason := unfit(sample):
            skipped[reason] += 1
        else:
            chosen.append(sample)
    for reason, count in skipped.items():
        warn(
            "export.questions_replaced",
            f"the number of questions that verification skips should be 0: {reason}",
            place="export",
            value=count,
            remedy=SKIP_REMEDIES[reason],
        )
    if section.verify and not chosen:
        raise DataError(
            "export.no_question_fits",
            "at least one question for verification must fit into model.max_tokens",
            place="[model] max_tokens",
            value=recipe.model.max_tokens,
            remedy="Raise model.max_tokens, or set export.verify = 0.",
        )
    rows, is_held_out = [prompts.row(sample) for sample in chosen], samples is not context.data.train
    return VerificationSet(recipe, prompts.task, chosen, rows, is_held_out)
