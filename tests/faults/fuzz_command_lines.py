"""Invalid command lines: odd values for every option and argument of every command."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.fuzz_data import base_folder, recipe_text
from tests.faults.fuzz_mutations import misspelled
from tests.faults.fuzz_outcomes import Case, batch_trial
from tests.faults.part import Part

WORDS = (
    *(
        "",
        " ",
        "-",
        "--",
        "---",
        "-x",
        "--x",
        "--help=1",
        "x",
        "1",
        "-1",
        "0",
        "1e999",
        "nan",
        "inf",
        "9" * 400,
        "1" * 30,
    ),
    *(
        "\udcff",
        "\udcff\udcfe.toml",
        "a\nb",
        "é",
        "\u202e",
        "a" * 300,
        "a" * 5_000,
        "/",
        "..",
        ".",
        "~",
        "~nobody",
        "$HOME",
    ),
    *(
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/etc/passwd",
        "/proc/self/mem",
        "/nowhere/x",
        "fifo",
        "folder",
        "link",
        "loop",
    ),
    *(
        "recipe.toml",
        "rows.jsonl",
        "empty",
        "binary",
        "x.toml/y",
        "http://127.0.0.1:9/x",
        "file:///etc/passwd",
        "%s",
        "*",
    ),
    *("a=b", "=", "run.name=", "tiny", "hf://x/y", "T4", "16", "0.0001", "1e6", "owner/name", "../../x", "a/b/c/d"),
)
SETTINGS = (
    *("=", "x", "x=", "=1", "a.b=1", "run.name=x/../y", "run.name=", "run=1", "run.name.x=1", "sft.max_steps=1e400"),
    *(
        "sft.max_steps=-1",
        "sft.learning_rate=nan",
        "data={}",
        "data.task=nope",
        "data.train=/dev/zero",
        "data.train=fifo",
    ),
    *(
        "images.max_side=" + "9" * 5_000,
        "model.name=" + "a" * 300,
        "run.folder=a\nb",
        "a" + ".a" * 500 + "=1",
        "data.max_dropped=2",
    ),
    *(
        "data.columns=" + "[" * 500 + "]" * 500,
        "evaluate.bootstrap=1000000000000",
        "sft.batch_size=1000000000",
        "run.seed=-1",
    ),
    *(
        "data.split.test=1.5",
        "prompt.instruction='\\u0000'",
        "data.image_root=/etc",
        "data.filter={a=[1,[2]]}",
        "\udcff=1",
    ),
)
SAFE_OPTIONS = frozenset({"--push", "--public"})
"""Options that need the network."""


@cache
def commands() -> dict[tuple[str, ...], tuple[Any, ...]]:
    """Return the words of each command, and its parameters."""
    import typer.main

    from toolkit.cli.commands import app

    found = dict(_walk(typer.main.get_command(app), ()))
    del found["doctor",]  # it runs probes for minutes
    return found


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[Any, ...]]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield words, tuple(command.params)
        return
    for name, one in below.items():
        yield from _walk(one, (*words, name))


def _files(folder: Path) -> None:
    """Write what the words name."""
    rows = {"train": str(base_folder("vqa") / "train.json"), "split": {"test": 0.0}}
    (folder / "recipe.toml").write_text(recipe_text("vqa", rows), encoding="utf-8")
    (folder / "rows.jsonl").write_text('{"completion": "yes", "sample": {}}\n', encoding="utf-8")
    (folder / "empty").write_bytes(b"")
    (folder / "binary").write_bytes(bytes(range(256)) * 4)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")


def make(random: Random, place: Path) -> Case:
    """Draw a command with odd arguments. Its working directory has a recipe, rows, a pipe and links."""
    _files(place / "work")
    words, parameters = random.choice(sorted(commands().items(), key=lambda item: item[0]))
    if random.random() < 0.05:
        words = tuple(misspelled(random, word) for word in words)
    argv = list(words)
    for parameter in parameters:
        argv += _argument(random, parameter)
    if random.random() < 0.3:
        argv.insert(random.randrange(len(argv) + 1), random.choice(WORDS))
    if random.random() < 0.1:
        argv.remove(random.choice(argv))
    if argv[:1] == ["run"] or argv[:2] == ["imagegen", "run"]:
        argv = ["plan", *argv[1:]]  # an accepted recipe would be trained
    return Case(tuple(argv), place)


def _argument(random: Random, parameter: Any) -> list[str]:
    name = max(parameter.opts, key=len)
    value = random.choice(SETTINGS if "--set" in parameter.opts else WORDS)
    if not name.startswith("-"):
        good = {"recipe": "recipe.toml", "completions": "rows.jsonl", "kind": "chest"}.get(name, value)
        return [random.choice((good, good, value))] if random.random() < 0.95 else []
    if name in SAFE_OPTIONS or random.random() > (0.9 if parameter.required else 0.25):
        return []
    if getattr(parameter, "is_flag", False):
        return [name]
    return random.choice(([name, value], [name, value], [f"{name}={value}"], [name], [name, value, name, value]))


PART = Part("command_lines", "inputs", batch_trial("command_lines", make, 20))
