"""Imports point down the table of layers, only the command line prints, and files are named for one concept."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "toolkit"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("identifiers",),
    ("distribution",),
    ("errors",),
    ("recipe",),
    ("runfolder",),
    ("scoring",),
    ("images",),
    ("data",),
    ("synthetic", "prepare"),
    ("tasks",),
    ("tiny",),
    ("models",),
    ("evaluation",),
    ("training", "exporting", "imagegen"),
    ("planning", "diagnostics", "reporting"),
    ("pipeline",),
    ("api", "cli"),
    ("__main__", "__init__"),
)
"""Packages from the bottom up. A package imports from the rows below its own, or from itself."""

HEIGHT = {layer: height for height, layers in enumerate(LAYERS) for layer in layers}

HEAVY = frozenset(
    {
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "sklearn",
        "unsloth",
        "bitsandbytes",
        "torchvision",
        "scipy",
        "matplotlib",
    }
)
LAZY = {("reporting", "matplotlib")}
"""Package and heavy library that it imports only inside the functions that need it."""

LIGHT_PACKAGES = ("identifiers", "errors", "recipe", "runfolder", "reporting", "cli", "pipeline", "diagnostics")
"""Packages that the command line loads before it knows that it will train."""

Import = tuple[str, int, bool]
"""Module, line, and whether the import is at module level."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno, id(node) in top) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            # `from toolkit import recipe` imports the package.
            names = [f"toolkit.{name.name}" for name in node.names] if node.module == "toolkit" else [node.module or ""]
            yield from ((name, node.lineno, id(node) in top) for name in names)


def test_every_package_has_its_row() -> None:
    assert {package_of(path) for path in modules()} == set(HEIGHT)


@pytest.mark.slow
def test_imports_point_down() -> None:
    wrong = []
    for path in modules():
        layer = package_of(path)
        for module, line, _ in imports(path):
            package, _, rest = module.partition(".")
            other = rest.partition(".")[0]
            # Names that are not packages, such as the version, are in the package itself.
            if package == "toolkit" and other in HEIGHT and other != layer and HEIGHT[other] >= HEIGHT[layer]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {layer} imports {other}")
    assert wrong == []


NOT_TASKS = {
    ("planning", "steps"),  # optimizer steps in plan.json
    ("training", "steps"),  # optimizer steps in the records of a stage, and a value of transformers' save_strategy
}
"""Packages and constants in them that equal the name of a task and mean something else."""


def test_no_package_but_tasks_names_a_task() -> None:
    from toolkit.tasks import TASKS

    names = set(TASKS)
    in_text = re.compile(rf'task = "({"|".join(names)})"|\bdata\.({"|".join(names)})\b')
    wrong = []
    for path in modules():
        file, package = path.relative_to(PACKAGE).as_posix(), package_of(path)
        if package == "tasks":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                is_name = node.value in names and (package, node.value) not in NOT_TASKS
                if is_name or in_text.search(node.value):
                    wrong.append(f"{file}:{node.lineno}: {node.value!r}")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                wrong += [f"{file}:{node.lineno}: {name}" for name in _imported_tasks(node, names)]
    assert wrong == []


def _imported_tasks(node: ast.Import | ast.ImportFrom, names: set[str]) -> list[str]:
    """Return the tasks that a statement imports: ``toolkit.tasks.<name>``, or ``<name>`` from ``toolkit.tasks``."""
    start = "" if isinstance(node, ast.Import) else f"{node.module}."
    imported = [f"{start}{name.name}" for name in node.names]
    return [name for name in imported if name.startswith("toolkit.tasks.") and name.split(".")[2] in names]


def test_only_the_unsloth_backend_imports_unsloth() -> None:
    found = {
        path.relative_to(PACKAGE).parent.as_posix()
        for path in modules()
        for name, *_ in imports(path)
        if name.partition(".")[0] in ("unsloth", "unsloth_zoo")
    }
    assert found == {"models/unsloth"}


def test_packages_that_start_fast_import_no_heavy_library() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in modules()
        if package_of(path) in LIGHT_PACKAGES
        for module, line, at_top in imports(path)
        if module.partition(".")[0] in HEAVY and (at_top or (package_of(path), module.partition(".")[0]) not in LAZY)
    ]
    assert wrong == []


@pytest.mark.slow
def test_heavy_libraries_are_imported_at_module_level_only_in_packages_with_models() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in modules()
        if package_of(path) not in ("models", "training", "evaluation", "exporting", "tiny", "imagegen")
        for module, line, at_top in imports(path)
        if at_top and module.partition(".")[0] in HEAVY
    ]
    assert wrong == []


def test_nothing_prints_outside_the_command_line() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        if package_of(path) != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input", "exit")
    ]
    assert wrong == []


def test_no_module_is_a_collection_of_utilities() -> None:
    collections = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert [path for path in modules() if path.stem.strip("_") in collections] == []


def test_no_module_hides_a_library() -> None:
    names = {path.stem for path in modules() if path.parent == PACKAGE}
    assert not names & {"transformers", "datasets", "types", "logging", "torch", "json"}


def test_every_module_has_a_docstring() -> None:
    without = [path for path in modules() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert without == []


def test_tracked_files_have_no_paths_of_a_machine_and_no_open_notes() -> None:
    # Put together here so that this file does not hold them.
    words = ["/wo" + "rk/", "/fa" + "rm/", "bash_" + "jobs", "../sha" + "red/seeds", "TO" + "DO", "FIX" + "ME"]
    command = [
        "git",
        "grep",
        "-nIF",
        *(part for word in words for part in ("-e", word)),
        "--",
        ".",
        ":!*.json",
        ":!*.csv",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode > 1:
        pytest.skip(f"git cannot search here: {found.stderr.strip()}")
    assert found.stdout == ""
