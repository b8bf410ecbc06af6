"""Where a model's configuration is: in its folder, in the Hub's cache, or among those that ship with the package."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import ModelError
from toolkit.models.model_paths import model_source
from toolkit.recipe import Model

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
"""Hub name -> a file in ``shapes``. The models that share one have the same architecture and other weights."""

Origin = Literal["folder", "cache", "shipped"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The fields of config.json, and where they come from."""

    fields: Mapping[str, Any]
    origin: Origin

    @property
    def model_type(self) -> str:
        """As transformers names the architecture, such as gemma3; empty where the file does not say."""
        return str(self.fields.get("model_type", ""))


def find_configuration(model: Model) -> Configuration | None:
    """The model's configuration without a request to the Hub; None: it is nowhere here.

    Raises:
        ModelError: its file is damaged.
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
    """A file of a Hub model in the local cache; None: it is not there, or the model is no Hub name."""
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
        ModelError: it is damaged.
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
