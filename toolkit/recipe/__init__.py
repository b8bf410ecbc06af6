"""Load a recipe, one TOML file, into frozen sections. All errors are reported together."""

from toolkit.recipe.base import RecipeTask, Section
from toolkit.recipe.load import changed_keys, dump_recipe, load_recipe, load_table, recipe_model
from toolkit.recipe.model_kind import for_image_generators, for_language_models
from toolkit.recipe.requirements import missing_requirements
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sections import DRY_RUN_SUFFIX, SPLITS, Data, Images, Lora, Model, Prompt, Run, Split, SyntheticData
from toolkit.recipe.stage_sections import Dpo, Evaluate, Export, Grpo, Optimisation, Rewards, Sft, Validation

__all__ = [
    "DRY_RUN_SUFFIX",
    "SPLITS",
    "Data",
    "Dpo",
    "Evaluate",
    "Export",
    "Grpo",
    "Images",
    "Lora",
    "Model",
    "Optimisation",
    "Prompt",
    "Recipe",
    "RecipeTask",
    "Rewards",
    "Run",
    "Section",
    "Sft",
    "Split",
    "SyntheticData",
    "Validation",
    "changed_keys",
    "dump_recipe",
    "for_image_generators",
    "for_language_models",
    "load_recipe",
    "load_table",
    "missing_requirements",
    "recipe_model",
]
