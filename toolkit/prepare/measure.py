"""Image sizes and mask regions, measured in parallel by worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from toolkit.errors import DataError, ImageError, RunError
from toolkit.images import ImagePolicy, ImageStore
from toolkit.images.ref import ImageRef
from toolkit.prepare.request import PrepareRequest, usable_cores
from toolkit.runfolder import StopRequest
from toolkit.scoring.regions import Mask, find_regions, fit_mask, read_mask

BATCH = 16
MIN_PARALLEL = 64
"""With fewer images, measuring takes less time than starting worker processes."""

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
        features: Names of the features with a non-empty mask, sorted. None without any feature mask.
        problem: Why the image and its mask cannot be used. None if they can.
    """

    size: tuple[int, int]
    boxes: list[list[int]] | None = None
    polygons: list[list[list[int]]] | None = None
    area_fraction: float | None = None
    specks: int = 0
    scaled: bool = False
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


def measure(files: ImageFiles) -> MaskMeasurements:
    """Return the size from the image's header and the regions of its masks."""
    try:
        size = _HEADERS.read_header(ImageRef(files.image)).size
        features = _features(files.features)
        mask = None if files.mask is None else read_mask(files.mask)
    except (ImageError, DataError) as error:
        return MaskMeasurements((0, 0), problem=f"{error.place}: {error.rule}")
    if mask is None:
        return MaskMeasurements(size, features=features)
    mask_size, fitted = (mask.shape[1], mask.shape[0]), fit_mask(mask, size)
    if fitted is None:
        sizes = f"mask {mask_size[0]} x {mask_size[1]}, image {size[0]} x {size[1]}"
        rule = "a mask must have the aspect ratio of its image"
        return MaskMeasurements(size, problem=f"{files.mask}: {rule} (got {sizes})")
    return _measure_mask(fitted, features, scaled=mask_size != size)


def _measure_mask(mask: Mask, features: list[str] | None, *, scaled: bool) -> MaskMeasurements:
    regions, specks = find_regions(mask)
    height, width = mask.shape
    return MaskMeasurements(
        size=(width, height),
        boxes=[[int(edge) for edge in region.box] for region in regions],
        polygons=[[[int(x), int(y)] for x, y in region.polygon] for region in regions],
        area_fraction=np.count_nonzero(mask) / mask.size,
        specks=specks,
        scaled=scaled,
        features=features,
    )


def _features(masks: Mapping[str, Path]) -> list[str] | None:
    return sorted(name for name, file in masks.items() if read_mask(file).any()) if masks else None


def _measure_parallel(
    files: Sequence[ImageFiles], request: PrepareRequest, stop: StopRequest
) -> Generator[MaskMeasurements]:
    workers = min(request.workers or usable_cores(), -(-len(files) // BATCH))
    if workers <= 1 or len(files) < MIN_PARALLEL:
        yield from map(measure, files)
        return
    # The progress bar runs in a thread, and a fork of a process with threads can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
    try:
        batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
        for batch in pool.map(_measure_batch, batches):
            yield from batch
    except BrokenProcessPool as error:
        stop.check("the worker processes have ended")
        rule = "a worker process that measures masks must not end early"
        remedy = "Run the same command with --workers 1 to find the image that causes it."
        raise RunError("data.worker_ended", rule, value=str(error), remedy=remedy) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _measure_batch(files: Sequence[ImageFiles]) -> list[MaskMeasurements]:
    return [measure(one) for one in files]


def _begin_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, use one core, and exit when the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_with, args=(parent.join,), daemon=True).start()


def _exit_with(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)
