"""Whether the model can be loaded and adapted as the recipe says, as far as its files tell."""

from collections.abc import Iterator
from pathlib import Path

from toolkit.backends.parts import IMAGE_BLOCKS
from toolkit.plan.architecture import Architecture
from toolkit.plan.findings import Finding
from toolkit.plan.known import Configuration
from toolkit.plan.tokens import Tokens
from toolkit.recipe import Model, Recipe
from toolkit.recipe.checks import is_folder_name


def judge_model(
    recipe: Recipe, config: Configuration | None, model: Architecture | None, tokens: Tokens | None
) -> Iterator[Finding]:
    """A folder without configuration or processor, an architecture that cannot be loaded, layers that are not there."""
    place = f"[model] name = {recipe.model.name!r}"
    folder = Path(recipe.model.name) if is_folder_name(recipe.model.name) else None
    if folder is not None and folder.is_dir():
        if config is None:
            yield Finding(place, f"{folder} holds no config.json", "Name a folder with a whole model.")
        elif tokens is not None and tokens.rows and not tokens.exact:
            text = f"{folder} holds no processor that can be loaded (tokenizer, picture processor)"
            yield Finding(place, text, "Copy the files of the model's processor there.")
    if config is not None and model is None and not _can_be_built(config, recipe.model):
        text = f"the installed transformers has no model for pictures and text of model_type {config.model_type!r}"
        yield Finding(place, text, "Name another model, or install a transformers that knows it.")
    if config is not None and model is not None:
        yield from _judge_layers(recipe, model)
        yield from _judge_attention(recipe.model, model)


def _can_be_built(config: Configuration, model: Model) -> bool:
    """Whether transformers knows such a model and its configuration passes; the authors' own code may know more."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if model.trust_remote_code:
        return True
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return False
    try:
        CONFIG_MAPPING[config.model_type].from_dict(dict(config.fields))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, StrictDataclassError):
        return False
    return True


def _judge_layers(recipe: Recipe, model: Architecture) -> Iterator[Finding]:
    """As ``backends.adapter.layers``, which a new adapter is made with."""
    if recipe.model.tuning != "lora" or recipe.model.adapter is not None or not (recipe.sft or recipe.grpo):
        return
    there = {one.name for one in model.linears if not one.vision}
    if missing := sorted(set(recipe.lora.targets) - there):
        text = f"no linear layers of the language model: {', '.join(missing)}"
        yield Finding("[lora] targets", text, f"It has: {', '.join(sorted(there))}.")


def _judge_attention(model: Model, architecture: Architecture) -> Iterator[Finding]:
    """As ``backends.loading.refuse_blind_attention``."""
    if model.attention == "flash_attention_2" and architecture.model_type in IMAGE_BLOCKS:
        text = "picture tokens of this model see each other both ways, and flash_attention_2 leaves that out"
        yield Finding("[model] attention", text, 'Set attention = "sdpa" or "eager".')
