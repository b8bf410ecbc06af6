"""Repositories that Unsloth loads in place of a 4-bit model, and their layers in 16 bits.

Unsloth replaces a known name by a pre-quantized repository of its own: ``google/medgemma-4b-it`` by
``unsloth/medgemma-4b-it-unsloth-bnb-4bit``. Such a repository keeps some layers in 16 bits and lists them in its
config.json (``quantization_config.llm_int8_skip_modules``). Models that Unsloth quantizes while loading keep the vision
tower in 16 bits.
"""

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from toolkit.errors import ModelError
from toolkit.planning.architecture import Architecture, Linear
from toolkit.planning.memory.weights import nf4_bytes
from toolkit.planning.model_files import cached_file, is_complete, read_configuration
from toolkit.recipe import Model

TIMEOUT = 3.0
"""Seconds until a request to the Hub is given up."""
KEPT = ("lm_head", "multi_modal_projector", "merger", "vision_tower", "visual", "vision_embedder", "embed_vision")
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
MOST_KEPT = 1 / 6
"""Fraction of the language model's matrices that counts as 16 bits if neither list nor size is available. The sizes in
``DOWNLOADS`` correspond to 0 to 15 %."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that Unsloth loads in place of the recipe's model.

    Attributes:
        name: on the Hub.
        kept: modules in 16 bits. None: the list is not available.
        size: bytes of its parameters. None: unknown.
        cached: whether its parameters are in the Hub's cache.
    """

    name: str
    kept: tuple[str, ...] | None = None
    size: int | None = None
    cached: bool = False


Query = Callable[[str], Repository | None]
"""Query the Hub for a repository. None: no answer."""


def find_repository(model: Model, query: Query | None = None) -> Repository | None:
    """Return the repository that Unsloth loads in place of a model in 4 bits. None: the model itself is loaded.

    The list of layers comes from the Hub's cache, or from a request by ``query`` (default: ``query_hub``) unless
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
        cached = is_complete(lambda part: cached_file(other, part))
        return Repository(name, kept_modules(read_configuration(file)), DOWNLOADS.get(name), cached)
    from huggingface_hub import constants

    found = None if constants.HF_HUB_OFFLINE else (query or query_hub)(name)
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


def query_hub(name: str) -> Repository | None:
    """Fetch a repository's config.json and the sizes of its files, in two requests."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        file = hf_hub_download(name, "config.json", etag_timeout=TIMEOUT)
        files = HfApi().model_info(name, files_metadata=True, timeout=TIMEOUT).siblings or ()
        size = sum(one.size or 0 for one in files if one.rfilename.endswith(".safetensors"))
        return Repository(name, kept_modules(read_configuration(Path(file))), size or DOWNLOADS.get(name))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ModelError):
        return None


def kept_modules(fields: Mapping[str, object]) -> tuple[str, ...] | None:
    """Return the modules that a config.json lists as not quantized. None: there is no list."""
    quantisation = fields.get("quantization_config")
    listed = quantisation.get("llm_int8_skip_modules") if isinstance(quantisation, Mapping) else None
    return tuple(map(str, listed)) if isinstance(listed, list) else None


def fraction_kept(model: Architecture, size: int | None) -> float:
    """Return the fraction of the language model's quantized matrices that is in 16 bits, from a repository's size.

    Args:
        model: with every supported layer quantized.
        size: bytes of the repository's parameters. None: unknown, so ``MOST_KEPT`` is returned.
    """
    if size is None:
        return MOST_KEPT
    matrices = [one for one in model.linears if one.quantised and not one.vision]
    packed = sum(one.count * nf4_bytes(one.inputs * one.outputs) for one in matrices)
    whole = HALF * sum(one.weights for one in matrices)
    other = sum(
        one.count * nf4_bytes(one.inputs * one.outputs) for one in model.linears if one.quantised and one.vision
    )
    other += HALF * (model.parameters - model.quantised)
    return min(1.0, max(0.0, (size - other - packed) / (whole - packed)))


def keep_fraction(model: Architecture, fraction: float) -> Architecture:
    """Return the architecture with a fraction of the language model's quantized matrices in 16 bits, rounded up."""
    linears: list[Linear] = []
    for one in model.linears:
        left = math.ceil(one.count * fraction) if one.quantised and not one.vision else 0
        parts = ((one.count - left, one.quantised), (left, False)) if left else ((one.count, one.quantised),)
        linears += [
            replace(one, count=count, quantised=quantised, biases=one.biases * count // one.count)
            for count, quantised in parts
            if count
        ]
    return replace(model, linears=tuple(linears))
