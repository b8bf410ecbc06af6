"""The dry run of a recipe with [imagegen]: every stage with few steps, tiny random networks and images of 32 pixels.

It shows that the ratings can be read and that every stage runs. It does not load the recipe's models, and its figures
have no meaning.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import warn
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.recipe import DRY_RUN_SUFFIX, Recipe, changed_keys
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_checks import missing_imagegen_files
from toolkit.recipe.imagegen_sections import SYNTHETIC_EXPERT_LEVELS, SYNTHETIC_MODALITIES
from toolkit.recipe.load import merge
from toolkit.runfolder import Progress, RunFolder, new_folder, no_progress
from toolkit.runfolder.cache import cache_folder

if TYPE_CHECKING:  # imagegen imports torch
    from toolkit.imagegen.results import ImagegenResult

log = logging.getLogger(__name__)

SIDE, PROMPT_BYTES, IMAGES = 32, 512, 150

Changes = dict[str, Any]
"""Dotted key -> new value."""


def dry_run_imagegen(
    recipe: Recipe, *, progress: Progress = no_progress, notify: Callable[[int], None] = lambda number: None
) -> "tuple[RunFolder, ImagegenResult]":
    """Run the dry run of a recipe from its beginning, in a folder of its own that the next dry run replaces.

    Raises:
        ToolkitError: a stage failed, as it would in a run.
    """
    lacking = [
        problem
        for problem in missing_imagegen_files(recipe)
        if problem.place in ("imagegen.ratings", "imagegen.image_root")
    ]
    derived = derive_dry_run(recipe, tiny_pipeline(), own_ratings=not lacking)
    for problem in lacking:
        rule = "the dry run uses synthetic ratings, because a path of the recipe does not exist"
        warn("imagegen.dry_run_ratings_synthetic", rule, place=problem.place, value=problem.value)
    log.info("dry run: a tiny random Stable Diffusion pipeline and tiny encoders replace the recipe's models")
    for key, (old, new) in changed_keys(recipe, derived).items():
        log.debug("dry run: %s: %s -> %s", key, old, new)
    return run_imagegen(derived, fresh=True, progress=progress, notify=notify)


def tiny_pipeline() -> Path:
    """Return the folder of a tiny random pipeline, which is written into the cache first."""
    folder = cache_folder() / "imagegen" / f"tiny-pipeline-{PROMPT_BYTES}"
    if not folder.is_dir():
        from toolkit.imagegen.generators.stable_diffusion import save_tiny_pipeline

        with new_folder(folder) as partial:
            save_tiny_pipeline(partial, tokens=PROMPT_BYTES)
    return folder


def derive_dry_run(recipe: Recipe, pipeline: Path, *, own_ratings: bool) -> Recipe:
    """Return the recipe of the dry run. ``changed_keys`` shows the differences.

    Args:
        recipe: any recipe with [imagegen]. It is not changed.
        pipeline: folder of the pipeline that is used instead.
        own_ratings: use the recipe's ratings. False: synthetic ones.
    """
    section = recipe.imagegen
    if section is None:
        raise ValueError("the recipe must have the section [imagegen]")
    changes: Changes = {
        "run.name": recipe.run.name.removesuffix(DRY_RUN_SUFFIX) + DRY_RUN_SUFFIX,
        "run.purpose": "dry_run",
        "run.checkpoint_steps": 2,
        "imagegen.size": SIDE,
        **{f"imagegen.{key}": value for key, value in _smaller(section, pipeline)},
    }
    raw = recipe.model_dump()
    if not own_ratings or section.synthetic is not None:
        changes |= _synthetic(section)
        raw["imagegen"] |= {"windows": {}, "window": "auto", "prompts": {}, "image_root": None, "ratings": ()}
        raw["imagegen"] |= {"expert_weight": "linear", "expert_table": {}}
    return type(recipe).model_validate(merge(raw, [(tuple(key.split(".")), value) for key, value in changes.items()]))


def _smaller(section: Imagegen, pipeline: Path) -> Iterator[tuple[str, Any]]:
    for name, encoder in (("selector", "tiny"), ("policy", "tiny"), ("judge", "tiny-wide")):
        yield f"{name}.encoder", encoder
        yield f"{name}.revision", None
        yield f"{name}.tuning", "auto"
        yield f"{name}.epochs", 1
    yield "selector.target_precision", 0.1  # a selector that has learned nothing must pass something
    yield "judge.images", 24
    yield "judge.features", 8
    yield "judge.bootstrap", 100
    yield "generator.model", str(pipeline)
    yield "generator.revision", None
    yield "generator.licence", _licence(section)
    yield "generator.steps", 3
    yield "generator.batch_size", min(4, section.generator.batch_size)
    yield "update.sft_steps", 2
    yield "update.sft_batch_size", 2
    yield "update.rounds", 1
    yield "update.prompts_per_round", 2
    yield "update.images_per_prompt", 2
    yield "update.updates_per_round", 1
    yield "update.micro_batch", 2
    yield "update.clip_range", max(1e-3, section.update.clip_range)
    yield "guards.action", "log"


def _licence(section: Imagegen) -> str:
    """Return the licence of the recipe's base, which the model card of the dry run names."""
    from toolkit.imagegen.licence import OPEN_RAIL
    from toolkit.imagegen.lora_card import required_licence

    known = required_licence(section)
    return OPEN_RAIL.id if known is None else known.name if known.id == "other" else known.id


def _synthetic(section: Imagegen) -> Changes:
    return {
        "imagegen.synthetic": {"images": IMAGES},
        "imagegen.modalities": tuple(dict.fromkeys([*section.modalities, *SYNTHETIC_MODALITIES])),
        "imagegen.expert_levels": tuple(sorted({*section.expert_levels, *SYNTHETIC_EXPERT_LEVELS})),
    }
