"""Problems of a plan with its model: configuration, processor, layers, family, weights and export formats."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.errors import (
    MissingExtraError,
    ModelError,
    Problem,
    ToolkitError,
    TrainingError,
)
from toolkit.models.adapter_config import CONFIG, check_adapter
from toolkit.models.families import IMAGE_BLOCKS, family_of
from toolkit.models.llamacpp import formats_of, require_for
from toolkit.models.processor import open_processor
from toolkit.models.weight_files import check_model_folder
from toolkit.planning.architecture import Linear, build_linears
from toolkit.planning.facts import Check, Facts
from toolkit.planning.findings import PlanFinding, from_error
from toolkit.planning.model_files import Configuration
from toolkit.planning.tokens import find_processor
from toolkit.recipe import Model, Recipe
from toolkit.recipe.model_kind import is_folder_name
from toolkit.recipe.sections import ALL_LINEAR
from toolkit.runfolder import find_weights


def _check_family(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding for a family whose training is known to stop."""
    recipe, model_type = facts.recipe, "" if facts.config is None else facts.config.model_type
    reason = family_of(model_type).untrainable
    if reason and recipe.training:
        rule = f"models of the family {model_type} cannot be trained: {reason}"
        remedy = "Choose another model."
        yield PlanFinding(Problem("model.family_not_trainable", rule, "[model] name", recipe.model.name, remedy))


def check_export(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings if a package for GGUF files is missing, or the converter does not support the model's family."""
    section = facts.recipe.export
    model_type = "" if facts.config is None else facts.config.model_type
    if section is not None and "gguf" in formats_of(section) and family_of(model_type).gguf is False:
        rule = f"a GGUF file of the family {model_type} cannot be exported, because llama.cpp's converter rejects it"
        place, remedy = f"[export] {'to' if 'gguf' in section.to else 'optional'}", 'Remove "gguf".'
        yield PlanFinding(Problem("export.gguf_family_unsupported", rule, place, "gguf", remedy))
    if section is None or "gguf" not in section.to:
        return
    try:
        require_for(section.quant, verify=section.verify > 0)
    except MissingExtraError as error:
        yield PlanFinding(replace(error.problem, place="[export] to"))


def _check_grpo_family(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if TRL cannot train the model's family, or drops image fields that it needs."""
    if facts.recipe.grpo is None or facts.config is None:
        return
    from toolkit.models.pixel_layout import check_grpo_supports  # imports torch

    try:
        processor = find_processor(facts.recipe)
        if processor is not None:
            check_grpo_supports(processor, facts.config.model_type)
    except TrainingError as error:
        yield from_error(error, "[grpo]")
    except ModelError:  # another check reports the chat template
        return


def _check_model(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings if a model folder is incomplete, or the model lacks layers or attention of the recipe."""
    recipe, config, model, tokens = facts.recipe, facts.config, facts.architecture, facts.tokens
    place = "[model] name"
    folder = Path(recipe.model.name) if is_folder_name(recipe.model.name) else None
    if folder is not None and folder.is_dir():
        if config is None:
            rule = "the model folder must contain config.json"
            yield PlanFinding(Problem("plan.config_missing", rule, place, str(folder), "Name a complete model folder."))
        elif tokens is not None and tokens.rows and not tokens.exact:
            yield from _check_processor(recipe.model)
    if config is not None and model is None and not _can_be_built(config, recipe.model):
        rule = "the model_type must be one that the installed transformers loads for images and text"
        remedy = "Name another model, or install a version of transformers that supports it."
        yield PlanFinding(Problem("plan.model_type_unsupported", rule, place, config.model_type, remedy))
    elif facts.model_error is not None and _is_certain(facts.model_error, recipe.model):
        yield from_error(facts.model_error, place)
    elif config is not None:
        if _trains_named_layers(recipe) and not recipe.model.trust_remote_code:
            yield from _check_lora_targets(recipe, build_linears(config.fields) if model is None else model.linears)
        yield from _check_attention(recipe.model, config.model_type)


def _is_certain(error: ToolkitError, model: Model) -> bool:
    """Return whether a run would end with the error of a model's configuration. Code of its authors may load it."""
    return error.code == "model.library_missing" or (
        error.code != "plan.shapes_unknown" and not model.trust_remote_code
    )


def _check_processor(model: Model) -> Iterator[PlanFinding]:
    """Yield why the processor in a model folder does not load."""
    try:
        open_processor(model, local=True)
    except ModelError as error:
        if error.code != "model.processor_unusable":
            yield from_error(error, "[model] name")
            return
        rule = (
            f"the model folder must contain a processor that loads, with tokenizer and image processor: {error.value}"
        )
        remedy = "Copy the files of the model's processor into the folder."
        yield PlanFinding(Problem("plan.processor_missing", rule, "[model] name", model.name, remedy))


def _check_weights(facts: Facts) -> Iterator[PlanFinding]:
    yield from check_start(facts.recipe.model)


def check_start(model: Model) -> Iterator[PlanFinding]:
    """Yield a finding if ``model.adapter`` has no valid weights. ``check_base`` reports those of ``model.name``."""
    if model.adapter is None or not model.adapter.exists():
        return
    try:
        weights = find_weights(model.adapter)
        if (weights / CONFIG).is_file():
            check_adapter(weights)
        else:
            check_model_folder(weights)
    except ToolkitError as error:
        yield from_error(error, "[model] adapter")


def _can_be_built(config: Configuration, model: Model) -> bool:
    """Return whether transformers supports the model. Custom code of the model's authors may support more."""
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


def _trains_named_layers(recipe: Recipe) -> bool:
    has_new_adapter = recipe.model.tuning == "lora" and recipe.model.adapter is None
    return has_new_adapter and bool(recipe.training) and recipe.lora.targets != ALL_LINEAR


def _check_lora_targets(recipe: Recipe, linears: Sequence[Linear]) -> Iterator[PlanFinding]:
    """Check the targets of a new adapter, as ``toolkit.models.lora`` does."""
    available = {linear.name for linear in linears if not (linear.vision or linear.audio)}
    if missing := sorted(set(recipe.lora.targets) - available):
        rule, remedy = "must name linear layers of the language model", f"Choose from: {', '.join(sorted(available))}."
        yield PlanFinding(Problem("model.lora_target_unknown", rule, "[lora] targets", missing, remedy))


def _check_attention(model: Model, model_type: str) -> Iterator[PlanFinding]:
    """Check the attention implementation, as ``toolkit.models.loading`` does."""
    if model.attention == "flash_attention_2" and model_type in IMAGE_BLOCKS:
        rule = "must support the bidirectional attention between the model's image tokens"
        remedy = 'Set attention = "sdpa" or "eager".'
        yield PlanFinding(
            Problem("model.attention_ignores_image_blocks", rule, "[model] attention", model.attention, remedy)
        )


MODEL_CHECKS: tuple[Check, ...] = (_check_grpo_family, _check_model, _check_family, _check_weights)
