"""`toolkit cache`: sizes of the cache, and its removal."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.app import App
from toolkit.cli.options import AsJson
from toolkit.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toolkit.runfolder.cache import CacheKind


class Kind(StrEnum):
    """The kinds of files in the cache."""

    IMAGES = "images"
    ROWS = "rows"
    PLANS = "plans"
    IMAGEGEN = "imagegen"


cache_app = App(help="Show or clear the cache.")


@cache_app.command()
def info(as_json: AsJson = False) -> None:
    """Print the folder of the cache, its limit, and the number and size of the files of each kind."""
    from toolkit.runfolder.cache import LIMIT, cache_folder, cache_limit, cache_sizes

    folder, limit = cache_folder(), cache_limit()
    sizes = cache_sizes(folder)
    if as_json:
        print_json({"folder": folder, "limit": limit, "kinds": sizes})
        return
    print(folder)
    _print_table(sizes)
    print(f"limit: {'none' if limit is None else f'{limit / 1e9:.1f} GB'} ({LIMIT})")


@cache_app.command()
def clear(
    kinds: Annotated[list[Kind] | None, typer.Argument(metavar="KIND", help="images, rows, plans, imagegen.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove the files of these kinds, or of all kinds. Other files in the folder stay.

    The files are made again when they are needed. Do not clear the cache while a run uses it.
    """
    from toolkit.runfolder.cache import cache_folder, clear_cache

    folder = cache_folder()
    removed = clear_cache(folder, list(dict.fromkeys(str(kind) for kind in kinds or Kind)))
    if as_json:
        print_json({"folder": folder, "kinds": removed})
        return
    print(f"removed from {folder}")
    _print_table(removed)


def _print_table(kinds: "Sequence[CacheKind]") -> None:
    for one in kinds:
        print(f"  {one.kind:<9} {one.files:>9,} files {one.size / 1e9:>9.2f} GB  {one.content}")
