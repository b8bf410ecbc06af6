"""What a recipe trains, in a few words for a table; a model in a folder is called by the folder's own name."""

from pathlib import Path

from toolkit.recipe import Grpo, Recipe, Sft


def task_name(recipe: Recipe) -> str:
    """The task of a recipe's rows, or that it is one of image generation."""
    return recipe.task.name if recipe.imagegen is None else "image generation"


def model_name(recipe: Recipe | None) -> str | None:
    """The model with its precision and tuning; None where the recipe cannot be read."""
    if recipe is None:
        return None
    if recipe.imagegen is not None:
        generator = recipe.imagegen.generator
        return f"{Path(generator.model).name}, {generator.precision}, LoRA r {generator.lora.r}"
    model = recipe.model
    name = model.name.rstrip("/").rpartition("/")[2] if model.name.startswith(("/", "./", "../", "~")) else model.name
    tuning = f"LoRA r {recipe.lora.r}" if model.tuning == "lora" else "full"
    return f"{name}, {model.precision}, {tuning}"


def training_of(recipe: Recipe | None) -> str | None:
    """SFT and GRPO with length, batch and learning rate; None: nothing is trained, or the recipe cannot be read."""
    if recipe is None:
        return None
    if recipe.imagegen is not None:
        return ", ".join(recipe.imagegen.update.methods)
    parts = [_sft(recipe.sft)] if recipe.sft else []
    parts += [_grpo(recipe.grpo)] if recipe.grpo else []
    return "; ".join(parts) or None


def _sft(sft: Sft) -> str:
    return f"SFT {_length(sft)}, batch {sft.batch_size} x {sft.accumulation}, learning rate {sft.learning_rate:g}"


def _grpo(grpo: Grpo) -> str:
    batch = f"{grpo.prompts_per_step} prompts x {grpo.generations} completions"
    return f"GRPO {_length(grpo)}, {batch}, learning rate {grpo.learning_rate:g}"


def _length(section: Sft | Grpo) -> str:
    if section.max_steps is not None:
        return f"{section.max_steps} steps"
    return f"{section.epochs:g} epoch{'' if section.epochs == 1 else 's'}"
