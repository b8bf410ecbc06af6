"""Checks of [imagegen] together with the other sections of a recipe, and of the files that it names."""

from collections.abc import Collection, Iterator
from pathlib import Path

from toolkit.errors import Problem
from toolkit.recipe.checks import Check, tracker_examples_fit
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.model_kind import is_folder_name
from toolkit.recipe.requirements import missing
from toolkit.recipe.schema import Recipe

SECTIONS = ("run", "images", "imagegen")
"""The sections of a recipe with [imagegen]."""


def only_imagegen_stages(sections: Collection[str]) -> Iterator[Problem]:
    """Reject sections for vision-language models beside [imagegen].

    Args:
        sections: names of the sections that the recipe has.
    """
    if "imagegen" not in sections:
        return
    for name in sections:
        if name in Recipe.model_fields and name not in SECTIONS:
            rule = f"[{name}] is for vision-language models and must not be beside [imagegen]"
            remedy = "Remove it, or use a recipe of its own."
            yield Problem("recipe.section_beside_imagegen", rule, name, remedy=remedy)


def independent_judge(imagegen: Imagegen, run_seed: int) -> Iterator[Problem]:
    """Require that the judge differs from the selector: another seed and another encoder."""
    judge, selector = imagegen.judge, imagegen.selector
    if judge.seed == run_seed:
        rule, remedy = "must differ from run.seed, which the selector uses", "Change one of them."
        yield Problem("recipe.judge_seed_reused", rule, "imagegen.judge.seed", judge.seed, remedy)
    if (judge.encoder, judge.revision) == (selector.encoder, selector.revision):
        rule = "must differ from imagegen.selector.encoder, because the same encoder makes the same errors"
        remedy = "Choose another encoder or revision."
        yield Problem("recipe.judge_encoder_reused", rule, "imagegen.judge.encoder", judge.encoder, remedy)


def _judge_differs(recipe: Recipe) -> Iterator[Problem]:
    if recipe.imagegen is not None:
        yield from independent_judge(recipe.imagegen, recipe.run.seed)


IMAGEGEN_CHECKS: tuple[tuple[frozenset[str], Check], ...] = (
    (frozenset({"run", "imagegen"}), _judge_differs),
    (frozenset({"run"}), tracker_examples_fit),
)
"""As ``CHECKS``, for a recipe with [imagegen]."""


def missing_imagegen_files(recipe: Recipe) -> Iterator[Problem]:
    """Yield files and folders that [imagegen] names and that do not exist."""
    section = recipe.imagegen
    if section is None:
        return
    for source in section.ratings:
        if not source.startswith("hub:") and not Path(source).exists():
            yield missing("recipe.rows_missing", "must be an existing file or folder", "imagegen.ratings", source)
    if section.image_root is not None and not section.image_root.is_dir():
        rule = "must be an existing folder"
        yield missing("recipe.folder_missing", rule, "imagegen.image_root", section.image_root)
    models = {f"imagegen.{name}.encoder": getattr(section, name).encoder for name in ("selector", "policy", "judge")}
    for key, name in {**models, "imagegen.generator.model": section.generator.model}.items():
        if is_folder_name(name) and not Path(name).is_dir():
            yield missing("recipe.folder_missing", "must be an existing folder", key, name)
