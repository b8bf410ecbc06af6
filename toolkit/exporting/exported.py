"""Resolve ``--model`` to weights: those of a run, one of its exports, or a path."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import RunError
from toolkit.evaluation.results import RESERVED_EVALUATION_NAMES
from toolkit.exporting.results import ExportResult
from toolkit.runfolder import EXPORT, RunFolder
from toolkit.runfolder.manifest import Damage, check_weights, find_damage

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]")
"""Characters that an evaluation's name must not contain."""
FORMATS = ("adapter", "merged")
GGUF = "gguf"
_EXPORT_AGAIN = "Restore the file, or export again with toolkit export."


@dataclass(frozen=True, slots=True)
class Exported:
    """Weights and their name in the table of results."""

    name: str
    weights: Path


def find_exported(run: RunFolder, model: str) -> Exported:
    """Return the weights that ``--model`` names.

    Args:
        run: the run.
        model: adapter, merged, gguf (the first exported quantization), a quantization such as q8_0, or a path of an
            adapter folder, a model folder or a GGUF file with its projector beside it.

    Raises:
        RunError: the weights do not exist, are damaged, or were exported before the last training stage.
    """
    files = _gguf_files(run)
    found = {name: run.path / "stages" / EXPORT / name for name in FORMATS}
    found |= {kind: run.path / "stages" / EXPORT / GGUF / file for kind, file in files.items()}
    if model == GGUF and files:
        model = next(iter(files))
    weights = found.get(model)
    if weights is None and model.strip() and model != GGUF:
        weights = Path(model).expanduser().absolute()
    if weights is None or not weights.exists():
        available = [name for name, path in found.items() if path.exists()]
        raise RunError(
            "run.exported_weights_missing",
            "the weights must exist",
            place=f"--model {model}",
            value=str(weights or model),
            remedy=f"Choose an exported format ({', '.join(available) or 'none'}), run toolkit export, or name a path.",
        )
    if model in found and (older := outdated(run)):
        raise RunError(
            "run.exported_weights_outdated",
            "exported weights must be those of the run's last training stage",
            place=f"--model {model}",
            value=f"made from {older}",
            remedy="Export again with toolkit export, or name the path of the outdated weights.",
        )
    digest = _digest(run, GGUF if model in files else model) if model in found else None
    check_weights(weights, own=model in found, digest=digest, remedy=_EXPORT_AGAIN)
    return Exported(model if model in found else _name_of(weights, found), weights)


def damaged_exports(run: RunFolder, result: ExportResult) -> dict[str, Damage]:
    """Return format -> a file of its export that is missing or changed."""
    found = {
        name: find_damage(run.path / export.folder, digest=export.digest) for name, export in result.formats.items()
    }
    return {name: damage for name, damage in found.items() if damage is not None}


def outdated(run: RunFolder) -> str | None:
    """Return the weights that the export was made from, if later weights exist. Otherwise None."""
    weights, last = run.result(EXPORT, ExportResult).weights if run.is_done(EXPORT) else None, run.trained_weights()
    return weights if weights is not None and last is not None and weights != run.relative(last) else None


def _digest(run: RunFolder, name: str) -> str | None:
    export = run.result(EXPORT, ExportResult).formats.get(name) if run.is_done(EXPORT) else None
    return None if export is None else export.digest


def _name_of(weights: Path, own: Mapping[str, Path]) -> str:
    """Return the name of weights at a path. The folder name is added if the name could be one of the run's own."""
    name = weights.name.removesuffix(".gguf")
    if (same := next((name for name, path in own.items() if path == weights), None)) is not None:
        return same if same in FORMATS else name
    taken = name in (*FORMATS, GGUF, *own, *RESERVED_EVALUATION_NAMES)
    return _UNUSUAL.sub("-", f"{weights.parent.name}-{name}" if taken else name).lstrip("._-") or "path"


def _gguf_files(run: RunFolder) -> dict[str, str]:
    """Return quantization -> file name of the exported GGUF files."""
    gguf = run.result(EXPORT, ExportResult).gguf if run.is_done(EXPORT) else None
    return {name: found.file for name, found in gguf.files.items()} if gguf else {}
