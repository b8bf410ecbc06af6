"""Files of a model: its configuration and its weights, in a folder, in the Hub's cache or on the Hub."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from toolkit.errors import ModelError, Problem
from toolkit.models.llamacpp import mergeable_formats
from toolkit.models.model_paths import model_source, writes_merged
from toolkit.planning.findings import Finding, warning
from toolkit.recipe import Model, Recipe
from toolkit.recipe.checks import is_folder_name

SHAPES = Path(__file__).parent / "shapes"
KNOWN: Mapping[str, str] = {
    "google/medgemma-4b-it": "medgemma_4b",
    "google/medgemma-4b-pt": "medgemma_4b",
    "google/medgemma-1.5-4b-it": "medgemma_4b",
    "google/gemma-3-4b-it": "medgemma_4b",
    "google/gemma-3-4b-pt": "medgemma_4b",
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl_2b",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl_3b",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl_7b",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl_8b",
}
"""Hub name -> a file in ``shapes``. Models that share a file have the same architecture."""

Origin = Literal["folder", "cache", "shipped"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """Fields of config.json, and their origin."""

    fields: Mapping[str, Any]
    origin: Origin

    @property
    def model_type(self) -> str:
        """Return the architecture's name in transformers, such as gemma3. Empty: the file does not have it."""
        return str(self.fields.get("model_type", ""))


def find_configuration(model: Model) -> Configuration | None:
    """Return the model's configuration without a request to the Hub. None: it is not available.

    Raises:
        ModelError: the file is corrupt.
    """
    folder = Path(model_source(model))
    if (folder / "config.json").is_file():
        return Configuration(read_configuration(folder / "config.json"), "folder")
    file = cached_file(model, "config.json")
    if file is not None:
        return Configuration(read_configuration(file), "cache")
    if model.name in KNOWN:
        return Configuration(read_configuration(SHAPES / f"{KNOWN[model.name]}.json"), "shipped")
    return None


def cached_file(model: Model, name: str) -> Path | None:
    """Return a file of a Hub model in the local cache. None: it is not cached, or the model is not a Hub name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model.name, name, revision=model.revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def read_configuration(file: Path) -> Mapping[str, Any]:
    """Return the fields of a config.json.

    Raises:
        ModelError: the file is corrupt.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "model.config_not_json", "a model's configuration must be readable JSON", place=file, value=error
        ) from error
    if not isinstance(fields, Mapping):
        rule = "a model's configuration must be a JSON object"
        raise ModelError("model.config_not_object", rule, place=file, value=type(fields).__name__)
    return fields


TIMEOUT = 3.0
"""Seconds until a request to the Hub is given up."""
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

State = Literal["folder", "cache", "reachable", "offline", "gated", "missing", "unreachable"]


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """Location of the model's own weights. ``reason`` and ``code``: why they are not available."""

    state: State
    reason: str = ""
    code: str = ""

    @property
    def there(self) -> bool:
        """Return whether the weights are on this machine or can be downloaded."""
        return self.state in ("folder", "cache", "reachable")


def find_base(model: Model, query: "Callable[[Model], BaseWeights] | None" = None) -> BaseWeights:
    """Return the location of the base weights: a folder, the Hub's cache, the Hub, or nowhere.

    At most one request is made, by ``query`` (default: ``query_hub``), and none with ``HF_HUB_OFFLINE=1``.
    """
    folder = Path(model_source(model))
    if folder.is_dir():
        if is_complete(lambda name: file if (file := folder / name).is_file() else None):
            return BaseWeights("folder")
        return BaseWeights("missing", f"the weights in {folder} are missing or incomplete", "plan.weights_incomplete")
    if is_folder_name(model.name):
        return BaseWeights("missing", f"the folder {folder} does not exist", "plan.model_folder_missing")
    if is_complete(lambda name: cached_file(model, name)):
        return BaseWeights("cache")
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        reason = "they are not in the Hub cache, and HF_HUB_OFFLINE=1 forbids downloads"
        return BaseWeights("offline", reason, "plan.weights_not_cached")
    return (query or query_hub)(model)


def query_hub(model: Model) -> BaseWeights:
    """Request the metadata of config.json. Nothing is downloaded."""
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(model.name, "config.json", revision=model.revision), timeout=TIMEOUT)
    except GatedRepoError:
        reason = "the model is gated, so accept its terms on the Hub and run `hf auth login` once"
        return BaseWeights("gated", reason, "plan.model_gated")
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the Hub has no such model, or it is private and needs `hf auth login`"
        return BaseWeights("missing", reason, "plan.model_not_found")
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        return BaseWeights("unreachable", f"the Hub does not answer ({type(error).__name__})", "plan.hub_unreachable")
    return BaseWeights("reachable")


def check_base(recipe: Recipe, base: BaseWeights, config: Configuration | None) -> Iterator[Finding]:
    """Yield findings about the base weights, for loading and for merging."""
    place, name = "[model] name", recipe.model.name
    merges = writes_merged(recipe)
    dequantises = recipe.export is not None and recipe.export.allow_dequantised
    if not base.there:
        purpose = "loading, and for merging the adapter" if merges else "loading"
        rule = f"the model weights must be available for {purpose}: {base.reason}"
        remedy = "Download the model once (`hf download NAME`) and set its folder, or correct the name."
        yield Finding(Problem(base.code, rule, place, name, remedy), certain=base.state != "unreachable")
    if merges and not dequantises and config is not None and config.fields.get("quantization_config"):
        rule = "the base model of merged weights must be stored in 16 bits or more, not quantized"
        remedy = 'Name the unquantized base (precision = "4bit" quantizes it while loading), or set '
        remedy += 'export.to = ["adapter"] or export.allow_dequantised = true.'
        yield Finding(Problem("model.base_stored_quantised", rule, place, name, remedy))


def drop_optional_formats(recipe: Recipe, config: Configuration | None) -> tuple[Recipe, list[Finding]]:
    """Return the recipe without optional formats that its base model does not allow, and a warning about them."""
    if recipe.export is None or config is None:
        return recipe, []
    makeable = mergeable_formats(recipe.export, quantised=bool(config.fields.get("quantization_config")))
    if makeable == recipe.export:
        return recipe, []
    rule = "no GGUF file will be exported, because it needs merged weights and the base model is stored quantized"
    remedy = "Set export.allow_dequantised = true, or name the unquantized base in model.name."
    found = Problem("export.gguf_left_out", rule, "[export] optional", remedy=remedy)
    return recipe.model_copy(update={"export": makeable}), [warning(found)]


def is_complete(find: Callable[[str], Path | None]) -> bool:
    """Return whether one file with all parameters exists, or an index and every file that it names.

    Args:
        find: file name -> path. None: the file does not exist.
    """

    def whole(name: str) -> bool:
        file = find(name)
        return file is not None and _is_whole(file)

    if any(whole(name) for name in WHOLE):
        return True
    for name in INDICES:
        index = find(name)
        if index is not None:
            files = _named_in(index)
            return bool(files) and all(map(whole, files))
    return False


def _named_in(index: Path) -> set[str]:
    """The files that an index of shards names; none where it is damaged."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def _is_whole(file: Path) -> bool:
    """Return whether a safetensors file has tensors and the length that its header states. A partial copy does not."""
    if file.suffix != ".safetensors":
        return True
    try:
        with safe_open(file, framework="numpy") as opened:
            return bool(opened.keys())
    except (OSError, SafetensorError):
        return False
