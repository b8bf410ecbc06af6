"""What must hold between [imagegen] and the other sections of a recipe."""

from collections.abc import Collection, Iterator

from toolkit.recipe.checks import Finding
from toolkit.recipe.imagegen import Imagegen

OTHER_STAGES = ("sft", "grpo", "evaluate")
"""Sections that enable stages for vision-language models."""


def only_imagegen_stages(sections: Collection[str]) -> Iterator[Finding]:
    """Reject stages for vision-language models beside [imagegen].

    Args:
        sections: names of the sections that the recipe has.
    """
    if "imagegen" not in sections:
        return
    for name in OTHER_STAGES:
        if name in sections:
            rule = f"[{name}] trains or tests a vision-language model and cannot be beside [imagegen]"
            yield name, f"{rule}. Remove it, or use a recipe of its own"


def independent_judge(imagegen: Imagegen, run_seed: int) -> Iterator[Finding]:
    """Require that the judge differs from the selector: another seed and another encoder."""
    judge, selector = imagegen.judge, imagegen.selector
    if judge.seed == run_seed:
        yield "imagegen.judge.seed", f"must differ from run.seed, which the selector uses (got {judge.seed})"
    if (judge.encoder, judge.revision) == (selector.encoder, selector.revision):
        rule = "must differ from imagegen.selector.encoder: a judge that shares it shares its errors"
        yield "imagegen.judge.encoder", f"{rule} (got {judge.encoder!r})"
