"""Push one exported format of a run to the Hub, after exporting it if necessary."""

from dataclasses import dataclass

from toolkit.errors import RunError
from toolkit.exporting.push import Push, check_push, is_verified_export, push_format
from toolkit.exporting.results import ExportResult
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, current_weights

__all__ = ["Push", "PushFormat", "prepare_push", "push_export"]


@dataclass(frozen=True, slots=True)
class PushFormat:
    """The format to push.

    Attributes:
        name: adapter, merged or gguf.
        needs_export: whether it must be exported first.
    """

    name: str
    needs_export: bool


def prepare_push(run: RunFolder, recipe: Recipe, repo: str) -> PushFormat:
    """Return the format to push to ``repo``, before any work is done.

    Raises:
        RunError: the recipe has several formats, or this machine cannot push.
    """
    check_push(Push(repo))
    formats = recipe.export.to if recipe.export else ()
    if len(formats) != 1:
        rule, remedy = "exactly one format must be pushed to a repository", "Name it, such as --to merged."
        raise RunError("push.one_format_only", rule, place="--push", value=", ".join(formats), remedy=remedy)
    weights = current_weights(run, recipe)
    return PushFormat(formats[0], needs_export=weights is None or not is_verified_export(run, weights, formats[0]))


def push_export(run: RunFolder, result: ExportResult, name: str, push: Push) -> str:
    """Push an exported format, and return the address of the commit.

    Raises:
        RunError: the format was not exported.
        ModelError, RunError: as in ``push_format``.
    """
    if name not in result.formats:
        rule, remedy = "the format must be exported before it is pushed", "Export it first."
        raise RunError("push.format_not_exported", rule, place="--push", value=name, remedy=remedy)
    export = result.formats[name]
    return push_format(run.path / export.folder, export, push)
