"""Disk space that a run needs, compared with the free space."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.errors import Problem
from toolkit.models.llamacpp import formats_of, max_bytes
from toolkit.models.model_paths import model_source, writes_merged
from toolkit.planning.architecture import FLOAT, Architecture
from toolkit.planning.findings import PlanFinding
from toolkit.planning.model_files import Repository, State
from toolkit.planning.stages import Setting, Stage
from toolkit.planning.weights import optimizer_bytes, trained_parameters, weight_bytes
from toolkit.recipe import Export, Recipe

SPARE = 10**9
"""Bytes that should stay free for logs, completions and the caches of rows and images."""
PROCESSOR = 40 * 10**6
"""Approximate bytes of a tokenizer and image processor, which are stored with each copy of the weights. The figure is
used if the files of the model are not available."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Most bytes that the run folder needs, by part, and the free space on its disk.

    Attributes:
        parts: Maps each part of the run folder to its bytes.
        free: The free bytes on the disk of the run folder.
        downloads: Maps each repository to the bytes that are downloaded into the Hub's cache.
        cache: The folder of that cache.
        cache_free: The free bytes on the cache's disk.
    """

    parts: Mapping[str, int]
    free: int
    downloads: Mapping[str, int] = field(default_factory=dict)
    cache: Path = Path()
    cache_free: int = 0

    @property
    def needed(self) -> int:
        """Return the sum of all parts."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, object]:
        """Return parts in bytes, and sizes in GB."""
        return {
            "parts": dict(self.parts),
            "needed_gb": round(self.needed / 1e9, 2),
            "free_gb": round(self.free / 1e9, 2),
            "downloads": dict(self.downloads),
            "downloads_free_gb": round(self.cache_free / 1e9, 2),
        }


@dataclass(frozen=True, slots=True)
class Downloads:
    """Sources of the parameters: whether the model is available, and the repository that replaces it."""

    own: State
    repository: Repository | None = None


def plan_disk(
    recipe: Recipe, model: Architecture, settings: Mapping[Stage, Setting], downloads: Downloads | None = None
) -> Disk:
    """Return the disk space of checkpoints, weights of each stage, and exports, from parameter counts.

    A checkpoint has the trained parameters and the optimizer state. While one is written, ``run.keep_checkpoints``
    others exist, and with [validation] the best one. Merged weights, which a GGUF file is made from, take 2 bytes for
    each parameter.
    """
    parts: dict[str, int] = {}
    processor, kept = _processor_bytes(recipe), int(recipe.validation is not None)
    for name, setting in settings.items():
        if setting.trains:
            weights = _trained_bytes(model, setting)
            each = weights + optimizer_bytes(model, setting)
            parts[f"{name} checkpoints"] = (recipe.run.keep_checkpoints + 1 + kept) * (each + processor)
            parts[f"{name} weights"] = weights + processor
    section, trained = recipe.export or Export(to=()), next((one for one in settings.values() if one.trains), None)
    formats = formats_of(section)
    if "adapter" in formats and trained is not None and trained.tuning == "lora":
        parts["export adapter"] = _trained_bytes(model, trained) + processor
    if writes_merged(recipe):
        parts["export merged"] = 2 * model.parameters + processor
    if "gguf" in formats:
        parts["export gguf"] = max_bytes(model.parameters, section.quant)
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free, cache_free = (
        shutil.disk_usage(_existing(place)).free for place in (recipe.run_folder.absolute(), cache.absolute())
    )
    fetched = _downloads(recipe, model, settings, downloads) if downloads else {}
    return Disk(parts, free, fetched, cache, cache_free)


def _downloads(
    recipe: Recipe, model: Architecture, settings: Mapping[Stage, Setting], downloads: Downloads
) -> dict[str, int]:
    """Return the downloads: the repository that Unsloth loads, and the model in 16 bits if it is loaded or merged.

    A repository of unknown size counts with the bytes that its parameters take on a GPU.
    """
    found: dict[str, int] = {}
    repository, setting = downloads.repository, next(iter(settings.values()), None)
    if repository is not None and setting is not None and not repository.cached:
        packed = sum(weight_bytes(model, replace(setting, precision="4bit", bf16=True)))
        found[repository.name] = repository.size or packed
    own = downloads.own not in ("folder", "cache", "missing")
    if own and (repository is None or writes_merged(recipe)):
        found[recipe.model.name] = 2 * model.parameters
    return found


def check_disk(recipe: Recipe, disk: Disk) -> Iterator[PlanFinding]:
    """Yield findings if the run folder is not writable, or if disk space is insufficient or nearly full."""
    place, above = f"disk of {recipe.run_folder.parent}", _existing(recipe.run_folder.absolute())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        code = "plan.run_folder_not_writable" if above.is_dir() else "plan.run_folder_below_file"
        rule = f"the folder above the run folder must be {'writable' if above.is_dir() else 'a folder, not a file'}"
        yield PlanFinding(Problem(code, rule, "[run] folder", str(above), "Choose another run.folder."))
    free = round(disk.free / 1e9, 1)
    remedy = "Free disk space, lower run.keep_checkpoints, export fewer formats, or choose another run.folder."
    if disk.needed > disk.free:
        rule = f"{disk.needed / 1e9:.1f} GB must be free"
        yield PlanFinding(Problem("plan.disk_too_small", rule, place, free, remedy))
    elif disk.needed + SPARE > disk.free:
        rule = f"the run needs {disk.needed / 1e9:.1f} GB, and {SPARE / 1e9:.0f} GB more should be free"
        yield PlanFinding(Problem("plan.disk_nearly_full", rule, place, free, remedy), problem=False)
    fetched = sum(disk.downloads.values())
    if fetched > disk.cache_free:
        rule = f"{fetched / 1e9:.1f} GB must be free to download {' and '.join(disk.downloads)}"
        place, free = f"disk of {disk.cache}", round(disk.cache_free / 1e9, 1)
        remedy = "Free disk space, or set HF_HOME to a folder on another disk."
        yield PlanFinding(Problem("plan.cache_disk_too_small", rule, place, free, remedy), certain=False)


def _trained_bytes(model: Architecture, setting: Setting) -> int:
    return trained_parameters(model, setting) * (setting.stored if setting.tuning == "full" else FLOAT)


def _processor_bytes(recipe: Recipe) -> int:
    """Return the bytes of the files beside the weights, if the model is in a folder."""
    folder = Path(model_source(recipe.model))
    if not folder.is_dir():
        return PROCESSOR
    files = (file for file in folder.iterdir() if file.is_file() and file.suffix not in (".safetensors", ".bin"))
    return sum(file.stat().st_size for file in files)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
