"""The quickstart with the lowest and the highest allowed versions, and on other versions of Python.

    python tests/long/versions.py NAME

The names are those of ``SETS``. Each one gets an environment of its own (8 GB) in a temporary folder, with the wheel of
this checkout. The quickstart must run from an empty folder, and SFT and GRPO must improve on the rows before them.
The ranges in pyproject.toml are those that passed. uv resolves and installs (``pip install uv``).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CHECK = """
import sys
from toolkit.pipeline import read_results
results = read_results(sys.argv[1])
good = True
for name, other in (("sft", "baseline"), ("grpo", "sft")):
    found = results.evaluations[name].primary.differences[other].difference
    print(f"{name} minus {other}: {100 * found.value:+.1f} points [{100 * found.low:+.1f} to {100 * found.high:+.1f}]")
    good &= found.low > 0
sys.exit(not good)
"""


@dataclass(frozen=True, slots=True)
class VersionSet:
    """A version of Python, and how the versions of the packages are chosen."""

    python: str
    options: tuple[str, ...]


SETS = {
    "lowest": VersionSet("3.11", ("--resolution", "lowest-direct")),
    "highest": VersionSet("3.11", ("--resolution", "highest")),
    "python-3.12": VersionSet("3.12", ("-c", str(ROOT / "constraints.txt"))),
    "python-3.13": VersionSet("3.13", ("-c", str(ROOT / "constraints.txt"))),
}


def find_python(version: str) -> str | None:
    """Return the interpreter of a version that is installed. uv also looks in the folders of pyenv and others."""
    found = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def run_set(chosen: VersionSet, python: str, folder: Path) -> int:
    """Install the wheel with the versions of a set, run the quickstart in an empty folder, and check its figures."""
    wheels, venv, work = folder / "wheels", folder / "venv", folder / "work"
    work.mkdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = wheels.glob("*.whl")
    inside, listed = str(venv / "bin" / "python"), folder / "versions.txt"
    resolve = ["uv", "pip", "compile", "-q", *chosen.options, "--python", python, str(ROOT / "pyproject.toml")]
    for command in (
        ["uv", "venv", "-q", "--python", python, str(venv)],
        [*resolve, "-o", str(listed)],
        ["uv", "pip", "install", "-q", "--python", inside, "-r", str(listed)],
        ["uv", "pip", "install", "-q", "--no-deps", "--python", inside, str(wheel)],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"TOOLKIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    run: Sequence[str] = [str(venv / "bin" / "toolkit"), "run", "quickstart"]
    if status := subprocess.run(run, cwd=work, env=environment, check=False).returncode:
        return status
    check = [inside, "-c", CHECK, str(work / "runs" / "quickstart")]
    return subprocess.run(check, cwd=work, env=environment, check=False).returncode


def main(names: Sequence[str]) -> int:
    """Run the named set. The exit status is 0 if its quickstart learned."""
    if len(names) != 1 or names[0] not in SETS:
        print(f"name one of: {', '.join(SETS)}", file=sys.stderr)
        return 2
    if shutil.which("uv") is None:
        print("uv is not installed (pip install uv)", file=sys.stderr)
        return 2
    chosen = SETS[names[0]]
    python = find_python(chosen.python)
    if python is None:
        print(f"Python {chosen.python} is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="toolkit-versions.") as folder:
        return run_set(chosen, python, Path(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
