"""A run's export on its way to the Hub: which form, whether it must be exported first, and the push."""

from dataclasses import dataclass

from toolkit.errors import RunError
from toolkit.recipe import Recipe
from toolkit.run import EXPORT, Record, RunFolder, current_weights
from toolkit.stages.export.push import Push, check_push, is_proven, push_form


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
        raise RunError(
            "a repository holds one form",
            place="--push",
            value=", ".join(forms),
            remedy="Name it, such as --set 'export.to=[\"merged\"]'.",
        )
    weights = current_weights(run, recipe)
    return Form(forms[0], open=weights is None or not is_proven(run, weights, forms[0]))


def push_export(run: RunFolder, form: str, repo: str, *, public: bool, force: bool) -> Record:
    """Push a form that was exported; gives the export's record with the commit's address as ``pushed``.

    Raises:
        ModelError, RunError: as ``push_form``.
    """
    record = run.record(EXPORT)
    if form not in record:
        raise RunError("this form was not written", place="--push", value=form)
    found = record[form]
    return {**record, "pushed": push_form(run.path / found["folder"], found, Push(repo, public, force))}
