"""Files of a model: its configuration and its weights, in a folder, in the Hub's cache or on the Hub.

On the backend Unsloth, a known name is replaced by a pre-quantized repository of Unsloth's own:
``google/medgemma-4b-it`` by ``unsloth/medgemma-4b-it-unsloth-bnb-4bit``. Such a repository keeps some layers in 16 bits
and lists them in its config.json (``quantization_config.llm_int8_skip_modules``). Models that Unsloth quantizes while
loading keep the vision tower in 16 bits.
"""

import ast
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import ModelError, Problem, RunError, shorten
from toolkit.models.llamacpp import mergeable_formats
from toolkit.models.model_config import read_configuration
from toolkit.models.model_paths import model_source, writes_merged
from toolkit.models.weight_files import INDEX, SINGLE, check_model_folder, model_weights
from toolkit.planning.architecture import Architecture, Linear
from toolkit.planning.findings import PlanFinding, warning
from toolkit.recipe import Model, Recipe
from toolkit.recipe.model_kind import is_folder_name

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
"""Hub name -> a file in ``shapes``. Models with the same file have the same architecture."""

Origin = Literal["folder", "cache", "shipped"]

DOWNLOAD_AGAIN = "Download the model again."


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
    if (folder / "config.json").exists():
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


TIMEOUT = 3.0
"""Timeout of a request to the Hub in seconds."""

State = Literal["folder", "cache", "reachable", "offline", "gated", "missing", "unreachable"]


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """Location of the model's own weights. ``reason``, ``code`` and ``remedy``: why they are not available."""

    state: State
    reason: str = ""
    code: str = ""
    remedy: str = "Download the model once (`hf download NAME`) and set its folder, or correct the name."

    @property
    def available(self) -> bool:
        """Return whether the weights are on this machine or can be downloaded."""
        return self.state in ("folder", "cache", "reachable")


Query = Callable[[Model], BaseWeights]
"""Query the Hub for a model."""


def find_base(model: Model, query: Query | None = None) -> BaseWeights:
    """Return the location of the base weights: a folder, the Hub's cache, the Hub, or nowhere.

    At most one request is made, by ``query`` (default: ``query_hub``), and none with ``HF_HUB_OFFLINE=1``.
    """
    folder = Path(model_source(model))
    if folder.is_dir():
        return _weights_in(folder)
    if is_folder_name(model.name):
        return BaseWeights("missing", f"the folder {folder} does not exist", "plan.model_folder_missing")
    if is_cached(model):
        return BaseWeights("cache")
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        reason = "they are not in the Hub cache, and HF_HUB_OFFLINE=1 forbids downloads"
        return BaseWeights("offline", reason, "plan.weights_not_cached")
    return (query or query_hub)(model)


def _weights_in(folder: Path) -> BaseWeights:
    """Return whether a folder has whole weights, or why not."""
    try:
        check_model_folder(folder)
    except (ModelError, RunError) as error:
        if error.code == "model.weights_missing":
            reason = f"the weights in {folder} are missing or incomplete"
            return BaseWeights("missing", reason, "plan.weights_incomplete")
        reason = f"{error.place}: {error.rule} (got {shorten(error.value)})"
        return BaseWeights("missing", reason, error.code, error.remedy)
    return BaseWeights("folder")


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


def check_base(recipe: Recipe, base: BaseWeights, config: Configuration | None) -> Iterator[PlanFinding]:
    """Yield findings about the base weights, for loading and for merging."""
    place, name = "[model] name", recipe.model.name
    merges = writes_merged(recipe)
    dequantizes = recipe.export is not None and recipe.export.allow_dequantized
    if not base.available:
        purpose = "loading, and for merging the adapter" if merges else "loading"
        rule = f"the model weights must be available for {purpose}: {base.reason}"
        yield PlanFinding(Problem(base.code, rule, place, name, base.remedy), certain=base.state != "unreachable")
    if merges and not dequantizes and config is not None and config.fields.get("quantization_config"):
        rule = "the base model of merged weights must be stored in 16 bits or more, not quantized"
        remedy = 'Name the unquantized base (precision = "4bit" quantizes it while loading), or set '
        remedy += 'export.to = ["adapter"] or export.allow_dequantized = true.'
        yield PlanFinding(Problem("model.base_stored_quantized", rule, place, name, remedy))


def drop_optional_formats(recipe: Recipe, config: Configuration | None) -> tuple[Recipe, list[PlanFinding]]:
    """Return the recipe without optional formats that its base model does not allow, and a warning about them."""
    if recipe.export is None or config is None:
        return recipe, []
    makeable = mergeable_formats(recipe.export, quantized=bool(config.fields.get("quantization_config")))
    if makeable == recipe.export:
        return recipe, []
    rule = "no GGUF file will be exported, because it needs merged weights and the base model is stored quantized"
    remedy = "Set export.allow_dequantized = true, or name the unquantized base in model.name."
    found = Problem("export.gguf_left_out", rule, "[export] optional", remedy=remedy)
    return recipe.model_copy(update={"export": makeable}), [warning(found)]


def is_cached(model: Model) -> bool:
    """Return whether all weights of a Hub model are in the local cache, as whole safetensors files."""
    file = cached_file(model, SINGLE) or cached_file(model, INDEX)
    try:
        return file is not None and bool(model_weights(file.parent))
    except ModelError:
        return False


UNQUANTIZED_MODULES = (
    "lm_head",
    "multi_modal_projector",
    "merger",
    "vision_tower",
    "visual",
    "vision_embedder",
    "embed_vision",
)
"""Modules of vision-language models that Unsloth leaves in 16 bits (unsloth_zoo's ``SKIP_QUANTIZATION_MODULES``)."""
HALF = 2
"""Bytes of a parameter in 16 bits."""
SUFFIX = "-unsloth-bnb-4bit"
REPLACED: Mapping[str, str] = {
    f"{owner}/{name}".lower(): f"unsloth/{name}{SUFFIX}"
    for owner, name in (
        ("google", "medgemma-4b-it"),
        ("google", "gemma-3-4b-it"),
        ("google", "gemma-3-4b-pt"),
        ("Qwen", "Qwen2-VL-2B-Instruct"),
        ("Qwen", "Qwen2.5-VL-3B-Instruct"),
        ("Qwen", "Qwen2.5-VL-7B-Instruct"),
        ("Qwen", "Qwen3-VL-8B-Instruct"),
    )
}
"""Name in lower case -> repository, for the models in recipes. It replaces Unsloth's own table on a machine without
Unsloth."""
DOWNLOADS: Mapping[str, int] = {
    f"unsloth/gemma-3-4b-it{SUFFIX}": 4_560_000_000,
    f"unsloth/gemma-3-4b-pt{SUFFIX}": 4_380_000_000,
    f"unsloth/Qwen2.5-VL-7B-Instruct{SUFFIX}": 6_900_000_000,
    f"unsloth/Qwen3-VL-8B-Instruct{SUFFIX}": 7_700_000_000,
}
"""Bytes of the parameters of repositories, as the progress bars in Unsloth's published notebooks show them."""
MAX_UNQUANTIZED = 1 / 6
"""Fraction of the language model's matrices that counts as 16 bits if neither list nor size is available. The sizes in
``DOWNLOADS`` correspond to 0 to 15 %."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that Unsloth loads in place of the recipe's model.

    Attributes:
        name: on the Hub.
        unquantized: modules in 16 bits. None: the list is not available.
        size: bytes of its parameters. None: unknown.
        cached: whether its parameters are in the Hub's cache.
    """

    name: str
    unquantized: tuple[str, ...] | None = None
    size: int | None = None
    cached: bool = False


QueryRepository = Callable[[str], Repository | None]
"""Query the Hub for a repository. None: no answer."""


def find_repository(model: Model, query: QueryRepository | None = None) -> Repository | None:
    """Return the repository that Unsloth loads in place of a model in 4 bits. None: the model itself is loaded.

    The list of layers comes from the Hub's cache, or from a request by ``query`` (default: ``query_repository``) unless
    ``HF_HUB_OFFLINE=1``.
    """
    if model.revision is not None or model.precision not in ("4bit", "auto") or Path(model.name).is_dir():
        return None
    name = unsloth_repositories().get(model.name.lower())
    if name is None or not name.endswith("-bnb-4bit"):
        return None
    other = model.model_copy(update={"name": name})
    file = cached_file(other, "config.json")
    if file is not None:
        cached = is_cached(other)
        return Repository(name, unquantized_modules(read_configuration(file)), DOWNLOADS.get(name), cached)
    from huggingface_hub import constants

    found = None if constants.HF_HUB_OFFLINE else (query or query_repository)(name)
    return found or Repository(name, None, DOWNLOADS.get(name))


def unsloth_repositories() -> Mapping[str, str]:
    """Return Unsloth's table: name in lower case -> pre-quantized repository.

    The table is read from the installed source. Importing Unsloth takes half a minute and needs a GPU.
    """
    spec = find_spec("unsloth")
    if spec is None or not spec.submodule_search_locations:
        return REPLACED
    try:
        source = (Path(spec.submodule_search_locations[0]) / "models/mapper.py").read_text(encoding="utf-8")
        table = next(
            ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        )
    except (OSError, ValueError, SyntaxError, StopIteration):
        return REPLACED
    return {str(name).lower(): repository for repository, names in table.items() for name in _names(names)}


def _names(entry: object) -> Iterable[object]:
    """Return the names of a table entry, which is a tuple or a tuple for each number of bits."""
    if isinstance(entry, Mapping):
        return [name for names in entry.values() for name in names]
    return entry if isinstance(entry, tuple) else ()


def query_repository(name: str) -> Repository | None:
    """Fetch a repository's config.json and the sizes of its files, in two requests."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        file = hf_hub_download(name, "config.json", etag_timeout=TIMEOUT)
        files = HfApi().model_info(name, files_metadata=True, timeout=TIMEOUT).siblings or ()
        size = sum(one.size or 0 for one in files if one.rfilename.endswith(".safetensors"))
        return Repository(name, unquantized_modules(read_configuration(Path(file))), size or DOWNLOADS.get(name))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ModelError):
        return None


def unquantized_modules(fields: Mapping[str, object]) -> tuple[str, ...] | None:
    """Return the modules that a config.json lists as not quantized. None: there is no list."""
    quantization = fields.get("quantization_config")
    listed = quantization.get("llm_int8_skip_modules") if isinstance(quantization, Mapping) else None
    return tuple(map(str, listed)) if isinstance(listed, list) else None


def unquantized_fraction(model: Architecture, size: int | None) -> float:
    """Return the fraction of the language model's quantized matrices that is in 16 bits, from a repository's size.

    Args:
        model: The architecture with every supported layer quantized.
        size: The bytes of the repository's parameters. None: unknown, so ``MAX_UNQUANTIZED`` is returned.
    """
    if size is None:
        return MAX_UNQUANTIZED
    matrices = [one for one in model.linears if one.quantized and not one.vision]
    packed = sum(one.nf4_bytes for one in matrices)
    whole = HALF * sum(one.weights for one in matrices)
    other = sum(one.nf4_bytes for one in model.linears if one.quantized and one.vision)
    other += HALF * (model.parameters - model.quantized)
    return min(1.0, max(0.0, (size - other - packed) / (whole - packed)))


def leave_unquantized(model: Architecture, fraction: float) -> Architecture:
    """Return the architecture with a fraction of the language model's quantized matrices in 16 bits, rounded up."""
    linears: list[Linear] = []
    for one in model.linears:
        left = math.ceil(one.count * fraction) if one.quantized and not one.vision else 0
        parts = ((one.count - left, one.quantized), (left, False)) if left else ((one.count, one.quantized),)
        linears += [
            replace(one, count=count, quantized=quantized, biases=one.biases * count // one.count)
            for count, quantized in parts
            if count
        ]
    return replace(model, linears=tuple(linears))
