"""The measurements on a GPU, in two sessions of at most 240 seconds, ordered by worth. Started by run_all.sh.

Each item runs in a process of its own with seconds of its own. An item that needs less leaves the rest to the next
ones, and an item that fails or is ended at its deadline does not stop them. ``session.json`` in the output folder is
replaced whenever an item begins or ends, and bench_gpu.py replaces its own file after each step. So a session that is
cut off leaves everything that it has measured. What the items print is in ``session.log``.

The models have random parameters and are written once, to a folder that a second session on the same machine finds.

This module needs the standard library alone: what the items import may still be in the zip of wheels.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "tests/unsloth_cpu/run.py"
LIMIT = 240
"""Seconds of a session."""
SPARE = 5
"""Seconds of a session that no item gets: for ending processes and for the table."""
SLOWER = 6
"""Factor of an item's seconds on a simulated GPU."""
MODEL_BYTES = 24e9
"""Free bytes of shared memory above which the models are written there, not to the disk."""
TAIL = 12
"""Lines of an item's output that session.json keeps."""


BENCH = "tests/benchmarks/bench_gpu.py"
SCRATCH = "{scratch}"
"""In a command: a folder that is removed when the session ends."""
MEDGEMMA = "recipes/medgemma_sft_grpo.toml"
QWEN = "recipes/steps_grpo.toml --layers 12"
"""Twelve of the 36 layers of its language model: the whole one takes too long to write and load."""
PIPELINE = f"""-m toolkit run recipes/quickstart.toml --fresh --set run.folder={SCRATCH}/runs
    --set model.backend=unsloth --set model.precision=4bit --set model.max_tokens=600
    --set data.synthetic.train=320 --set data.synthetic.test=50 --set evaluate.limit=50 --set export.optional=[]
    --set sft.max_steps=20 --set sft.gradient_checkpointing=true
    --set grpo.max_steps=4 --set grpo.gradient_checkpointing=true --set grpo.probe_on_failure=report"""
"""All stages of a run with the tiny model, through Unsloth."""
SHORTER = """--set data.synthetic.train=40 --set data.synthetic.test=8 --set evaluate.limit=8 --set export.verify=4
    --set sft.max_steps=2 --set sft.batch_size=4
    --set grpo.max_steps=2 --set grpo.prompts_per_step=2 --set grpo.micro_batch=8"""
"""Settings that make that run short enough for a simulated GPU."""


@dataclass(frozen=True)
class Item:
    """One process: the arguments of ``python``, and its time limit in seconds."""

    name: str
    seconds: int
    command: tuple[str, ...]

    @property
    def measures(self) -> bool:
        """Return whether the item is bench_gpu.py, which writes a file of its own."""
        return self.command[0] == BENCH


def bench(name: str, seconds: int, options: str) -> Item:
    return Item(name, seconds, (BENCH, *options.split()))


PARTS: Mapping[str, tuple[Item, ...]] = {
    "1": (
        bench("write-medgemma", 40, f"{MEDGEMMA} --stages"),
        bench("unsloth-16gb", 125, f"{MEDGEMMA} --trainer unsloth --stages grpo sft evaluate"),
        bench("hf-16gb", 70, f"{MEDGEMMA} --trainer hf --stages grpo sft evaluate"),
    ),
    "2": (
        bench("write-medgemma", 35, f"{MEDGEMMA} --stages"),
        bench("trl-16gb", 50, f"{MEDGEMMA} --trainer trl --stages grpo sft --steps 2"),
        Item("pipeline", 70, tuple(PIPELINE.split())),
        bench("write-qwen3", 20, f"{QWEN} --stages"),
        bench("unsloth-24gb", 45, f"{QWEN} --trainer unsloth --stages grpo --gigabytes 24 --steps 2"),
        Item("tests", 15, ("-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu and not slow", "tests/gpu")),
    ),
}
"""Items of each session. The most important ones are first."""


def run(items: Sequence[Item], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run the items in their order, and return item -> state, seconds, exit code and last lines.

    An item's deadline is the sum of the seconds up to and including its own, counted from the start.
    """
    deadline = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "session.json"
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    found: dict[str, dict[str, Any]] = {item.name: {"state": "not started"} for item in items}
    with scratch(options) as folder, (options.out / "session.log").open("ab") as log:
        variables = environment(folder, options)
        for item in items:
            deadline += item.seconds * (SLOWER if options.smoke else 1)
            found[item.name] = {"state": "running"}
            write(record, before | found)
            left = deadline - time.monotonic()
            found[item.name] = one(command(item, left, folder, options), variables, log, left)
            write(record, before | found)
            print(f"{item.name}: {found[item.name]['state']}, {found[item.name]['seconds']:.0f} s", flush=True)
            if found[item.name]["state"] != "done":
                print("\n".join(f"    {line}" for line in found[item.name]["tail"]), flush=True)
    return found


def one(words: Sequence[str], variables: Mapping[str, str], log: IO[bytes], seconds: float) -> dict[str, Any]:
    """Run one item for at most ``seconds``, with all processes that it starts."""
    begun = time.monotonic()
    log.write(f"\n== {' '.join(words)}\n".encode())
    log.flush()
    start = Path(log.name).stat().st_size
    child = subprocess.Popen(
        words, cwd=ROOT, env=dict(variables), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code = child.wait(max(seconds, 0.1))
        state = "failed" if code else "done"
    except subprocess.TimeoutExpired:
        state = "out of time"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    tail = Path(log.name).read_bytes()[start:].decode(errors="replace").splitlines()[-TAIL:]
    return {"state": state, "seconds": round(time.monotonic() - begun, 1), "exit": code, "tail": tail}


def command(item: Item, seconds: float, folder: Path, options: argparse.Namespace) -> list[str]:
    """Return the whole command line of an item that may take ``seconds``."""
    words = [word.replace(SCRATCH, str(folder)) for word in item.command]
    if item.measures:
        out = (options.out / f"{item.name}.json").absolute()
        words += [
            "--model",
            str(model_of(item, folder, options)),
            "--out",
            str(out),
            "--seconds",
            str(int(seconds) - 3),
        ]
        words += ["--smoke"] if options.smoke else []
    if options.smoke and not item.name.startswith(("write", "tests")):
        return [sys.executable, str(HARNESS), *in_harness(words)]
    return [sys.executable, *words]


def in_harness(words: Sequence[str]) -> list[str]:
    """Return the same command for the harness that simulates a GPU."""
    if words[:2] == ["-m", "toolkit"]:
        return [*words[2:], *SHORTER.split()]
    return ["-m", words[0].removeprefix("tests/").removesuffix(".py").replace("/", "."), *words[1:]]


def model_of(item: Item, folder: Path, options: argparse.Namespace) -> Path:
    """Return the folder of an item's model. Items of the same recipe and layers use the same model."""
    words = item.command
    layers = words[words.index("--layers") + 1] if "--layers" in words else "all"
    return (folder if options.smoke else options.models) / f"{Path(words[1]).stem}-{layers}-layers"


@contextmanager
def scratch(options: argparse.Namespace) -> Iterator[Path]:
    """Yield a folder for this session's runs, caches and unpacked wheels."""
    with tempfile.TemporaryDirectory(prefix="toolkit-gpu-") as place:
        if options.wheels is not None:
            with zipfile.ZipFile(options.wheels) as archive:
                archive.extractall(Path(place, "site"))
        yield Path(place)


def environment(folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the items, which import this checkout, then the wheels, then installed packages."""
    paths = [str(ROOT), *([str(folder / "site")] if options.wheels else [])]
    paths += [known] if (known := os.environ.get("PYTHONPATH")) else []
    places = {"TMPDIR": str(folder), "TOOLKIT_CACHE": str(folder / "cache")}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **places}


def models_folder() -> Path:
    """Return a folder in shared memory if it is large enough, otherwise on the disk."""
    shared = Path("/dev/shm")
    memory = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > MODEL_BYTES
    return (shared if memory else Path(tempfile.gettempdir())) / "toolkit-gpu-models"


def write(file: Path, value: Any) -> None:
    """Replace a JSON file."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def table(out: Path, items: Sequence[Item]) -> str:
    """Return a table of measured and planned figures, from the files of the items."""
    head = ("item", "stage", "state", "s a step", "plan", "allocated", "plan", "reserved", "plan")
    rows = [head]
    for item in items:
        file = out / f"{item.name}.json"
        if not (item.measures and file.is_file()):
            continue
        for stage, found in json.loads(file.read_text(encoding="utf-8"))["stages"].items():
            plan = found.get("planned", {})
            pairs = (("seconds_a_step", "seconds"), ("allocated_gib",) * 2, ("reserved_gib",) * 2)
            figures = [figure(side.get(key)) for own, other in pairs for side, key in ((found, own), (plan, other))]
            rows.append((item.name, stage, found.get("state", ""), *figures))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def figure(value: Any) -> str:
    if value is None:
        return "-"
    return " to ".join(f"{one:.4g}" for one in value) if isinstance(value, list) else f"{value:.4g}"


def chosen(names: Sequence[str]) -> list[Item]:
    """Return the items of a session, or the named items of any session."""
    known = {item.name: item for items in PARTS.values() for item in items}
    wrong = [name for name in names if name not in (*PARTS, *known)]
    if wrong:
        sys.exit(f"run_all.sh: PART must be one of {', '.join((*PARTS, *known))} (got {', '.join(wrong)}).")
    return [item for name in names for item in PARTS.get(name, (known.get(name),)) if item is not None]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_all.sh", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="1, 2, or names of items")
    parser.add_argument("--list", action="store_true", help="print the items and their seconds")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "gpu-session")), help="the output folder"
    )
    parser.add_argument("--wheels", type=Path, help="a zip of pack_wheels.py")
    parser.add_argument(
        "--models", type=Path, help="folder of the models. Default: shared memory if it is large enough"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="run two layers on a simulated GPU, which only checks the code"
    )
    options = parser.parse_args(arguments)
    options.models = options.models or models_folder()
    return options


def main() -> int:
    options = parse()
    if options.list or not options.parts:
        for part, items in PARTS.items():
            print("\n".join(f"{part}  {item.name:16} {item.seconds:4} s  {' '.join(item.command)}" for item in items))
        return int(not options.list)
    if not options.smoke:
        options.models.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running item ends too
    selected = chosen(options.parts)
    found = run(selected, options)
    print(table(options.out, selected))
    print(f"The figures are in {options.out}.")
    if not options.smoke:
        print(f"The models are in {options.models}. Delete them after the last session.")
    return int(any(one["state"] != "done" for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
