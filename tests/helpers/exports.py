"""Results of exports, made up and read back."""

from collections.abc import Mapping
from typing import Any

from toolkit.exporting.results import (
    AdapterExport,
    ExportResult,
    GgufExport,
    GgufFile,
    MeanScore,
    MergedExport,
    Verification,
)
from toolkit.models.llamacpp.files import GgufMetadata
from toolkit.runfolder import EXPORT, RunFolder


def export_of(run: RunFolder) -> ExportResult:
    """Return the result of a run's export."""
    return run.result(EXPORT, ExportResult)


def adapter_of(result: ExportResult) -> AdapterExport:
    """Return the exported adapter."""
    assert result.adapter is not None
    return result.adapter


def merged_of(result: ExportResult) -> MergedExport:
    """Return the exported merged weights."""
    assert result.merged is not None
    return result.merged


def gguf_of(result: ExportResult) -> GgufExport:
    """Return the exported GGUF files."""
    assert result.gguf is not None
    return result.gguf


def verified(export: AdapterExport | MergedExport | GgufExport | GgufFile) -> Verification:
    """Return the verification of an export that was verified."""
    assert export.verification is not None
    return export.verification


def make_verification(samples: int = 16, **changes: Any) -> Verification:
    """Return a verification in which all completions are equal. ``changes`` are other fields."""
    fields: dict[str, Any] = {"differing": 0, "gap": 0.0, "mean_gap": 0.0, "held_out": True}
    return Verification(samples, **{**fields, "score": MeanScore("accuracy", samples, 0.5), **changes})


def make_merged(verification: Verification | None = None, **changes: Any) -> MergedExport:
    """Return merged weights in the folder of the stage. ``changes`` are other fields."""
    fields: dict[str, Any] = {"folder": "stages/export/merged", "megabytes": 12.5, "digest": "", "commands": ()}
    fields |= {"bits": 16, "dequantized": False, "merge": None}
    return MergedExport(verification=verification, **{**fields, **changes})


def make_gguf(files: Mapping[str, GgufFile]) -> GgufExport:
    """Return GGUF files in the folder of the stage."""
    metadata = GgufMetadata("gemma3", 2048, 1024, "gemma3", 112)
    return GgufExport("stages/export/gguf", 2.0, "", (), files, "mmproj-x-f16.gguf", 0.5, metadata)
