"""Cell values: what is read as text or as a list, and what is reported instead of becoming a training target."""

import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.problems import raises
from toolkit.data.cells import text_of, texts_of
from toolkit.data.literals import decoded
from toolkit.errors import RowProblem

CONTROL = "".join(chr(code) for code in (*range(9), *range(14, 32), 127))
letters = st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters=CONTROL)
words = st.text(letters, min_size=1, max_size=12)


@pytest.mark.parametrize(
    "value",
    [
        ["yes"],
        [],
        {"letter": "B", "content": "Edema"},
        b"yes",
        (1, 2),
        math.inf,
        "['yes']",
        "['it''s', 'two']",
        "['a' 'b']",
        "[]",
        "{}",
        "{'letter': 'B', 'content': 'Edema'}",
        "[{'letter': 'B'}]",
        "b'yes'",
        "array(['yes'], dtype=object)",
        "[1.0, nan]",
        "[1 2 3]",
        "<PIL.Image.Image image mode=RGB size=2x2 at 0x7F00AA>",
        "<PIL.PngImagePlugin.PngImageFile image mode=L size=3x3>",
        "('yes',)",
        "('a', 1)",
        "np.float64(0.5)",
        "[np.str_('yes'), np.str_('no')]",
        "{'yes': np.int64(1)}",
        "Timestamp('2020-01-01 00:00:00')",
        "datetime.date(2020, 1, 1)",
        "Decimal('2.0')",
        "OrderedDict([('a', 1)])",
        "PosixPath('/data/a.png')",
    ],
)
def test_a_list_an_object_or_bytes_is_no_text_and_the_problem_has_the_value(value: Any) -> None:
    with raises(RowProblem, "data.value_not_text") as caught:
        text_of(value)
    assert isinstance(caught.error, RowProblem)
    assert caught.error.cell is value
    assert caught.problem.remedy


@pytest.mark.parametrize(
    "text",
    [
        "[Findings] None. [End]",
        "{normal}",
        "No",
        "None",
        "normal",
        "<b>",
        "< 5 mm",
        '{"action": "click"}',
        "[0.1, 0.2]",
        "(left) and 'right' (arrow)",
        "('left' or 'right')",
        "the sign (see 'arrow')",
        "(3, 4)",
        "Counter (left)",
        "#3",
    ],
)
def test_texts_with_brackets_or_json_stay_texts(text: str) -> None:
    assert text_of(f" {text} ") == text


@pytest.mark.parametrize(
    "value", [None, math.nan, np.nan, "", " ", "nan", "NaN", "<NA>", "NaT", "#N/A", "#VALUE!", "#REF!"]
)
def test_missing_values_have_no_text(value: Any) -> None:
    assert text_of(value) == ""
    assert texts_of(value) == ()


@settings(deadline=None)  # the first call of pandas can be slow
@given(values=st.lists(words, min_size=1, max_size=4))
def test_a_list_reads_the_same_from_json_python_numpy_and_pandas(values: list[str]) -> None:
    expected = tuple(text for value in values if (text := value.strip()))
    cells = [values, json.dumps(values), repr(values), pd.DataFrame({"a": [values]}).to_csv(index=False)]
    cells[-1] = pd.read_csv(io.StringIO(cells[-1]))["a"][0]
    for cell in cells:
        assert _texts_or_problem(cell) == _texts_or_problem(values), cell
    assert _texts_or_problem(values) in (expected, None)
    printed = np.array_str(np.array(values, dtype=object), max_line_width=10_000)
    assert _texts_or_problem(printed) == _texts_or_problem(values)


def _texts_or_problem(value: Any) -> tuple[str, ...] | None:
    try:
        return texts_of(value)
    except RowProblem:
        return None


def test_adjacent_texts_are_never_joined() -> None:
    assert texts_of("['pleural effusion' 'atelectasis']") == ("pleural effusion", "atelectasis")
    assert decoded("['a' 'b', 'c']") == "['a' 'b', 'c']"
    with raises(RowProblem, "data.value_not_text"):
        texts_of("['it''s']")


def test_objects_boxes_and_missing_values_are_read_from_what_python_prints() -> None:
    options = [{"letter": "A", "content": "Edema"}, {"letter": "B", "content": None}]
    assert decoded(str(options)) == options
    assert decoded("[(1, 2), (3.5, 4)]") == [[1, 2], [3.5, 4]]
    assert decoded("['a', nan]") == ["a", None]
    assert decoded("[ 10  20 30.5]") == [10, 20, 30.5]


@pytest.mark.parametrize(
    "text",
    [
        "[a, b]",
        "{'a', 'b'}",
        "[b'x']",
        "[__import__('os')]",
        "[" * 5000,
        "{'a': 1" * 9,
        "{'a': 1, 'a': 2}",
        '{"a": 1, "a": 2}',
        "[{'a': 1, 'a': 2}]",
    ],
)
def test_a_text_whose_meaning_is_not_certain_stays_a_text(text: str) -> None:
    assert decoded(text) == text


def test_a_nested_list_is_no_list_of_texts() -> None:
    with raises(RowProblem, "data.value_not_text") as caught:
        texts_of([["a"], "b"])
    assert caught.problem.value == ["a"]


@pytest.mark.parametrize("text", ["y\0es", "yes\0", "\x1b[31mred", "a\x7fb"])
def test_a_control_character_is_a_problem_and_blanks_are_not(text: str) -> None:
    with raises(RowProblem, "data.control_character") as caught:
        text_of(text)
    assert str(caught.problem.value).isprintable()
    assert text_of("a\tb\r\nc\x0bd\u2028e") == "a\tb\r\nc\x0bd\u2028e"


def test_a_key_that_a_table_in_a_cell_repeats_with_the_same_value_is_read() -> None:
    assert decoded("{'a': 1, 'a': 1}") == decoded('{"a": 1, "a": 1}') == {"a": 1}
