"""Validation of a saved adapter: its adapter_config.json, and the ranks of its weights, before peft reads them.

peft builds objects from the file, allocates the matrices of any rank, and matches regular expressions without a limit.
This module imports no model library.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from toolkit.errors import ModelError
from toolkit.models.model_config import read_object
from toolkit.models.weight_files import Shape, adapter_weights, damaged_error, tensor_shapes

CONFIG = "adapter_config.json"
MAX_RANK = 4096
"""Maximum of ``lora.r``."""
COMPILED = "unsloth_compiled_module_"
"""Beginning of the names of the modules that Unsloth writes and names as the model's library."""
LIBRARIES = ("transformers.", "transformers_modules.")
"""Packages of the classes of models. The second has the code of a model that needs ``trust_remote_code``."""
MATCH_SECONDS = 10
"""Time limit for matching the names of all layers. A regular expression needs milliseconds."""

Name = Annotated[str, Field(max_length=300, pattern=r"^[A-Za-z0-9_.-]+$")]
"""Name of a layer, or its end. peft reads some of them as regular expressions, so no other characters are accepted."""
Pattern = Annotated[str, Field(min_length=1, max_length=20_000)]
"""Regular expression that matches the whole name of a layer. Unsloth writes some of about 500 characters."""
Names = Annotated[list[Name], Field(max_length=20_000)]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Init = Annotated[str, Field(pattern="^(gaussian|orthogonal|olora|eva|pissa(_niter_[0-9]{1,2})?)$")]
"""Initialisation. peft repeats that of PiSSA when it loads an adapter, with as many iterations as its name has."""
Scale = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class AutoMapping(BaseModel):
    """The class of the model that the adapter was trained on. Unsloth adds a mark of its own, ``unsloth_fixed``."""

    model_config = ConfigDict(strict=True, extra="allow")
    base_model_class: Name | None = None
    parent_library: Name | None = None

    @field_validator("parent_library")
    @classmethod
    def _check_library(cls, value: str | None) -> str | None:
        if value is None or value.startswith((*LIBRARIES, COMPILED)):
            return value
        raise ValueError(f"must be a module of transformers or start with {COMPILED}")


class AdapterConfig(BaseModel):
    """The settings of a LoRA adapter in adapter_config.json. peft ignores settings that it does not know."""

    model_config = ConfigDict(strict=True, extra="allow")
    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Scale
    target_modules: Names | Pattern | None
    lora_dropout: float = Field(0.0, ge=0, le=1)
    exclude_modules: Names | Pattern | None = None
    modules_to_save: Names | None = None
    target_parameters: Names | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names | Name | None = None
    rank_pattern: dict[Pattern, Rank] | None = None
    alpha_pattern: dict[Pattern, Scale] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | Init | None = None
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    qalora_group_size: int = 16
    ensure_weight_tying: bool = False
    inference_mode: bool = False
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    revision: Annotated[str, Field(max_length=300)] | None = None
    task_type: Name | None = None
    peft_version: str | None = None
    auto_mapping: AutoMapping | None = None
    megatron_core: Literal["megatron.core"] | None = None

    @property
    def patterns(self) -> list[str]:
        """Return the regular expressions, as peft matches them with the beginning of a layer's name."""
        whole = [one for one in (self.target_modules, self.exclude_modules) if isinstance(one, str)]
        return whole + [rf"(.*\.)?({key})$" for part in (self.rank_pattern, self.alpha_pattern) for key in part or ()]


REMOVED = (
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "runtime_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Settings from which peft builds objects or other layers. They must be empty."""
UNUSED: Mapping[str, tuple[object, ...]] = {"loftq_config": ({},)}
"""Further values of these settings that have no effect."""


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return the settings of the adapter in a folder.

    Raises:
        ModelError: The file is not a JSON object, or a setting is missing, invalid or not supported.
    """
    file = folder / CONFIG
    fields = read_object(file, "model.adapter_config")
    try:
        config = AdapterConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid(file, str(first["loc"][0]), first["msg"], first["input"]) from error
    if unsupported := [name for name in REMOVED if fields.get(name) not in (None, False, *UNUSED.get(name, ()))]:
        raise _invalid(file, unsupported[0], "must be empty", fields[unsupported[0]])
    if not config.target_modules and not config.target_parameters:
        raise _invalid(file, "target_modules", "must name layers", config.target_modules)
    return config


def check_adapter(folder: Path, layers: Iterable[str] = ()) -> AdapterConfig:
    """Check the adapter in a folder, and return its settings.

    Args:
        folder: The folder.
        layers: Names of the base model's modules. Default: those that the weights name.

    Raises:
        ModelError: The settings are invalid, the weights are missing, pickled or damaged, the ranks of both differ, or
            a regular expression takes too long.
    """
    config = read_adapter_config(folder)
    file = adapter_weights(folder)
    shapes = tensor_shapes(file)
    _check_ranks(config, shapes, file)
    names = list(layers) or sorted({name.partition(".lora_")[0].removeprefix("base_model.model.") for name in shapes})
    _try_patterns(config.patterns, names, folder / CONFIG)
    return config


def _check_ranks(config: AdapterConfig, shapes: Mapping[str, Shape], file: Path) -> None:
    """Compare the ranks of the settings with those of the weights, because peft allocates the former."""
    ranks = {config.r, *(config.rank_pattern or {}).values()}
    found = {name: shape for name, shape in shapes.items() if ".lora_" in name}
    if not found:
        raise damaged_error(file, "no matrices of LoRA")
    for name, shape in found.items():
        axis = 0 if ".lora_A" in name or ".lora_embedding_A" in name else 1
        is_matrix = name.endswith(("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"))
        if not is_matrix or config.target_parameters:  # the latter have one matrix for all experts
            continue
        if len(shape) < 2 or shape[axis] not in ranks:
            raise ModelError(
                "model.adapter_rank_differs",
                "the rank in adapter_config.json must be that of the adapter's weights",
                place=f"{file}: {name}",
                value={"r": config.r, "shape": list(shape)},
                remedy="Copy adapter_config.json and adapter_model.safetensors of the same adapter.",
            )


_MATCHER = """
import json, re, sys
job = json.load(sys.stdin)
for pattern in job["patterns"]:
    compiled = re.compile(pattern)
    for name in job["names"]:
        compiled.fullmatch(name)
        compiled.fullmatch(name + "!")
"""
"""Program that matches all names. With a character that no name has, it also tries the longest search."""


def _try_patterns(patterns: Sequence[str], names: Sequence[str], file: Path) -> None:
    """Match the names of layers in another process, which a regular expression can keep busy forever."""
    patterns = [pattern for pattern in patterns if pattern != "all-linear"]
    if not patterns:
        return
    job = dumps({"patterns": patterns, "names": names})
    command = [sys.executable, "-I", "-c", _MATCHER]
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, encoding="utf-8", timeout=MATCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _invalid(file, "target_modules", f"must match within {MATCH_SECONDS} s", patterns[0]) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        raise _invalid(file, "target_modules", f"must be a regular expression ({reason})", patterns[0])


def _invalid(file: Path, name: str, rule: str, value: object) -> ModelError:
    return ModelError(
        "model.adapter_config_invalid",
        f"the adapter must be a LoRA adapter with supported settings: {rule[:300]}",
        place=f"{file}: {name}" if name else file,
        value=value,
        remedy="Export the adapter again with peft, or merge it into its base model and name the merged weights.",
    )
