"""Whether the base weights can be had: for loading at the start, and for merging at the end."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from toolkit.errors import Problem
from toolkit.models.llamacpp import mergeable_formats
from toolkit.models.model_paths import model_source, writes_merged
from toolkit.planning.findings import Finding, warning
from toolkit.planning.model_configs import Configuration, cached_file
from toolkit.recipe import Model, Recipe
from toolkit.recipe.checks import is_folder_name

TIMEOUT = 3.0
"""Seconds that one look at the Hub may take."""
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

State = Literal["folder", "cache", "reachable", "offline", "gated", "missing", "unreachable"]


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """Where the model's own weights are. ``reason`` and ``code``: why they are not available, and its identifier."""

    state: State
    reason: str = ""
    code: str = ""

    @property
    def there(self) -> bool:
        """In this machine or to be downloaded."""
        return self.state in ("folder", "cache", "reachable")


def find_base(model: Model, ask: "Callable[[Model], BaseWeights] | None" = None) -> BaseWeights:
    """Where the base weights are: in a folder, in the Hub's cache, on the Hub, or nowhere.

    One request is made at most, by ``ask`` (default: ``ask_hub``), and none with ``HF_HUB_OFFLINE=1``.
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
    return (ask or ask_hub)(model)


def ask_hub(model: Model) -> BaseWeights:
    """One request for the facts of config.json; nothing is downloaded."""
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


def judge_base(recipe: Recipe, base: BaseWeights, config: Configuration | None) -> Iterator[Finding]:
    """What is wrong with the base weights, for loading and for merging."""
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


def leave_out(recipe: Recipe, config: Configuration | None) -> tuple[Recipe, list[Finding]]:
    """The recipe without optional forms that its base does not give, and the warning that tells so."""
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
    """Return whether one file with all parameters is there, or an index and each file that it names.

    Args:
        find: name of a file -> its place. None: it is not there.
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
    """Whether a file in safetensors' format is as long as its head says, and holds weights: a copy that broke off is
    not, and does not."""
    if file.suffix != ".safetensors":
        return True
    try:
        with safe_open(file, framework="numpy") as opened:
            return bool(opened.keys())
    except (OSError, SafetensorError):
        return False
