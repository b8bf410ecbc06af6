"""Which recipes run on this machine, by what was found."""

from collections.abc import Sequence

from toolkit.doctor.finding import Finding, joined
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import TINY_GENERATOR

TINY = (
    "recipes/quickstart.toml",
    "recipes/ham10000_tiny.toml",
    "recipes/lesions_tiny.toml",
    "recipes/steps_tiny.toml",
    "recipes/imagegen_tiny.toml",
)
"""The shipped recipes of the tiny model; a test holds the list."""


def check_recipes(recipe: Recipe | None, found: Sequence[Finding], gpu: bool) -> Finding:
    """What runs: the recipe that was named, else which of those that are shipped.

    Args:
        recipe: the one that was named.
        found: everything else.
        gpu: whether torch can use a GPU.
    """
    broken = [one.name for one in found if one.state == "problem"]
    first = Finding("recipes", "problem", f"first solve: {', '.join(broken)}", "See above.")
    if recipe is not None:
        own = _named(recipe, gpu)
        return joined(own, first) if broken else own
    if broken:
        return first
    if gpu:
        return Finding("recipes", "good", "all of them, as far as the GPU's memory reaches")
    return Finding("recipes", "good", f"on the CPU: {', '.join(TINY)}; the others need a GPU")


def _named(recipe: Recipe, gpu: bool) -> Finding:
    if recipe.imagegen is not None:
        return _image_generator(recipe.run.name, recipe.imagegen.generator.model, gpu)
    model = recipe.model
    name = f"{recipe.run.name} ({model.name}, {model.precision})"
    if gpu:
        return Finding("recipes", "good", f"{name} can begin; whether it fits is not looked at")
    if model.precision in ("4bit", "8bit"):
        remedy = (
            "Run it on a machine with a GPU; to try the recipe here: --set model.name=tiny --set model.precision=auto."
        )
        return Finding("recipes", "problem", f"{name} needs a GPU, and torch has none", remedy)
    if model.backend == "unsloth":
        remedy = "Run it on a machine with a GPU, or with --set model.backend=hf."
        return Finding("recipes", "problem", f"{name}: Unsloth needs a GPU, and torch has none", remedy)
    if model.name != "tiny":
        return Finding(
            "recipes", "warning", f"{name} runs on the CPU", "A 4B model takes minutes a step there: use a GPU."
        )
    return Finding("recipes", "good", f"{name} runs on the CPU")


def _image_generator(run: str, model: str, gpu: bool) -> Finding:
    name = f"{run} ({model})"
    if gpu:
        return Finding("recipes", "good", f"{name} can begin; whether it fits is not looked at")
    if model != TINY_GENERATOR:
        remedy = "Stable Diffusion takes minutes an image there: use a GPU."
        return Finding("recipes", "warning", f"{name} runs on the CPU", remedy)
    return Finding("recipes", "good", f"{name} runs on the CPU")
