"""The worked examples in the package's docstrings hold."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules_with_examples() -> list[str]:
    """Return the modules that have an example, so that no other module is imported for this test."""
    files = [path for path in sorted((ROOT / "toolkit").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]


@pytest.mark.parametrize("module", modules_with_examples())
def test_worked_examples_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0
