"""Seeds derived from those of a recipe, one for each purpose. The plan uses them too, so torch is not imported."""

import hashlib
from typing import Literal

from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen

SEED_RANGE = 2**31
"""Seeds of NumPy and of estimators are below it."""

Part = Literal["selector", "policy", "judge", "extractor", "generator", "sft", "ddpo", "evaluation"]


def derive_seed(*parts: int | str) -> int:
    """Return a seed that depends on all parts, such as the run's seed, a purpose and a round.

    >>> derive_seed(0, "noise", 1) == derive_seed(0, "noise", 1) != derive_seed(1, "noise", 0)
    True
    """
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_of(recipe: Recipe, part: Part) -> int:
    """Return the seed of a part. The judge's is derived from its own key, so that it differs from the selector's."""
    section = imagegen_of(recipe)
    seed = section.judge.seed if part == "judge" else recipe.run.seed
    return derive_seed(seed, part) % SEED_RANGE


def imagegen_of(recipe: Recipe) -> Imagegen:
    """Return the section of a recipe that has one."""
    if recipe.imagegen is None:
        raise ValueError("the recipe must have the section [imagegen]")
    return recipe.imagegen
