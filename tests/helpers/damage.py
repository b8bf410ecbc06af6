"""Weights and exports of a run as tests write them, and their damage."""

import os
from dataclasses import replace
from pathlib import Path

from toolkit.exporting.results import ExportResult
from toolkit.runfolder import RunFolder
from toolkit.runfolder.manifest import read_manifest, whole_digest, write_manifest


def write_weights(folder: Path) -> None:
    """Write a folder that counts as weights of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    write_manifest(folder)


def write_export(run: RunFolder, result: ExportResult) -> ExportResult:
    """Write a folder for each format of a made-up export, and return the result with their digests."""
    for export in result.formats.values():
        write_weights(run.path / export.folder)
        result = result.with_export(replace(export, digest=whole_digest(read_manifest(run.path / export.folder))))
    return result


def change_one_byte(file: Path) -> None:
    """Change a byte in the middle of a file, which keeps its size and its time of modification."""
    facts, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
