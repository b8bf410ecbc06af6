"""The recipe: one TOML file as frozen sections, loaded with every problem at once."""

from toolkit.recipe.base import Section
from toolkit.recipe.checks import absent, for_image_generators, for_language_models
from toolkit.recipe.load import changed_keys, dump_recipe, load_recipe
from toolkit.recipe.sections import (
    REHEARSAL,
    SPLITS,
    Data,
    Evaluate,
    Export,
    Grpo,
    Images,
    Lora,
    Model,
    Optimisation,
    Phantom,
    Prompt,
    Recipe,
    Rewards,
    Run,
    Sft,
    Split,
    recipe_model,
)
from toolkit.recipe.task import RecipeTask

__all__ = [
    "REHEARSAL",
    "SPLITS",
    "Data",
    "Evaluate",
    "Export",
    "Grpo",
    "Images",
    "Lora",
    "Model",
    "Optimisation",
    "Phantom",
    "Prompt",
    "Recipe",
    "RecipeTask",
    "Rewards",
    "Run",
    "Section",
    "Sft",
    "Split",
    "absent",
    "changed_keys",
    "dump_recipe",
    "for_image_generators",
    "for_language_models",
    "load_recipe",
    "recipe_model",
]
