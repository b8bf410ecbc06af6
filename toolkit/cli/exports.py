"""Exports on the command line: the options as settings of the recipe, and what was written as a table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
