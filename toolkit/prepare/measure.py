"""Many pictures measured by all cores; what is done is kept, so that an interrupted call goes on."""

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path

import cv2

from toolkit.errors import RunError, warn
from toolkit.prepare.masks import Job, Measured, measure
from toolkit.prepare.request import Request, usable_cores
from toolkit.runfolder import StopRequest, read_lines, remove_partial_line

log = logging.getLogger(__name__)

PARTIAL = "measured.partial.jsonl"
"""The file in the folder of a request that holds what an interrupted call has measured."""

BATCH = 16
FEW = 64
"""Fewer pictures than this are measured here: processes would take longer to start."""


def measure_all(jobs: Sequence[Job], request: Request) -> list[Measured]:
    """Every job measured, in order. Results lie in ``PARTIAL`` until ``forget`` is called; problems are not kept.

    Raises:
        Interrupted: a signal asked to stop; what is measured is kept.
        RunError: a worker process ended by itself.
    """
    partial = request.out / PARTIAL
    known = _read_partial(partial)
    keys = [_key(job) for job in jobs]
    open_jobs = [(key, job) for key, job in zip(keys, jobs, strict=True) if key not in known]
    done = len(jobs) - len(open_jobs)
    if known:
        log.info("%d of %d pictures were measured before", done, len(jobs))
    with (
        StopRequest(request.notify) as stop,
        closing(_measured([job for _, job in open_jobs], request, stop)) as results,
        partial.open("a", encoding="utf-8", newline="\n") as kept,
    ):
        for (key, _), found in zip(open_jobs, results, strict=True):
            known[key] = found
            if found.problem is None:
                kept.write(json.dumps({"key": key, "measured": found.as_json()}) + "\n")
                kept.flush()
            done += 1
            request.progress("masks", done, len(jobs))
            stop.check(f"{done:,} of {len(jobs):,} pictures are measured")
    return [known[key] for key in keys]


def forget(out: Path) -> None:
    """Remove what was kept for going on."""
    (out / PARTIAL).unlink(missing_ok=True)


def _measured(jobs: Sequence[Job], request: Request, stop: StopRequest) -> Generator[Measured]:
    workers = min(request.workers or usable_cores(), -(-len(jobs) // BATCH))
    if workers <= 1 or len(jobs) < FEW:
        yield from map(measure, jobs)
        return
    # Forking a process that draws progress in a thread may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
    try:
        batches = [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]
        for batch in pool.map(_measure_batch, batches):
            yield from batch
    except BrokenProcessPool as error:
        stop.check("what was measured is kept")
        rule = "a worker process that measures masks must not end early"
        remedy = "Run the same command again to resume. Use --workers 1 to find the image that causes it."
        raise RunError("data.worker_ended", rule, value=str(error), remedy=remedy) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _measure_batch(jobs: Sequence[Job]) -> list[Measured]:
    return [measure(job) for job in jobs]


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, one core to this process, and go when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_leave_with, args=(parent.join,), daemon=True).start()


def _leave_with(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)


def _key(job: Job) -> str:
    """Changes with every file that the result depends on."""
    files = [job.image, job.mask, *job.features.values()]
    return json.dumps([_file_key(file) for file in files if file is not None])


def _file_key(file: Path) -> list[str | int]:
    try:
        facts = file.stat()
    except OSError:
        return [str(file)]
    return [str(file), facts.st_size, facts.st_mtime_ns]


def _read_partial(partial: Path) -> dict[str, Measured]:
    partial.parent.mkdir(parents=True, exist_ok=True)
    remove_partial_line(partial)
    try:
        return {line["key"]: Measured(**line["measured"]) for line in read_lines(partial)}
    except (ValueError, TypeError, KeyError) as error:
        rule = "the partial results must be readable, so all images are measured again"
        warn("data.partial_results_damaged", rule, place=partial, value=str(error))
        partial.unlink()
        return {}
