"""`toolkit run --rehearse`: what it shows, and the command for the real run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.pipeline.dry_run import Rehearsed


def rehearse_run(recipe: Path, settings: Sequence[str]) -> None:
    """Rehearse a recipe: samples as they are rendered, the tables of results, and what comes next."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import telling
    from toolkit.pipeline.dry_run import rehearse
    from toolkit.pipeline.stages import STAGES
    from toolkit.recipe import load_recipe
    from toolkit.runfolder import is_main_process
    from toolkit.tasks import TASKS

    loaded = load_recipe(recipe, settings, tasks=TASKS)
    if loaded.imagegen is not None:
        from toolkit.cli import imagegen

        imagegen.dry_run_recipe(loaded)
        return
    with telling() as (progress, notify):
        done = rehearse(loaded, STAGES, show=show.rendered, progress=progress, notify=notify)
    if is_main_process():
        show.results(done.results)
        print(*closing_lines(done, recipe, settings), sep="\n")


def closing_lines(done: "Rehearsed", recipe: Path, settings: Sequence[str]) -> list[str]:
    """That the rehearsal passed and how long it took, on what, what the real run lacks, and its command."""
    rows = (
        "practice data, since the recipe's own rows are not here" if done.no_rows else "some of the recipe's own rows"
    )
    lines = [
        f"\nthe rehearsal passed in {done.seconds:.0f} s, with the tiny model on {rows}: the figures above show that "
        "every stage works, and say nothing about the real model"
    ]
    lines += [f"before the real run: {line}" for line in done.lacking]
    words = ["toolkit", "run", str(recipe), *(word for setting in settings for word in ("--set", setting))]
    return [*lines, f"the real run: {shlex.join(words)}"]
