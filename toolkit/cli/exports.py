"""Exports on the command line: the options as settings of the recipe, and what was written as a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table


def export_settings(to: Sequence[str], quant: Sequence[str], *, verify: bool) -> list[str]:
    """``--to``, ``--quant`` and ``--no-verify`` as ``--set`` values; an option may hold several names, with commas."""
    settings = []
    for key, given in (("to", to), ("quant", quant)):
        names = [name.strip() for text in given for name in text.split(",") if name.strip()]
        if names:
            settings.append(f"export.{key}={json.dumps(names)}")
            settings += ["export.optional=[]"] if key == "to" else []  # what is named is what is written
    return settings if verify else [*settings, "export.verify=0"]


def is_for_generators(run_folder: Path, push: str | None, method: str | None, others: set[str]) -> bool:
    """Return whether an export is of an image generator, whose LoRA can only be pushed.

    Args:
        run_folder: the run.
        push: of ``--push``.
        method: of ``--method``.
        others: further options that were given.

    Raises:
        typer.BadParameter: an option does not apply to this kind of run.
        RunError: no run is there.
    """
    from toolkit.runfolder import find_run
    from toolkit.tasks import TASKS

    if find_run(run_folder).recipe(TASKS).imagegen is None:
        if method is not None:
            raise typer.BadParameter("must be left out for a vision-language model", param_hint="--method")
        return False
    if push is None:
        place = "The LoRA of an image generator is in stages/METHOD/weights of its run already."
        raise typer.BadParameter(f"must be given for an image generator. {place}", param_hint="--push")
    if others:
        raise typer.BadParameter("must be left out for an image generator", param_hint=", ".join(sorted(others)))
    return True


def gguf_table(record: Mapping[str, Any]) -> Table:
    """A line a file of a GGUF export: size, how it answered beside the merged weights, and its score."""
    verified = record["questions"] > 0
    kind = "held-out questions" if record.get("held_out", True) else "training rows, since none are held out"
    asked = f"{record['questions']} {kind}" if verified else "not verified"
    table = Table(title=f"GGUF, {asked}", caption=_caption(record) if verified else None)
    for name in ("", "file"):
        table.add_column(name, overflow="fold")
    for name in ("MB", "bits", "as merged", "gap", "score"):
        table.add_column(name, justify="right")
    for kind, found in record["files"].items():
        table.add_row(kind, found["file"], f"{found['megabytes']:,}", f"{found['bits']:g}", *_proof(found))
    table.add_row("mmproj", record["mmproj"], f"{record['mmproj_megabytes']:,}", "16", "", "", "")
    return table


def _proof(found: Mapping[str, Any]) -> tuple[str, str, str]:
    if not found.get("questions"):
        return "", "", ""
    score = found["score"]["value"]
    same = 1 - found["differing"] / found["questions"]
    return f"{same:.1%}", f"{found['gap']:.2g}", "" if score is None else f"{score:.1%}"


def _caption(record: Mapping[str, Any]) -> str:
    score = next(iter(record["files"].values()))["score"]
    return (
        "as merged: the same answer as the merged weights; gap: the largest difference of a token's log-probability; "
        f"score: {score['name']} on these questions"
    )
