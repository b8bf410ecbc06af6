"""Rows and pictures before a run: practice data written, rows read, pictures scanned, and all of it told."""

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from toolkit.data import Dropped
from toolkit.data.loading import DataSplits, SampleSet, load_data
from toolkit.errors import DataError, warn
from toolkit.images import ImageStore, ScanReport, scan
from toolkit.images.ref import ImageRef
from toolkit.recipe import SPLITS, Recipe
from toolkit.runfolder import Progress, Record, RunFolder, check_fingerprints, no_progress, read_json, write_json
from toolkit.tasks import TASKS

log = logging.getLogger(__name__)

EXAMPLES = 5


def prepare(recipe: Recipe, run: RunFolder, progress: Progress) -> tuple[DataSplits, ImageStore]:
    """The rows and pictures that the run's stages work with; their record is kept as the stage ``data``.

    Raises:
        DataError: a source, column or split is wrong, or nothing is left of a split.
        ImageError: pictures cannot be used and the recipe says ``unreadable = "stop"``; all of them are named.
        RunError: data or rewards changed since the run began.
    """
    data = read_rows(recipe, run.path / "phantom")
    fingerprints = {"data": data.fingerprint}
    if recipe.rewards.custom:
        fingerprints["rewards"] = fingerprint_rewards(recipe)
    check_fingerprints(run, fingerprints)
    for one in data.notices:
        warn(one.code, one.rule, place=one.place, value=one.value, remedy=one.remedy)
    images = image_store(recipe, data)
    report = scan_pictures(recipe, data, images, progress)
    log.info("%s", describe_scan(report))
    if recipe.images.unreadable != "stop":
        bad = sorted(f"{ref.path.name}#{ref.part}" for ref in report.bad_refs)
        check_fingerprints(run, {"unusable pictures": hashlib.blake2b(repr(bad).encode(), digest_size=16).hexdigest()})
    data = without_bad_pictures(recipe, data, report)
    run.mark_done("data", _record(data, report))
    return data, images


def look(recipe: Recipe, run: RunFolder) -> tuple[DataSplits, ImageStore]:
    """What ``prepare`` gave to another process of this run, read again; nothing is written or told.

    Raises:
        DataError, ImageError: as ``prepare``.
    """
    data = load_data(recipe, TASKS[recipe.dataset.task], run.path / "phantom" if recipe.dataset.phantom else None)
    images = image_store(recipe, data)
    if recipe.images.unreadable == "skip":
        data = without_bad_pictures(recipe, data, scan_pictures(recipe, data, images, no_progress))
    return data, images


def inspect_data(
    recipe: Recipe, progress: Progress, show: int = 0
) -> tuple[DataSplits, ScanReport, list[tuple[str, str]]]:
    """The rows, what a scan of all their pictures finds, and ``show`` training rows as the model sees them.

    The scan reports whatever the recipe says about unreadable pictures; shown are pairs of id and rendered text.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = read_rows(recipe, Path(folder))
        images = image_store(recipe, data)
        report = _scan(recipe, data, SPLITS, images, progress)
        return data, report, _rendered(recipe, data, images, show)


def _rendered(recipe: Recipe, data: DataSplits, images: ImageStore, count: int) -> list[tuple[str, str]]:
    if not count:
        return []
    from toolkit.models.rendered_rows import render_samples  # loads torch and transformers

    return list(render_samples(recipe, data.train[:count], images))


def read_rows(recipe: Recipe, phantom_folder: Path) -> DataSplits:
    """The recipe's splits; practice data are written into ``phantom_folder`` first.

    Raises:
        DataError: as ``load_data``.
    """
    task, phantom = TASKS[recipe.dataset.task], recipe.dataset.phantom
    if phantom is None or task.synthetic is None:
        return load_data(recipe, task)
    log.info("practice data: %s, %d rows to train on and %d to test", phantom.kind, phantom.train, phantom.test)
    written = phantom_folder / "written.json"  # last, so that what it tells of is whole
    wanted = {"seed": recipe.run.seed, **phantom.model_dump()}
    if not written.is_file() or read_json(written) != wanted:
        phantom_folder.mkdir(parents=True, exist_ok=True)
        task.synthetic.write(phantom_folder, phantom, recipe.run.seed)
        write_json(written, wanted)
    return load_data(recipe, task, phantom_folder)


def image_store(recipe: Recipe, data: DataSplits) -> ImageStore:
    """The store that gives the pictures of all splits."""
    roots = {samples.source.image_root for samples in _splits(data).values() if len(samples)}
    return ImageStore.from_recipe(recipe.images, sorted(roots))


def scan_pictures(recipe: Recipe, data: DataSplits, images: ImageStore, progress: Progress) -> ScanReport:
    """Check the pictures of the rows that the recipe's stages will use.

    Raises:
        ImageError: there are bad ones and the recipe says ``unreadable = "stop"``.
    """
    used = ["train"] if recipe.sft or recipe.grpo else []
    if recipe.evaluate or recipe.export:
        used.append(recipe.evaluate.split if recipe.evaluate else "test")
    report = _scan(recipe, data, used, images, progress)
    if recipe.images.unreadable == "stop":
        report.raise_if_bad()
    return report


def without_bad_pictures(recipe: Recipe, data: DataSplits, report: ScanReport) -> DataSplits:
    """The rows whose pictures can all be used, where the recipe says ``skip``; what is left out is counted.

    Raises:
        DataError: no row of a split is left.
    """
    if recipe.images.unreadable != "skip" or not report.bad:
        return data
    splits, dropped = _splits(data), list(data.dropped)
    for name, samples in splits.items():
        bad = [i for i, sample in enumerate(samples) if not report.bad_refs.isdisjoint(sample.images)]
        if not bad:
            continue
        examples = tuple(samples[i].id for i in bad[:EXAMPLES])
        dropped.append(Dropped(str(samples.source.file), "a picture cannot be used", len(bad), examples))
        rule = f"{len(bad):,} rows are skipped, because an image is unusable (for example {'; '.join(examples)})"
        warn("data.image_unusable", rule, place=samples.source.file)
        splits[name] = samples.take(np.delete(samples.rows, bad))
        if not len(splits[name]):
            raise DataError("data.no_usable_rows", "at least one row must have usable images", place=f"[data] {name}")
    return replace(data, **splits, dropped=tuple(dropped))  # type: ignore[arg-type]  # the splits are fields of DataSplits


def fingerprint_rewards(recipe: Recipe) -> str:
    """A digest of the user's own reward files."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({entry.rpartition(":")[0] for entry in recipe.rewards.custom}):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def describe_scan(report: ScanReport) -> str:
    """A scan in one line."""
    parts = [f"{count:,} {name}" for name, count in report.formats.items()]
    parts += [f"{count:,} of {bits} bits" for bits, count in report.bits.items()]
    if report.smallest and report.largest:
        parts.append("from {}x{} to {}x{} pixels".format(*report.smallest, *report.largest))
    if report.windowed:
        most = f" (at most {report.worst_clipped:.1%} of a picture)" if report.clipped else ""
        parts.append(
            f"{report.windowed:,} brought to 8 bits by a window, {report.clipped:,} with pixels outside it{most}"
        )
    head = f"pictures ({report.mode} scan): {report.checked:,} checked, {len(report.bad):,} unusable"
    return "; ".join([head, *parts])


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
        refs(), images, "full" if skips else recipe.images.scan, progress=lambda done: progress("pictures", done, 0)
    )
    progress("pictures", report.checked, report.checked)
    return report


def _record(data: DataSplits, report: ScanReport) -> Record:
    return {
        "rows": {name: len(samples) for name, samples in _splits(data).items()},
        "dropped": [asdict(one) for one in data.dropped],
        "leaks": [asdict(leak) for leak in data.leaks.leaks],
        "announcements": data.announcements,
        "pictures": {
            "scan": report.mode,
            "checked": report.checked,
            "formats": report.formats,
            "bits": report.bits,
            "windowed": report.windowed,
            "clipped": report.clipped,
            "worst_clipped": report.worst_clipped,
            "unusable": [
                {"path": bad.ref.path, "frame": bad.ref.frame, "problem": bad.error.rule} for bad in report.bad
            ],
        },
    }
