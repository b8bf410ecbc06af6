"""All parts of the fault tests, and single trials of them."""

import importlib
import pkgutil
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import tests.faults
from tests.faults.part import GOOD, Outcome, Part

HELPERS = ("__main__", "children", "part", "scenarios", "server", "trials")


@cache
def all_parts() -> dict[str, Part]:
    """Return the parts of all modules of this package, by name."""
    found: dict[str, Part] = {}
    for module in pkgutil.iter_modules(tests.faults.__path__):
        if module.name not in HELPERS and not module.name.startswith("test_"):
            for value in vars(importlib.import_module(f"tests.faults.{module.name}")).values():
                parts = value if isinstance(value, tuple) else (value,)
                for part in parts:
                    if isinstance(part, Part) and found.setdefault(part.name, part) is not part:
                        raise ValueError(f"two parts have the name {part.name}")
    return found


def run_trial(name: str, seed: int, number: int, keep: str | None) -> tuple[Outcome, float]:
    """Run one trial. Its folder is kept below ``keep`` if it is wrong."""
    began = time.monotonic()
    if keep is None:
        with tempfile.TemporaryDirectory(prefix=f"toolkit-faults-{name}-", ignore_cleanup_errors=True) as place:
            return all_parts()[name].trial(seed, number, Path(place)), time.monotonic() - began
    folder = Path(keep).absolute() / f"{name}-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)  # of the same trial, run earlier
    folder.mkdir(parents=True)
    outcome = all_parts()[name].trial(seed, number, folder)
    if outcome.result in GOOD:
        shutil.rmtree(folder)
    else:
        (folder / "OUTCOME.txt").write_text(
            f"{outcome.result}\n{outcome.detail}\n{outcome.command}\n", encoding="utf-8"
        )
    return outcome, time.monotonic() - began
