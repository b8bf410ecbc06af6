"""A run's export on its way to the Hub: which form, whether it must be exported first, and the push."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.exporting.push import Push, check_push, is_proven, push_form
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, current_weights

__all__ = ["Form", "Push", "prepare_push", "push_export"]


@dataclass(frozen=True, slots=True)
class Form:
    """The form that is pushed; ``open``: it must be exported first."""

    name: str
    open: bool


def prepare_push(run: RunFolder, recipe: Recipe, repo: str) -> Form:
    """What a push to ``repo`` needs, found before any work.

    Raises:
        RunError: the recipe names several forms, or nothing can be pushed from here.
    """
    check_push(Push(repo))
    forms = recipe.export.to if recipe.export else ()
    if len(forms) != 1:
        rule, remedy = "exactly one format must be pushed to a repository", "Name it, such as --to merged."
        raise RunError("push.one_format_only", rule, place="--push", value=", ".join(forms), remedy=remedy)
    weights = current_weights(run, recipe)
    return Form(forms[0], open=weights is None or not is_proven(run, weights, forms[0]))


def push_export(run: RunFolder, record: Mapping[str, Any], form: str, push: Push) -> str:
    """Push a form that ``record`` tells of, and give the address of the commit.

    Raises:
        ModelError, RunError: as ``push_form``.
    """
    if form not in record:
        rule, remedy = "the format must be exported before it is pushed", "Export it first."
        raise RunError("push.format_not_exported", rule, place="--push", value=form, remedy=remedy)
    return push_form(run.path / Path(record[form]["folder"]), record[form], push)
