"""Which recipes run on this machine, by what was found."""

from collections.abc import Sequence

from toolkit.diagnostics.finding import Finding, joined
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen_sections import TINY_GENERATOR

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
    first = Finding(
        "doctor.problems_first", "recipes", "problem", f"blocked by: {', '.join(broken)}", "Solve them first."
    )
    if recipe is not None:
        own = _named(recipe, gpu)
        return joined(own, first) if broken else own
    if broken:
        return first
    if gpu:
        return Finding("doctor.recipes_all", "recipes", "good", "all that fit the GPU memory")
    text = f"on the CPU: {', '.join(TINY)}. The others need a GPU"
    return Finding("doctor.recipes_on_cpu", "recipes", "good", text)


def _named(recipe: Recipe, gpu: bool) -> Finding:
    if recipe.imagegen is not None:
        return _image_generator(recipe.run.name, recipe.imagegen.generator.model, gpu)
    model = recipe.model
    name = f"{recipe.run.name} ({model.name}, {model.precision})"
    if gpu:
        return _can_start(name)
    if model.precision in ("4bit", "8bit"):
        remedy = (
            "Run it on a machine with a GPU. To try the recipe here: --set model.name=tiny --set model.precision=auto."
        )
        text = f"{name} needs a GPU, and torch finds none"
        return Finding("doctor.recipe_needs_gpu", "recipes", "problem", text, remedy)
    if model.backend == "unsloth":
        remedy = "Run it on a machine with a GPU, or with --set model.backend=hf."
        text = f"{name}: Unsloth needs a GPU, and torch finds none"
        return Finding("doctor.unsloth_needs_gpu", "recipes", "problem", text, remedy)
    if model.name != "tiny":
        return _slow(name, "Use a GPU. A 4B model takes minutes for a step on a CPU.")
    return Finding("doctor.recipe_on_cpu", "recipes", "good", f"{name} runs on the CPU")


def _slow(name: str, remedy: str) -> Finding:
    return Finding("doctor.recipe_slow_on_cpu", "recipes", "warning", f"{name} runs on the CPU", remedy)


def _can_start(name: str) -> Finding:
    text = f"{name} can start. Its memory is not estimated (see toolkit plan)"
    return Finding("doctor.recipe_can_start", "recipes", "good", text)


def _image_generator(run: str, model: str, gpu: bool) -> Finding:
    name = f"{run} ({model})"
    if gpu:
        return _can_start(name)
    if model != TINY_GENERATOR:
        return _slow(name, "Use a GPU. Stable Diffusion takes minutes for an image on a CPU.")
    return Finding("doctor.recipe_on_cpu", "recipes", "good", f"{name} runs on the CPU")
