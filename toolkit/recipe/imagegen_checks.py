"""What must hold between [imagegen] and the other sections of a recipe."""

from collections.abc import Collection, Iterator
from pathlib import Path

from toolkit.recipe.checks import Check, Finding, is_folder_name
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.sections import Recipe

SECTIONS = ("run", "images", "imagegen")
"""The sections of a recipe with [imagegen]."""


def only_imagegen_stages(sections: Collection[str]) -> Iterator[Finding]:
    """Reject sections for vision-language models beside [imagegen].

    Args:
        sections: names of the sections that the recipe has.
    """
    if "imagegen" not in sections:
        return
    for name in sections:
        if name in Recipe.model_fields and name not in SECTIONS:
            rule = f"[{name}] is for vision-language models and cannot be beside [imagegen]"
            yield name, f"{rule}. Remove it, or use a recipe of its own"


def independent_judge(imagegen: Imagegen, run_seed: int) -> Iterator[Finding]:
    """Require that the judge differs from the selector: another seed and another encoder."""
    judge, selector = imagegen.judge, imagegen.selector
    if judge.seed == run_seed:
        yield "imagegen.judge.seed", f"must differ from run.seed, which the selector uses (got {judge.seed})"
    if (judge.encoder, judge.revision) == (selector.encoder, selector.revision):
        rule = "must differ from imagegen.selector.encoder: a judge that shares it shares its errors"
        yield "imagegen.judge.encoder", f"{rule} (got {judge.encoder!r})"


def _judge_differs(recipe: Recipe) -> Iterator[Finding]:
    if recipe.imagegen is not None:
        yield from independent_judge(recipe.imagegen, recipe.run.seed)


IMAGEGEN_CHECKS: tuple[tuple[frozenset[str], Check], ...] = ((frozenset({"run", "imagegen"}), _judge_differs),)
"""As ``CHECKS``, for a recipe with [imagegen]."""


def missing_imagegen_files(recipe: Recipe) -> Iterator[Finding]:
    """Files and folders that [imagegen] names and that do not exist."""
    section = recipe.imagegen
    if section is None:
        return
    for source in section.ratings:
        if not source.startswith("hub:") and not Path(source).exists():
            yield "imagegen.ratings", f"must exist (got {source}). Correct the path"
    if section.image_root is not None and not section.image_root.is_dir():
        yield "imagegen.image_root", f"must be a folder (got {section.image_root}). Correct the path"
    models = {f"imagegen.{name}.encoder": getattr(section, name).encoder for name in ("selector", "policy", "judge")}
    for key, name in {**models, "imagegen.generator.model": section.generator.model}.items():
        if is_folder_name(name) and not Path(name).is_dir():
            yield key, f"must be an existing folder (got {name}). Correct the path"
