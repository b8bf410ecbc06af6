"""Each family's small model trains, evaluates and exports as far as the documentation says, on images of two shapes."""

from pathlib import Path

import pytest

from tests.families_table import COLUMNS, NAMES, measure, written
from tests.helpers.tiny_families import TINY


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_a_family_works_as_the_documentation_says(family: str, tmp_path: Path) -> None:
    if family in TINY and not TINY[family].installed:
        pytest.skip(f"the processor needs {TINY[family].package}")
    assert measure(family, tmp_path) == written()[family]


def test_the_documentation_has_every_family() -> None:
    rows = written()
    assert set(rows) == set(NAMES)
    assert all(set(row) == set(COLUMNS) for row in rows.values())
