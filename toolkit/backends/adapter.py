"""The LoRA adapter: which layers it goes on, a new one, and one that is loaded again."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from toolkit.errors import ModelError
from toolkit.recipe import Lora

VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|image_encoder)\.")
"""Names of vision towers in transformers' models."""


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter; else it holds a whole model."""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path) -> str | None:
    """The folder or Hub name of the model that the adapter was trained on."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(base) if (base := settings.get("base_model_name_or_path")) else None


def attach(model: Any, lora: Lora, seed: int) -> Any:
    """The model with a new adapter, whose first weights are drawn by the seed; the base is frozen.

    peft's ``prepare_model_for_kbit_training`` is left out on purpose: it also turns every norm into float32.

    Raises:
        ModelError: one of ``lora.targets`` is no linear layer of the language model.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def reload(model: Any, folder: Path, *, trainable: bool) -> Any:
    """The model with the adapter in ``folder``.

    Raises:
        ModelError: the adapter was made for another model.
    """
    try:
        with warnings.catch_warnings():
            # peft only warns when weights of the adapter are missing, and goes on with untrained ones.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise ModelError(
            "the adapter must have been made for the recipe's model",
            place=folder,
            value=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            remedy="Name the model that it was trained on in model.name.",
        ) from error


def differences(model: Any, lora: Lora) -> str:
    """Where a loaded adapter is not what ``[lora]`` describes, as words; empty where it is."""
    config = model.peft_config["default"]
    own = {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    words = [f"{name} is {own[name]}, not {getattr(lora, name)}" for name in own if own[name] != getattr(lora, name)]
    last = {name.rpartition(".")[2] for name in config.target_modules if not VISION.search(name)}
    if last != set(lora.targets):
        words.append(f"targets are {', '.join(sorted(last))}")
    if any(VISION.search(name) for name in config.target_modules) != lora.vision:
        words.append(f"vision is {not lora.vision}")
    return "; ".join(words)


def _targets(model: Any, lora: Lora) -> list[str]:
    """Full names of the layers to adapt. bitsandbytes' quantised layers are linear layers too."""
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    language = [name for name in linear if not VISION.search(name)]
    chosen = [name for name in language if name.rpartition(".")[2] in lora.targets]
    missing = set(lora.targets) - {name.rpartition(".")[2] for name in chosen}
    if missing:
        raise ModelError(
            "every name in lora.targets must be a linear layer of the language model",
            place="[lora] targets",
            value=sorted(missing),
            remedy=f"It has: {', '.join(sorted({name.rpartition('.')[2] for name in language}))}.",
        )
    return chosen + [name for name in linear if lora.vision and VISION.search(name)]
