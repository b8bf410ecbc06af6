"""Whether the model can be loaded and adapted as the recipe says, as far as its files tell."""

from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import Problem
from toolkit.models.module_names import IMAGE_BLOCKS
from toolkit.planning.architecture import Architecture
from toolkit.planning.findings import Finding
from toolkit.planning.model_configs import Configuration
from toolkit.planning.tokens import Tokens
from toolkit.recipe import Model, Recipe
from toolkit.recipe.checks import is_folder_name


def judge_model(
    recipe: Recipe, config: Configuration | None, model: Architecture | None, tokens: Tokens | None
) -> Iterator[Finding]:
    """A folder without configuration or processor, an architecture that cannot be loaded, layers that are not there."""
    place = "[model] name"
    folder = Path(recipe.model.name) if is_folder_name(recipe.model.name) else None
    if folder is not None and folder.is_dir():
        if config is None:
            rule = "the model folder must contain config.json"
            yield Finding(Problem("plan.config_missing", rule, place, str(folder), "Name a complete model folder."))
        elif tokens is not None and tokens.rows and not tokens.exact:
            rule = "the model folder must contain a processor that loads: tokenizer and image processor"
            remedy = "Copy the files of the model's processor into the folder."
            yield Finding(Problem("plan.processor_missing", rule, place, str(folder), remedy))
    if config is not None and model is None and not _can_be_built(config, recipe.model):
        rule = "the model_type must be one that the installed transformers loads for images and text"
        remedy = "Name another model, or install a version of transformers that supports it."
        yield Finding(Problem("plan.model_type_unsupported", rule, place, config.model_type, remedy))
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
        rule, remedy = "must name linear layers of the language model", f"Choose from: {', '.join(sorted(there))}."
        yield Finding(Problem("model.lora_target_unknown", rule, "[lora] targets", missing, remedy))


def _judge_attention(model: Model, architecture: Architecture) -> Iterator[Finding]:
    """As ``backends.loading.check_attention``."""
    if model.attention == "flash_attention_2" and architecture.model_type in IMAGE_BLOCKS:
        rule = "must support the bidirectional attention between the model's image tokens"
        remedy = 'Set attention = "sdpa" or "eager".'
        yield Finding(
            Problem("model.attention_ignores_image_blocks", rule, "[model] attention", model.attention, remedy)
        )
