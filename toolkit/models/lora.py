"""LoRA adapters: target layers, a new adapter, and loading of a saved one."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError

from toolkit.errors import ModelError, warn
from toolkit.models.adapter_config import CONFIG, AdapterConfig, check_adapter, read_adapter_config
from toolkit.models.families import TOWERS, VISION, decoder_layers
from toolkit.models.weight_files import adapter_weights, tensor_shapes
from toolkit.recipe import Lora
from toolkit.recipe.sections import ALL_LINEAR

UNLOADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    SafetensorError,
)
"""Errors of peft for an adapter that does not fit the model."""


def is_adapter(folder: Path) -> bool:
    """Return whether the folder contains an adapter, not a full model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str | None:
    """Return the folder or Hub name of the model that the adapter was trained on.

    Raises:
        ModelError: The adapter's configuration is invalid.
    """
    return read_adapter_config(folder).base_model_name_or_path or None


def attach(model: Any, lora: Lora, seed: int) -> Any:
    """Return the model with a new adapter, initialised with ``seed``, and a frozen base.

    peft's ``prepare_model_for_kbit_training`` is not called, because it also converts every norm to float32.

    Raises:
        ModelError: One of ``lora.targets`` is not a linear layer of the language model.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=layers(model, lora),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return sort_names(get_peft_model(model, config))


def sort_names(model: Any) -> Any:
    """Return the model with sorted names in its adapter's configuration.

    peft keeps them in sets, and would save them in the order of the process's hash seed.
    """
    for config in model.peft_config.values():
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            if isinstance(names := getattr(config, name, None), set | list | tuple):
                setattr(config, name, sorted(names))
    return model


def reload(model: Any, folder: Path, *, trainable: bool) -> Any:
    """Return the model with the adapter in ``folder``.

    Raises:
        ModelError: The adapter is invalid or incomplete, or belongs to another model.
    """
    warn_ignored(folder, check_adapter(folder, [name for name, _ in model.named_modules()]))
    try:
        with warnings.catch_warnings():
            # If weights of the adapter are missing, peft only warns and continues with untrained ones.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
            loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise
    except (*UNLOADABLE, UserWarning) as error:
        raise _not_loadable(folder, (str(error).strip() or type(error).__name__).splitlines()[0][:200]) from error
    # peft silently leaves out matrices of layers that the configuration does not name. It may rename the others.
    stored = sum(".lora_" in name for name in tensor_shapes(adapter_weights(folder)))
    used = sum(".lora_" in name for name, _ in loaded.named_parameters())
    if used < stored:
        raise _not_loadable(folder, f"{stored - used} of {stored} tensors belong to layers without an adapter")
    return sort_names(loaded)


def _not_loadable(folder: Path, reason: str) -> ModelError:
    return ModelError(
        "model.adapter_not_loadable",
        "the adapter must be complete and must belong to the recipe's model",
        place=folder,
        value=reason,
        remedy="Set model.name to the model that the adapter was trained on.",
    )


def warn_ignored(folder: Path, config: AdapterConfig) -> None:
    """Warn about settings of an adapter that the installed peft does not know, and ignores."""
    known = LoraConfig.__dataclass_fields__
    if ignored := sorted(name for name in config.model_extra or () if name not in known):
        warn(
            "model.adapter_settings_ignored",
            "the installed peft does not know these settings of the adapter, and ignores them",
            place=folder / CONFIG,
            value=ignored,
            remedy="Install the version of peft that wrote the adapter.",
        )


def restore(model: Any, folder: Path) -> None:
    """Load the adapter weights in ``folder`` into the model's adapter.

    Raises:
        ModelError: Weights are missing or belong to another model.
    """
    tensor_shapes(adapter_weights(folder))
    try:
        found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        missing = [name for name in found.missing_keys if "lora_" in name and ".default." in name]
        wrong = [*missing, *found.unexpected_keys]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        wrong = [str(error).splitlines()[0][:200]]
    if wrong:
        raise ModelError(
            "model.checkpoint_adapter_differs",
            "a checkpoint must have the weights of the adapter in training",
            place=folder,
            value=wrong[:3],
            remedy="Start again with --fresh.",
        )


def add_reference(model: Any) -> None:
    """Add a frozen copy of the adapter, named ``ref``, as the reference of GRPO's KL term.

    TRL adds it by itself. Unsloth's trainer does not, but uses the copy if the model has one.
    """
    model.add_adapter("ref", model.peft_config["default"])
    sort_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                parameter.copy_(model.get_parameter(name.replace(".ref.", ".default.")))
                parameter.requires_grad_(False)


def differences(model: Any, lora: Lora) -> str:
    """Return the differences between a loaded adapter and ``[lora]`` in words, or an empty text.

    Targets are taken from the adapted layers, because peft shortens the names in an adapter's configuration.
    """
    config = model.peft_config["default"]
    own = {
        "r": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "rslora": config.use_rslora,
        "dora": config.use_dora,
    }
    words = [f"{name} is {own[name]}, not {getattr(lora, name)}" for name in own if own[name] != getattr(lora, name)]
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    last = {name.rpartition(".")[2] for name in adapted if not VISION.search(name)}
    wanted = target_names(model, lora)
    if last != set(wanted):
        words.append(f"targets are {', '.join(sorted(last))}, not {', '.join(sorted(wanted))}")
    vision = any(VISION.search(name) for name in adapted)
    if vision != lora.vision:
        words.append(f"vision is {str(vision).lower()}, not {str(lora.vision).lower()}")
    return "; ".join(words)


def warn_differs(weights: Path | None, differences: str) -> None:
    """Warn that a loaded adapter differs from ``[lora]``."""
    warn(
        "model.adapter_differs_from_recipe",
        "the loaded adapter keeps its own settings, and [lora] is ignored",
        place=weights or "[lora]",
        value=differences,
    )


def layers(model: Any, lora: Lora) -> list[str]:
    """Return the full names of the layers to adapt. Quantized layers of bitsandbytes are linear layers too.

    Raises:
        ModelError: One of ``lora.targets`` is not a linear layer of the language model.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    vision = [name for name in linear if lora.vision and VISION.search(name)]
    if lora.targets == ALL_LINEAR:
        return decoder_layers(model) + vision
    language = [name for name in linear if not TOWERS.search(name)]
    chosen = [name for name in language if name.rpartition(".")[2] in lora.targets]
    missing = set(lora.targets) - {name.rpartition(".")[2] for name in chosen}
    if missing:
        raise ModelError(
            "model.lora_target_unknown",
            "every name in lora.targets must be a linear layer of the language model",
            place="[lora] targets",
            value=sorted(missing),
            remedy=f"Choose from: {', '.join(sorted({name.rpartition('.')[2] for name in language}))}.",
        )
    return chosen + vision


def target_names(model: Any, lora: Lora) -> list[str]:
    """Return the last parts of the names of the language model's adapted layers, each once."""
    if lora.targets != ALL_LINEAR:
        return list(lora.targets)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return list(dict.fromkeys(name.rpartition(".")[2] for name in decoder_layers(base)))
