"""Hostile completions: through the parser and the rewards of every task, and through `toolkit reward test`."""

import json
import os
import signal
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.fuzz_data import BASES, base_folder, recipe_text, rows_of
from tests.faults.fuzz_mutations import TEXTS, mutate_bytes
from tests.faults.fuzz_outcomes import MEMORY, Case, batch_trial, first_wrong, in_child, last_error
from tests.faults.part import Outcome, Part, random_of

SLOW_S = 5.0
"""Seconds of CPU time that one completion may take. GRPO scores hundreds in a step."""
LONGEST = 200_000
"""Characters of a completion. No model writes more in its longest context."""
BATCH = 60
CODE = (
    "__import__('os').system('touch marker')",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "!!python/object/apply:os.system ['touch marker']",
    "$(touch marker)",
    "`touch marker`",
    "<script>alert(1)</script>",
    "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "(lambda: open('marker', 'w'))()",
)
PIECES = (
    *("<answer>", "</answer>", "<think>", "</think>", "<bbox>", "</bbox>", "<diagnosis>", "</diagnosis>", "<location>"),
    *(
        "<polygon>",
        "</polygon>",
        "<box>",
        "<loc0001>",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        '"',
        "'",
        ",",
        ":",
        "\\",
        "```json",
    ),
    *(
        "```",
        "\n",
        "\0",
        "\ud800",
        "\u202e",
        "A",
        "A.",
        "(B)",
        "Answer: C",
        "yes",
        "no",
        "melanoma",
        "top left",
        "none",
    ),
    *('{"action": "CLICK", "coords": [1, 2]}', '"bbox_2d": [1, 2, 3, 4]', '"label": "nodule"', "[10, 20, 30, 40]"),
    *("[1e999, nan, -inf, 5]", "9" * 5_000, "1e-400", "0x10", "١٢٣", "½", "12,5", "Findings:", "Impression:", "&lt;"),
    *('{"Short Term": {}}', '{"Predicted": null}', "null", "None", "NaN", "true", "\\u0000", "\\ud800", *CODE),
)
ACTION = '{"Short Term": {"last_action": "CLICK"}, "Long Term": {}, "Predicted": {"action": "CLICK", "coords": [5, 6]}}'


def completion(random: Random) -> str:
    """Return a completion that no model should write."""
    kind = random.randrange(10)
    if kind < 3:
        return "".join(random.choice(PIECES) for _ in range(random.choice((1, 3, 10, 60))))
    if kind == 3:
        return random.choice(PIECES) * random.choice((100, 5_000, 20_000))
    if kind == 4:
        pair = random.choice(
            ("[]", "{}", "()", ("<bbox>", "</bbox>"), ("<think>", "</think>"), ('{"a":', "}"), ("[1,", "]"))
        )
        times = random.choice((50, 1_000, 20_000))
        return pair[0] * times + pair[1] * random.choice((times, times - 1, 0))
    if kind == 5:
        return "".join(random.choice(PIECES) * random.choice((1, 1, 2_000)) for _ in range(6))
    if kind == 6:
        return "".join(
            chr(random.choice((random.randrange(128), random.randrange(0x3000), random.randrange(0x10FFFF))))
            for _ in range(200)
        )
    if kind == 7:
        return random.choice(TEXTS) * random.choice((1, 1000))
    good = random.choice(
        (
            ACTION,
            "<answer>A</answer>",
            "<diagnosis>melanoma</diagnosis><bbox>[1, 2, 30, 40]</bbox>",
            '[{"bbox_2d": [1, 2, 30, 40], "label": "melanoma"}]',
        )
    )
    return mutate_bytes(random, good.encode()).decode("utf-8", "surrogateescape")


def score_all(task: str, recipe: Path, completions: Sequence[str], report: Path) -> None:
    """Parse and score completions as GRPO does. Called in the child, which writes a line for each."""
    from tests.helpers.recipes import load_data, load_recipe
    from toolkit.errors import ToolkitError
    from toolkit.training.rewards import explain, recipe_rewards

    loaded = load_recipe(recipe)
    samples = load_data(loaded).train
    table = recipe_rewards(loaded, recipe.parent)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with report.open("w", encoding="utf-8") as lines:
        for number, text in enumerate(completions):
            lines.write(json.dumps([number, "started", ""]) + "\n")
            lines.flush()
            signal.setitimer(signal.ITIMER_PROF, SLOW_S)
            started = time.process_time()
            result, detail = "accepted", ""
            try:
                sample = samples[number % len(samples)]
                answer = table.task.parse(text, sample)
                points = [one.points for one in explain(sample, answer, table)]
                if not all(-1e9 < point < 1e9 for point in points):
                    result, detail = "different", f"rewards are {points}"
            except ToolkitError as error:
                result, detail = "clear", str(error)[:200]
            except BaseException:  # noqa: BLE001  # a bug of the toolkit is an outcome
                lines_of = traceback.format_exc().strip().splitlines()
                result, detail = "traceback", f"{lines_of[-1][:200]} ({lines_of[-3].strip()})"
            signal.setitimer(signal.ITIMER_PROF, 0)
            if os.path.exists("marker"):  # noqa: PTH110
                result, detail = "code_executed", text[:200]
            lines.write(json.dumps([number, result, detail, time.process_time() - started]) + "\n")
    os._exit(0)


def _recipe(task: str, folder: Path) -> Path:
    rows = {"train": str(next(base_folder(task).glob("train.*"))), "split": {"test": 0.0}}
    file = folder / "recipe.toml"
    file.write_text(recipe_text(task, rows, grpo={"max_steps": 1}), encoding="utf-8")
    return file


def trial(seed: int, number: int, folder: Path) -> Outcome:
    """Score ``BATCH`` completions of one task."""
    random = random_of(seed, "answers", number)
    task = sorted(BASES)[number % len(BASES)]
    for name in ("in", "work"):
        (folder / name).mkdir()
    recipe = _recipe(task, folder / "in")
    rest, outcomes = [completion(random)[:LONGEST] for _ in range(BATCH)], list[Outcome]()
    while rest:
        report = folder / "report.jsonl"
        report.unlink(missing_ok=True)
        ended = in_child(folder, partial(score_all, task, recipe, rest, report), limit_s=60 + SLOW_S * 4, memory=MEMORY)
        lines = (
            [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()] if report.exists() else []
        )
        done = {line[0]: line for line in lines if line[1] != "started"}
        outcomes += [Outcome(line[1], f"{task}: {line[2]}", f"{task} {rest[at][:200]!r}") for at, line in done.items()]
        rest = rest[len(done) :]
        if rest:
            slow = ended.limit or ended.status == -signal.SIGPROF
            result: Any = "hang" if slow else "traceback"
            outcomes.append(
                Outcome(
                    result, f"{task}: {ended.limit} {last_error(ended)}", f"{task} {len(rest[0])} {rest[0][:200]!r}"
                )
            )
            rest = rest[1:]
    return first_wrong(outcomes)


def make_file(random: Random, place: Path) -> Case:
    """Write a completions file for `toolkit reward test`."""
    task = random.choice(sorted(BASES))
    recipe = _recipe(task, place / "in")
    row = random.choice(rows_of(task))
    lines: list[Any] = []
    for _ in range(random.choice((1, 2, 5))):
        kind = random.randrange(8)
        text: Any = completion(random)[:LONGEST] if kind else random.choice((None, 1, [], {}, ["A"]))
        chosen: Any = random.choice(
            (row, row, row, {}, None, [], "x", {**row, random.choice(sorted(row)): random.choice(TEXTS)})
        )
        line = {"completion": text, "sample": chosen}
        if kind == 1:
            line = {"completion": text, "id": random.choice(("0", "row", "", 1, None, [], "\ud800"))}
        lines.append(line)
    content = "\n".join(map(json.dumps, lines)).encode()
    if random.random() < 0.25:
        content = mutate_bytes(random, content)
    if random.random() < 0.05:
        depth = random.choice((500, 1_000, 100_000))
        content = b'{"completion": "x", "sample": ' + b"[" * depth + b"]" * depth + b"}"
    (place / "in" / "completions.jsonl").write_bytes(content)
    return Case(("reward", "test", str(recipe), str(place / "in" / "completions.jsonl")), place)


ANSWERS = Part("answers", "inputs", trial)
REWARD_TEST = Part("reward_test", "inputs", batch_trial("reward_test", make_file, 20))
