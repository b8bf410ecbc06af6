"""The section of data: rows of each split, unusable rows, leaks between splits, and the scan of the images."""

from collections.abc import Mapping

from toolkit.data.result import DataResult, ImageScan
from toolkit.models.model_paths import public_name
from toolkit.reporting.blocks import Block, Section, Table, Text
from toolkit.reporting.finished_run import FinishedRun

LEAKS: Mapping[str, str] = {"group": "groups", "image": "images", "question": "image and question"}
"""Kind of a leak -> what two splits have in common."""


def data_section(run: FinishedRun) -> Section | None:
    """Return what reading the rows and scanning the images found. None: the data stage has not finished."""
    if run.data is None:
        return None
    data = run.data
    splits = Table.of(("split", "rows"), [(split, f"{rows:,}") for split, rows in data.rows.items()])
    blocks: list[Block] = [splits, _leaks(data), _images(data.images)]
    if data.dropped:
        rows = [(public_name(one.source), one.reason, f"{one.count:,}") for one in data.dropped]
        blocks.insert(1, Table.of(("source", "reason", "rows"), rows, "Rows that were left out", 2))
    if data.warnings:
        blocks += [Text(f"{len(data.warnings):,} warnings about the data are in log.txt.")]
    return Section("data", "Data and leakage", tuple(blocks))


def _leaks(data: DataResult) -> Block:
    if not data.leaks:
        return Text("No group, image, or pair of image and question is in two splits.")
    rows = [(one.first, one.second, LEAKS[one.kind], f"{one.count:,}") for one in data.leaks]
    return Table.of(("split", "other split", "in common", "number"), rows, "Leaks between splits", 3)


def _images(scan: ImageScan) -> Table:
    rows = [("checked", f"{scan.checked:,} ({scan.scan} scan)"), ("unusable", f"{len(scan.unusable):,}")]
    rows += [(name, f"{count:,}") for name, count in scan.formats.items()]
    rows += [(f"{bits} bits", f"{count:,}") for bits, count in scan.bits.items()]
    if scan.windowed:
        clipped = f"{scan.clipped:,} with pixels outside the window, at most {scan.worst_clipped:.1%} of an image"
        rows.append(("windowed to 8 bits", f"{scan.windowed:,}; {clipped}"))
    return Table.of(("images", "number"), rows, "Images")
