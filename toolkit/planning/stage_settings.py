"""A recipe's stages as settings of the memory model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

from toolkit.models.chat_template import Length
from toolkit.models.choose import HF, backend_name
from toolkit.models.unsloth.limits import unsupported_reasons
from toolkit.planning.architecture import Architecture
from toolkit.planning.memory import Precision, RowSize, Setting
from toolkit.planning.memory.setting import Stage
from toolkit.planning.tokens import Tokens, row_size
from toolkit.recipe import Model, Recipe

OVERFLOWING = ("gemma3", "gemma4", "qwen3_5")
"""Model types that Unsloth computes in float32 on a GPU without bfloat16 (unsloth_zoo's ``FORCE_FLOAT32``)."""


def planned_precision(model: Model, *, cuda: bool) -> Precision:
    """4bit, 8bit, 16bit or 32bit: what loading makes of the recipe's precision on such a machine."""
    if model.precision != "auto":
        return model.precision
    return "4bit" if cuda and model.tuning == "lora" else "32bit"


def planned_backend(recipe: Recipe, *, here: bool = False) -> Literal["hf", "unsloth"]:
    """Return the backend that trains the recipe on a GPU, as ``backends.choice`` chooses it.

    ``here``: on the GPU of this machine, where Unsloth may be missing. On another GPU it is taken to be installed.
    """
    model = recipe.model
    if model.backend == "unsloth":
        return "unsloth"
    named = model.backend == "hf" or model.name == "tiny" or model.tuning != "lora" or model.precision == "32bit"
    if named or unsupported_reasons(recipe):
        return "hf"
    return "hf" if here and backend_name(model) == HF else "unsloth"


def on_gpu(setting: Setting, model: Architecture, *, bf16: bool) -> Setting:
    """Return the setting on a GPU with or without bfloat16. Unsloth takes float16 in its place, which has the same
    size, unless the model overflows in it.
    """
    halved = setting.backend == "unsloth" and not model.model_type.startswith(OVERFLOWING)
    return replace(setting, bf16=bf16 or halved)


def memory_settings(
    recipe: Recipe,
    model: Architecture,
    tokens: Tokens | None,
    *,
    bf16: bool,
    asked: Tokens | None = None,
    backend: Literal["hf", "unsloth"] | None = None,
) -> dict[Stage, Setting]:
    """Stage -> what its memory depends on, on a CUDA device, with the longest of the rows that were counted.

    ``tokens`` are of the rows to train on, ``asked`` of those that are evaluated; each stands in for the other. Without
    tokens a row has none: what the weights take is known all the same. ``backend`` None is ``planned_backend``'s.
    """
    tokens, asked = tokens or asked, asked or tokens
    tower = model.vision
    row = prompt = asked_prompt = row_size(Length(0, 0, 0), tower)
    if tokens is not None:
        row = row_size(tokens.longest, tower, tokens.longest_sizes)
        prompt = row_size(tokens.longest_prompt, tower, tokens.longest_prompt_sizes)
    if asked is not None:
        asked_prompt = row_size(asked.longest_prompt, tower, asked.longest_prompt_sizes)
    found: dict[Stage, Setting] = {}
    if recipe.sft is not None:
        found["sft"] = _setting(recipe, "sft", row, bf16=bf16, rows=recipe.sft.batch_size)
    if recipe.grpo is not None:
        found["grpo"] = _setting(
            recipe,
            "grpo",
            prompt,
            bf16=bf16,
            rows=recipe.grpo.micro_batch,
            concurrent=recipe.grpo.completions_per_step,
            answer_tokens=recipe.grpo.max_completion_tokens,
            reference=_reference(recipe),
        )
    if recipe.evaluate is not None:
        found["evaluate"] = _setting(
            recipe,
            "evaluate",
            asked_prompt,
            bf16=bf16,
            concurrent=recipe.evaluate.batch_size,
            answer_tokens=recipe.evaluate.max_completion_tokens,
        )
    chosen = backend or planned_backend(recipe)
    return {stage: on_gpu(replace(one, backend=chosen), model, bf16=bf16) for stage, one in found.items()}


def _setting(recipe: Recipe, stage: Stage, longest: RowSize, **more: object) -> Setting:
    section = {"sft": recipe.sft, "grpo": recipe.grpo}.get(stage)
    optimisation: Mapping[str, object] = (
        {} if section is None else {"optimizer": section.optimizer, "checkpointing": section.gradient_checkpointing}
    )
    return Setting(
        stage=stage,
        row=longest,
        precision=planned_precision(recipe.model, cuda=True),
        tuning=recipe.model.tuning,
        r=recipe.lora.r,
        dropout=recipe.lora.dropout,
        targets=recipe.lora.targets,
        lora_vision=recipe.lora.vision,
        eager=recipe.model.attention == "eager",
        **cast(Mapping[str, object], {**optimisation, **more}),  # type: ignore[arg-type]
    )


def _reference(recipe: Recipe) -> str:
    """TRL keeps a copy of the adapter that GRPO goes on from, or of the whole model; a new adapter it switches off."""
    if recipe.grpo is None or recipe.grpo.beta == 0:
        return "none"
    if recipe.model.tuning == "full":
        return "model"
    return "adapter" if recipe.sft is not None or recipe.model.adapter is not None else "none"
