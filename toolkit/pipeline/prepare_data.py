"""Prepare the data of a run: generate synthetic data, read rows, scan images, and report what was found."""

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.data import RowCount
from toolkit.data.index import OWN_INDEX
from toolkit.data.loading import DataSplits, load_data
from toolkit.data.result import DataResult, ImageScan, UnusableImage, source_times
from toolkit.data.sample import rows_of_images
from toolkit.data.sample_set import SampleSet
from toolkit.errors import DataError, ImageError, shorten, warn
from toolkit.identifiers import Description, hidden_id
from toolkit.images import ImageStore, ScanReport, scan
from toolkit.images.ref import ImageRef
from toolkit.models.chat_template import read_template
from toolkit.models.image_sizes import ProcessorSizes
from toolkit.pipeline.image_files import check_image_files
from toolkit.recipe import SPLITS, Recipe
from toolkit.runfolder import Progress, RunFolder, check_fingerprints, no_progress, read_saved, write_json
from toolkit.runfolder.cache import cache_folder, tidy_cache
from toolkit.tasks import TASKS

log = logging.getLogger(__name__)

EXAMPLES = 5
"""Row ids in a warning."""


def prepare(recipe: Recipe, run: RunFolder, progress: Progress) -> tuple[DataSplits, ImageStore]:
    """Validate the rows and images of a run, and save the result as the stage ``data``.

    Returns:
        The splits, and the store of their images.

    Raises:
        DataError: a source, column or split is invalid, or a split has no usable rows.
        ImageError: images are unusable and the recipe has ``unreadable = "stop"``. All of them are listed.
        RunError: data, images or rewards changed since the run started.
    """
    data = read_rows(recipe, run.path / "synthetic")
    fingerprints = {"data": data.fingerprint}
    if recipe.rewards.custom:
        fingerprints["rewards"] = fingerprint_rewards(recipe)
    if recipe.prompt.chat_template is not None:
        digest = hashlib.blake2b(read_template(recipe.prompt.chat_template).encode(), digest_size=16)
        fingerprints["chat template"] = digest.hexdigest()
    check_fingerprints(run, fingerprints)
    for source in data.sources:
        log.info("%s", source)
    for one in data.warnings:
        warn(one.code, one.rule, place=one.place, value=one.value, remedy=one.remedy)
    images = image_store(recipe, data)
    report = scan_images(recipe, data, images, progress)
    log.info("%s", describe_scan(report))
    for note in report.notes:
        warn(note.code, note.rule, place="[images]")
    if recipe.images.unreadable != "stop":
        bad = sorted(f"{ref.path.name}#{ref.part}" for ref in report.bad_refs)
        check_fingerprints(run, {"unusable images": hashlib.blake2b(repr(bad).encode(), digest_size=16).hexdigest()})
    used = {name: samples for name, samples in _splits(data).items() if name in _used_splits(recipe)}
    check_image_files(run, used, full=report.mode == "full")
    data = without_unusable_images(recipe, data, report)
    run.mark_done("data", summarise_data(data, report, source_times(recipe)))
    tidy_cache(cache_folder())
    return data, images


def look(recipe: Recipe, run: RunFolder) -> tuple[DataSplits, ImageStore]:
    """Return the rows and images that ``prepare`` returned to the main process. Nothing is written or logged.

    Raises:
        DataError, ImageError: as in ``prepare``.
    """
    synthetic_folder = run.path / "synthetic" if recipe.dataset.synthetic else None
    data = load_data(recipe, TASKS[recipe.dataset.task], synthetic_folder)
    images = image_store(recipe, data)
    if recipe.images.unreadable == "skip":
        data = without_unusable_images(recipe, data, scan_images(recipe, data, images, no_progress))
    return data, images


def inspect_data(
    recipe: Recipe, progress: Progress, show: int = 0
) -> tuple[DataSplits, ScanReport, list[tuple[str, str]]]:
    """Read the rows of a recipe and scan all of their images.

    Args:
        recipe: the recipe.
        progress: called with the progress of the scan.
        show: number of training rows to render.

    Returns:
        The splits, the report of the scan (whatever the recipe says about unreadable images), and pairs of id and
        rendered text.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = read_rows(recipe, Path(folder))
        images = image_store(recipe, data)
        report = _scan(recipe, data, SPLITS, images, progress)
        tidy_cache(cache_folder())
        return data, report, _render_rows(recipe, data, images, show)


def _render_rows(recipe: Recipe, data: DataSplits, images: ImageStore, count: int) -> list[tuple[str, str]]:
    if not count:
        return []
    from toolkit.models.prompts import render_samples  # imports torch and transformers

    return list(render_samples(recipe, data.train[:count], images))


def read_rows(recipe: Recipe, synthetic_folder: Path) -> DataSplits:
    """Return the splits of a recipe. Synthetic data is first written to ``synthetic_folder``.

    Raises:
        DataError: as in ``load_data``.
    """
    task, synthetic = TASKS[recipe.dataset.task], recipe.dataset.synthetic
    if synthetic is None or task.synthetic is None:
        return load_data(recipe, task)
    log.info("synthetic data: %s, %d training rows and %d test rows", synthetic.kind, synthetic.train, synthetic.test)
    written = synthetic_folder / "written.json"  # written last, so that it exists only if the data is complete
    settings = {"seed": recipe.run.seed, **synthetic.model_dump()}
    if read_saved(written) != settings:
        (synthetic_folder / OWN_INDEX).mkdir(parents=True, exist_ok=True)
        task.synthetic.write(synthetic_folder, synthetic, recipe.run.seed)
        write_json(written, settings)
    return load_data(recipe, task, synthetic_folder)


def image_store(recipe: Recipe, data: DataSplits) -> ImageStore:
    """Return the store of the images of all splits."""
    roots = {samples.origin.image_root for samples in _splits(data).values() if len(samples)}
    return ImageStore.from_recipe(recipe.images, recipe.model, sorted(roots), ProcessorSizes(recipe.model))


def scan_images(recipe: Recipe, data: DataSplits, images: ImageStore, progress: Progress) -> ScanReport:
    """Scan the images of the rows that the recipe's stages use.

    Raises:
        ImageError: images are unusable and the recipe has ``unreadable = "stop"``.
    """
    report = _scan(recipe, data, _used_splits(recipe), images, progress)
    if recipe.images.unreadable == "stop":
        report.raise_if_bad()
    return report


def without_unusable_images(recipe: Recipe, data: DataSplits, report: ScanReport) -> DataSplits:
    """Return the rows whose images are usable, if the recipe skips the others. Skipped rows are counted.

    Raises:
        DataError: a split has no usable rows.
    """
    if recipe.images.unreadable != "skip" or not report.bad:
        return data
    splits, dropped = _splits(data), list(data.dropped)
    errors = {one.ref: one.error for one in report.bad}
    for name, samples in splits.items():
        bad = [i for i, sample in enumerate(samples) if not report.bad_refs.isdisjoint(sample.images)]
        if not bad:
            continue
        one = _with_unusable_images(samples, bad, errors)
        dropped.append(one)
        notice = one.notice("left out")
        warn(notice.code, notice.rule, place=notice.place, remedy=notice.remedy)
        splits[name] = samples.take(np.delete(samples.rows, bad))
        if not len(splits[name]):
            rule, remedy = "at least one row must have usable images", "Correct the images that the log lists."
            raise DataError("data.no_usable_rows", rule, place=f"[data] {name}", remedy=remedy)
    return replace(data, **splits, dropped=tuple(dropped))  # type: ignore[arg-type]  # the splits are fields of DataSplits


def _with_unusable_images(samples: SampleSet, bad: Sequence[int], errors: Mapping[ImageRef, ImageError]) -> RowCount:
    """Return the rows at these positions as unusable rows. The value of a row is the error of its first such image."""
    shown = [samples[number] for number in bad[:EXAMPLES]]
    first = [next(errors[image] for image in sample.images if image in errors) for sample in shown]
    values = tuple(shorten(Description(error.rule)) for error in first)
    places = tuple(samples.table.place(int(samples.rows[number])) for number in bad[:EXAMPLES])
    source, remedy = str(samples.origin.file), first[0].remedy
    return RowCount(source, "an image is unusable", len(bad), places, "data.image_unusable", values, remedy)


def fingerprint_rewards(recipe: Recipe) -> str:
    """Return a digest of the files with custom rewards."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({entry.rpartition(":")[0] for entry in recipe.rewards.custom}):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def describe_scan(report: ScanReport) -> str:
    """Return the report of a scan in one line."""
    parts = [f"{count:,} {name}" for name, count in report.formats.items()]
    parts += [f"{count:,} with {bits} bits" for bits, count in report.bits.items()]
    if report.smallest and report.largest:
        parts.append("from {}x{} to {}x{} pixels".format(*report.smallest, *report.largest))
    if report.windowed:
        most = f" (at most {report.worst_clipped:.1%} of an image)" if report.clipped else ""
        parts.append(f"{report.windowed:,} windowed to 8 bits, {report.clipped:,} with pixels outside the window{most}")
    if report.nonfinite:
        parts.append(f"{report.nonfinite:,} with NaN (black) or infinite values")
    if report.transparent:
        parts.append(f"{report.transparent:,} with transparent pixels, which are shown over black")
    head = f"images ({report.mode} scan): {report.checked:,} checked, {len(report.bad):,} unusable"
    return ", ".join([head, *parts])


def _used_splits(recipe: Recipe) -> list[str]:
    """Return the splits that the recipe's stages use."""
    used = ["train"] if recipe.training else []
    if recipe.evaluate or recipe.export:
        used.append(recipe.evaluate.split if recipe.evaluate else "test")
    if recipe.validation and "validation" not in used:
        used.append("validation")
    return used


def _splits(data: DataSplits) -> dict[str, SampleSet]:
    return {name: getattr(data, name) for name in SPLITS}


def _scan(
    recipe: Recipe, data: DataSplits, splits: Iterable[str], images: ImageStore, progress: Progress
) -> ScanReport:
    def refs() -> Iterator[ImageRef]:
        for name in splits:
            for sample in _splits(data)[name]:
                yield from sample.images

    skips = recipe.images.unreadable == "skip"
    report = scan(
        refs(), images, "full" if skips else recipe.images.scan, progress=lambda done: progress("images", done, 0)
    )
    progress("images", report.checked, report.checked)
    return report.with_rows(_first_rows(data, splits, report))


def _first_rows(data: DataSplits, splits: Iterable[str], report: ScanReport) -> dict[ImageRef, str]:
    """Return the place of the first row of each image that the report names."""
    return rows_of_images((sample for name in splits for sample in _splits(data)[name]), report.shown_refs)


def summarise_data(data: DataSplits, report: ScanReport, sources: Mapping[str, int]) -> DataResult:
    """Return the counts and findings of rows and images. ``sources`` are those of ``source_times``."""
    return DataResult(
        rows={name: len(samples) for name, samples in _splits(data).items()},
        dropped=data.dropped,
        leaks=data.leaks.leaks,
        warnings=(*data.warning_texts, *(note.rule for note in report.notes)),
        images=ImageScan(
            scan=report.mode,
            checked=report.checked,
            formats=report.formats,
            bits=report.bits,
            windowed=report.windowed,
            clipped=report.clipped,
            worst_clipped=report.worst_clipped,
            unusable=tuple(
                UnusableImage(hidden_id(bad.ref.path), bad.ref.frame, bad.error.rule, bad.row) for bad in report.bad
            ),
        ),
        found=data.found,
        group_columns=data.group_columns,
        sources=sources,
        whole=tuple(dict.fromkeys(column for samples in _splits(data).values() for column in samples.origin.whole)),
    )
