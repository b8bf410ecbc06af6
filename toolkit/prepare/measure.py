"""Image sizes and mask regions, measured in parallel by worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from toolkit.errors import DataError, ImageError, RunError
from toolkit.images import ImagePolicy, ImageStore
from toolkit.images.ref import ImageRef
from toolkit.prepare.request import PrepareRequest
from toolkit.runfolder import StopRequest
from toolkit.scoring.regions import Mask, MaskReading, find_regions, fit_mask, read_mask, read_mask_file

BATCH = 16
MIN_PARALLEL = 64
"""With fewer images, measuring takes less time than starting worker processes."""

INVERTED = 0.5
"""A mask whose foreground is the whole border and more than this fraction of the image may be inverted."""

_HEADERS = ImageStore(ImagePolicy(), memory_mb=0)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """An image, its mask if it has one, and its masks of dermoscopic features by name."""

    image: Path
    mask: Path | None = None
    features: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MaskMeasurements:
    """Measurements of one image and its masks, in pixels of the image.

    Attributes:
        size: Width and height of the upright image.
        boxes: Bounding boxes of the regions of the mask, largest first. None without a mask, empty for an empty mask.
        polygons: Outlines of these regions. None and empty as for ``boxes``.
        area_fraction: Fraction of the image under the mask, in [0, 1].
        specks: Number of regions that are too small to be lesions.
        scaled: Whether the mask was resized to the size of the image.
        values: The values of a mask with several foreground values, with their pixels. Empty for other masks.
        rounded: Whether values at smoothed or compressed edges were set to the nearest value of an area.
        fills: Whether a box is the whole image.
        inverted: Whether the foreground is most of the image and its whole border, as in an inverted mask.
        features: Names of the features with a non-empty mask, sorted. None without any feature mask.
        problem: Why the image and its mask cannot be used. None if they can.
    """

    size: tuple[int, int]
    boxes: list[list[int]] | None = None
    polygons: list[list[list[int]]] | None = None
    area_fraction: float | None = None
    specks: int = 0
    scaled: bool = False
    values: str = ""
    rounded: bool = False
    fills: bool = False
    inverted: bool = False
    features: list[str] | None = None
    problem: str | None = None


Cell = str | float | Sequence["Cell"] | None
"""A JSON value in a row."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image of a dataset with its diagnosis (empty if unknown), its group, and the columns of its row."""

    name: str
    diagnosis: str
    group: str
    files: ImageFiles
    found: MaskMeasurements
    columns: Mapping[str, Cell]


def measure_all(files: Sequence[ImageFiles], request: PrepareRequest) -> list[MaskMeasurements]:
    """Return the measurements of all images, in order.

    Raises:
        Interrupted: A signal requested a stop.
        RunError: A worker process ended unexpectedly.
    """
    measured = []
    with StopRequest(request.notify) as stop, closing(_measure_parallel(files, request, stop)) as results:
        for result in results:
            measured.append(result)
            request.progress("masks", len(measured), len(files))
            stop.check(f"{len(measured):,} of {len(files):,} images are measured")
    return measured


def measure(files: ImageFiles, reading: MaskReading = "two") -> MaskMeasurements:
    """Return the size from the image's header and the regions of its masks, which are read as ``reading`` says."""
    try:
        size = _HEADERS.read_header(ImageRef(files.image)).size
        found = MaskMeasurements(size, features=_features(files.features))
        return found if files.mask is None else _measure_file(files.mask, found, reading)
    except (ImageError, DataError) as error:
        return MaskMeasurements((0, 0), problem=str(error.problem))


def _measure_file(file: Path, found: MaskMeasurements, reading: MaskReading) -> MaskMeasurements:
    """Add the regions of a mask file to the measurements of its image."""
    stored = read_mask_file(file)
    masks = stored.masks(reading)
    height, width = masks[0].shape
    fitted = [mask for mask in (fit_mask(mask, found.size) for mask in masks) if mask is not None]
    if not fitted:
        sizes = f"mask {width} x {height}, image {found.size[0]} x {found.size[1]}"
        rule, remedy = "a mask must have the aspect ratio of its image", "Replace the mask or the image."
        raise DataError("data.mask_aspect_ratio_differs", rule, place=file, value=sizes, remedy=remedy)
    return replace(
        _measure_masks(fitted, found),
        scaled=(width, height) != found.size,
        values=stored.counts if stored.is_ambiguous else "",
        rounded=stored.rounded,
    )


def _measure_masks(masks: Sequence[Mask], found: MaskMeasurements) -> MaskMeasurements:
    """Add the regions of all masks of one image, largest first."""
    parts = [find_regions(mask) for mask in masks]
    regions = sorted((region for own, _ in parts for region in own), key=lambda region: -region.area)
    whole: Mask = np.any(masks, axis=0)
    fraction = np.count_nonzero(whole) / whole.size
    return replace(
        found,
        boxes=[[int(edge) for edge in region.box] for region in regions],
        polygons=[[[int(x), int(y)] for x, y in region.polygon] for region in regions],
        area_fraction=fraction,
        specks=sum(specks for _, specks in parts),
        fills=any(region.box == (0, 0, *found.size) for region in regions),
        inverted=bool(fraction > INVERTED) and _covers_border(whole),
    )


def _covers_border(mask: Mask) -> bool:
    return bool(mask[[0, -1]].all() and mask[:, [0, -1]].all())


def _features(masks: Mapping[str, Path]) -> list[str] | None:
    return sorted(name for name, file in masks.items() if read_mask(file, "any").any()) if masks else None


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure_parallel(
    files: Sequence[ImageFiles], request: PrepareRequest, stop: StopRequest
) -> Generator[MaskMeasurements]:
    workers = min(request.workers or usable_cores(), -(-len(files) // BATCH))
    if workers <= 1 or len(files) < MIN_PARALLEL:
        yield from (measure(one, request.mask_values) for one in files)
        return
    # The progress bar runs in a thread, and a fork of a process with threads can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
    try:
        batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
        for batch in pool.map(partial(_measure_batch, reading=request.mask_values), batches):
            yield from batch
    except BrokenProcessPool as error:
        stop.check("the worker processes have ended")
        rule = "a worker process that measures masks must not end early"
        remedy = "Run the same command with --workers 1 to find the image that causes it."
        raise RunError("data.worker_ended", rule, value=str(error), remedy=remedy) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _measure_batch(files: Sequence[ImageFiles], reading: MaskReading) -> list[MaskMeasurements]:
    return [measure(one, reading) for one in files]


def _begin_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, use one core, and exit when the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_with, args=(parent.join,), daemon=True).start()


def _exit_with(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)
