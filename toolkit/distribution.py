"""The installed distribution: its name, the files it ships, and the pip commands for it.

The name on a package index differs from that of the import and of the command, because ``toolkit`` is taken there.
An installed wheel has recipes, notebooks and constraints in the package. A checkout has them beside the package.
"""

from collections.abc import Mapping
from pathlib import Path

DISTRIBUTION = "medvlm-toolkit"
"""Name for pip and ``importlib.metadata``. A test compares it with pyproject.toml."""

CONSTRAINED = '-c "$(toolkit constraints)"'
"""Argument of pip for the versions that were tested together."""

_OLDER_PILLOW = ("demo", "tracking")
"""Extras with a package (gradio, trackio) that requires another Pillow than the constraints."""

_PACKAGE = Path(__file__).absolute().parent


def pip_install(what: str = DISTRIBUTION) -> str:
    """Return the command that installs a package in the tested version. It needs no checkout.

    >>> pip_install("torch")
    'pip install torch -c "$(toolkit constraints)"'
    """
    return f"pip install {what} {CONSTRAINED}"


def pip_install_extra(extra: str) -> str:
    """Return the command that installs an extra of this package in the tested versions.

    >>> pip_install_extra("gguf")
    'pip install \\'medvlm-toolkit[gguf]\\' -c "$(toolkit constraints)"'
    """
    what = f"'{DISTRIBUTION}[{extra}]'"
    if extra in _OLDER_PILLOW:
        return f"pip install {what} -c <(grep -v '^pillow==' \"$(toolkit constraints)\")"
    return pip_install(what)


def constraints_file() -> Path:
    """Return the file with the versions that were tested together."""
    return _shipped("constraints.txt")


def shipped_recipes() -> Mapping[str, Path]:
    """Return name -> file of the recipes in the package."""
    return {file.stem: file for file in sorted(_shipped("recipes").glob("*.toml"))}


def shipped_notebooks() -> Mapping[str, Path]:
    """Return name -> file of the notebooks in the package."""
    return {file.stem: file for file in sorted((_shipped("recipes") / "notebooks").glob("*.ipynb"))}


def _shipped(name: str) -> Path:
    """Return the path of a file in the installed package, or beside the package of a checkout."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name
