"""The hf backend: transformers and peft on any device; 4-bit and 8-bit through bitsandbytes where CUDA is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from toolkit import tiny
from toolkit.backends.base import Completion, Policy, Row, Sampling, TrainingJob
from toolkit.backends.generate import generate
from toolkit.backends.trainers import build_grpo, build_sft
from toolkit.chat import find_image_ids, find_turn_end
from toolkit.errors import ModelError
from toolkit.recipe import Lora, Model, Recipe

VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|image_encoder)\.")
"""Names of vision towers in transformers' models."""


class HfBackend:
    """See ``Backend``."""

    name = "hf"

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool) -> Policy:
        """See ``Backend.load``."""
        adapter = weights is not None and (weights / "adapter_config.json").is_file()
        source = model_source(recipe.model) if adapter or weights is None else str(weights)
        model = _load_model(source, recipe.model)
        processor = load_processor(recipe.model)
        if adapter:
            model = PeftModel.from_pretrained(model, str(weights), is_trainable=trainable)
        elif trainable and recipe.model.tuning == "lora":
            model = _attach(model, recipe.lora, recipe.run.seed)
        if trainable:
            model.config.use_cache = False
        model.train(trainable)
        return make_policy(model, processor, weights)

    def sft_trainer(self, policy: Policy, job: TrainingJob) -> Any:
        """See ``Backend.sft_trainer``."""
        return build_sft(policy, job)

    def grpo_trainer(self, policy: Policy, job: TrainingJob) -> Any:
        """See ``Backend.grpo_trainer``."""
        return build_grpo(policy, job)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        """See ``Backend.generate``."""
        return generate(policy, rows, sampling)

    def save(self, policy: Policy, folder: Path) -> None:
        """See ``Backend.save``."""
        options = {"selected_adapters": ["default"]} if isinstance(policy.model, PeftModel) else {}
        policy.model.save_pretrained(str(folder), **options)
        policy.processor.save_pretrained(str(folder))

    def save_merged(self, policy: Policy, folder: Path) -> None:
        """See ``Backend.save_merged``."""
        model = policy.model.merge_and_unload() if isinstance(policy.model, PeftModel) else policy.model
        model.config.use_cache = True
        model.save_pretrained(str(folder))
        policy.processor.save_pretrained(str(folder))


def model_source(model: Model) -> str:
    """The folder or Hub name that ``model.name`` stands for."""
    return str(tiny.FOLDER) if model.name == "tiny" else model.name


def load_processor(model: Model) -> Any:
    """The model's processor, padding where it must.

    Raises:
        ModelError: it cannot be had.
    """
    source = model_source(model)
    try:
        return AutoProcessor.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise _not_found(source, error) from error


def make_policy(model: Any, processor: Any, start: Path | None) -> Policy:
    """A Policy whose tokenizer's EOS is the chat template's turn end."""
    end = find_turn_end(processor)
    processor.tokenizer.eos_token = end.text
    if processor.tokenizer.pad_token is None or processor.tokenizer.pad_token_id == end.id:
        processor.tokenizer.pad_token = _spare_pad(processor.tokenizer, end.text)
    return Policy(model, processor, end, tuple(find_image_ids(processor)), start)


def _load_model(source: str, model: Model) -> Any:
    cuda = torch.cuda.is_available()
    precision = ("4bit" if cuda else "32bit") if model.precision == "auto" else model.precision
    options: dict[str, Any] = {"dtype": _dtype(precision), "attn_implementation": _attention(model)}
    if precision in ("4bit", "8bit"):
        options["quantization_config"] = _quantisation(precision)
    if cuda:
        options["device_map"] = {"": torch.cuda.current_device()}
    try:
        return AutoModelForImageTextToText.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        raise _not_found(source, error) from error


def _dtype(precision: str) -> torch.dtype:
    """bfloat16 where the device computes in it. Gemma 3 overflows in float16, so that is never chosen."""
    if precision == "32bit":
        return torch.float32
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        return torch.float32
    return torch.bfloat16


def _quantisation(precision: str) -> BitsAndBytesConfig:
    if not torch.cuda.is_available():
        raise ModelError(
            "4bit and 8bit need a CUDA device",
            place="[model] precision",
            value=precision,
            remedy='Set precision = "auto", which takes 32bit on a CPU.',
        )
    if precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_dtype(precision),
    )


def _attention(model: Model) -> str | None:
    return None if model.attention == "auto" else model.attention


def _attach(model: Any, lora: Lora, seed: int) -> Any:
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = _prepare_quantised(model)
    torch.manual_seed(seed)  # the adapter's first weights are drawn here
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _prepare_quantised(model: Any) -> Any:
    """Freeze the base. peft's prepare_model_for_kbit_training also turns every norm into float32: not wanted here."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model


def _targets(model: Any, lora: Lora) -> list[str]:
    """Full names of the layers to adapt.

    Raises:
        ModelError: one of the recipe's names is no linear layer of the language model.
    """
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


def _spare_pad(tokenizer: Any, end: str) -> str:
    """A padding token that is not the turn end: labels and truncation counts tell padding from an end by it."""
    for token in (tokenizer.unk_token, *(token.content for token in tokenizer.added_tokens_decoder.values())):
        if token and token != end and "image" not in token:
            return str(token)
    raise ModelError("the tokenizer must have a token to pad with besides the turn end", value=end)


def _not_found(source: str, error: Exception) -> ModelError:
    return ModelError(
        "the model must be a folder or a Hub name that can be reached",
        place=f"[model] name = {source!r}",
        value=str(error).splitlines()[0][:200],
        remedy="Check the name; a gated model needs `hf auth login`; offline, download it once and give its folder.",
    )
