"""The result of an export, as ``stages/export/done.json`` and results.json store it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from toolkit.models.backend import MergeComparison
from toolkit.models.llamacpp.files import GgufMetadata


@dataclass(frozen=True, slots=True)
class MeanScore:
    """The mean of a score over the ``n`` completions to which it applies. ``value`` is None if n is 0."""

    name: str
    n: int
    value: float | None


@dataclass(frozen=True, slots=True)
class Verification:
    """The difference between the reloaded export and the weights that it was made from.

    Attributes:
        samples: number of samples.
        differing: number of samples with different completions.
        gap: largest difference of a token's log-probability.
        mean_gap: mean difference of a token's log-probability.
        score: the task's primary score of the reloaded export on these samples.
        held_out: False if no held-out samples exist, so that these are training samples.
    """

    samples: int
    differing: int
    gap: float
    mean_gap: float
    score: MeanScore
    held_out: bool


@dataclass(frozen=True, slots=True)
class AdapterExport:
    """An exported adapter.

    Attributes:
        folder: its folder, relative to the run folder if it is in the run.
        megabytes: size of the folder, without the model card.
        digest: digest of all files except the model card.
        commands: shell commands that serve it. ``{folder}`` is the placeholder of the folder.
        bits: bits of the base weights.
        verification: None: it is not verified.
    """

    format: ClassVar[str] = "adapter"
    folder: str
    megabytes: float
    digest: str
    commands: tuple[str, ...]
    bits: int
    verification: Verification | None


@dataclass(frozen=True, slots=True)
class MergedExport:
    """Exported merged weights, or those of full fine-tuning.

    Attributes:
        folder: see ``AdapterExport``.
        megabytes: see ``AdapterExport``.
        digest: see ``AdapterExport``.
        commands: see ``AdapterExport``.
        bits: bits of the weights.
        dequantized: whether the base is stored quantized and was dequantized. Its quantization error remains.
        merge: comparison of the merged matrices with base and adapter. None: peft merged in memory.
        verification: None: they are not verified.
    """

    format: ClassVar[str] = "merged"
    folder: str
    megabytes: float
    digest: str
    commands: tuple[str, ...]
    bits: int
    dequantized: bool
    merge: MergeComparison | None
    verification: Verification | None


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One exported quantization: its language model, compared with the merged weights."""

    file: str
    megabytes: float
    bits: float
    verification: Verification | None


@dataclass(frozen=True, slots=True)
class GgufExport:
    """Exported GGUF files.

    Attributes:
        folder: see ``AdapterExport``.
        megabytes: see ``AdapterExport``.
        digest: see ``AdapterExport``.
        commands: see ``AdapterExport``.
        files: quantization -> language model.
        mmproj: file name of the projector.
        mmproj_megabytes: its size.
        metadata: metadata of the files, which were compared with the model.
    """

    format: ClassVar[str] = "gguf"
    folder: str
    megabytes: float
    digest: str
    commands: tuple[str, ...]
    files: Mapping[str, GgufFile]
    mmproj: str
    mmproj_megabytes: float
    metadata: GgufMetadata

    @property
    def verification(self) -> Verification | None:
        """Return the verification of the file with the most different completions. None: they are not verified."""
        found = [file.verification for file in self.files.values() if file.verification is not None]
        return max(found, key=lambda one: one.differing, default=None)


FormatExport = AdapterExport | MergedExport | GgufExport


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The result of an export.

    Attributes:
        weights: the exported weights, relative to the run folder if they are in the run.
        requested: formats that were requested in this export or an earlier one of the same weights.
        skipped: optional formats that the base does not support.
        adapter: None: no adapter was exported.
        merged: None: no merged weights were exported.
        gguf: None: no GGUF was exported.
        pushed: address of the commit on the Hub. None: nothing was pushed.
    """

    weights: str
    requested: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    adapter: AdapterExport | None = None
    merged: MergedExport | None = None
    gguf: GgufExport | None = None
    pushed: str | None = None

    @property
    def formats(self) -> Mapping[str, FormatExport]:
        """Return format -> its export, of the exported formats."""
        found = {"adapter": self.adapter, "merged": self.merged, "gguf": self.gguf}
        return {name: export for name, export in found.items() if export is not None}

    def with_export(self, export: FormatExport) -> "ExportResult":
        """Return the result with this format in place of its earlier export."""
        match export:
            case AdapterExport():
                return replace(self, adapter=export)
            case MergedExport():
                return replace(self, merged=export)
            case GgufExport():
                return replace(self, gguf=export)
