"""Errors and warnings: code, place, value, rule, remedy, and the JSON of a command with --json."""

import ast
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.problems import warnings_in
from toolkit import errors
from toolkit.cli import main
from toolkit.errors import (
    DataError,
    DataProblems,
    Interrupted,
    MissingExtraError,
    PlanError,
    Problem,
    RecipeError,
    warn,
)


def test_an_error_reads_place_rule_value_remedy() -> None:
    error = DataError(
        "data.answer_not_text", "the answer must be text", place="a.csv, row 2", value=1.5, remedy="Quote it."
    )
    assert str(error) == "a.csv, row 2: the answer must be text (got 1.5). Quote it."
    assert (error.code, error.place, error.value) == ("data.answer_not_text", "a.csv, row 2", 1.5)


def test_a_recipe_error_has_all_problems() -> None:
    problems = [Problem("recipe.key_unknown", "is no key", "a"), Problem("recipe.out_of_range", "must", "b")]
    error = RecipeError(problems)
    assert error.problems == problems
    assert error.exit_code == 2


def test_the_log_record_of_a_warning_has_its_problem(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="toolkit"):
        warn("export.not_verified", "the exported weights are not verified", place="export")
    (problem,) = warnings_in(caplog)
    assert (problem.code, problem.place) == ("export.not_verified", "export")


def test_an_error_is_the_same_in_another_process() -> None:
    errors = [
        DataError("data.answer_not_text", "the answer must be text", place="a.csv, row 2", remedy="Quote it."),
        PlanError([Problem("plan.a", "must", "a"), Problem("plan.b", "must", "b", 1)]),
        MissingExtraError("pydicom", "dicom", "reading DICOM"),
        Interrupted(15, "The state is saved."),
    ]
    for error in errors:
        found = pickle.loads(pickle.dumps(error))
        assert type(found) is type(error)
        assert (str(found), found.problems, found.exit_code) == (str(error), error.problems, error.exit_code)


def test_json_output_has_the_codes_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "missing.toml", "--json"])
    assert exit_.value.code == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["place"] == "missing.toml"


PACKAGE = Path(errors.__file__).parent
CLASSES = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.ToolkitError)}
OWN_REMEDY = {"RecipeError", "PlanError", "DataProblems", "MissingExtraError", "Interrupted"}
"""Errors whose constructor sets the remedy, or whose problems have their own."""
WITH_REMEDIES = ("api.py", "cli", "exporting", "pipeline", "planning", "prepare", "recipe", "reporting", "training")
WITHOUT_REMEDY = {"training.reward_scorer_missing"}
"""Codes of errors that only a bug raises."""


def codes_without_remedy(file: Path) -> Iterator[str]:
    """Yield the codes of the errors and problems that a file constructs without a remedy."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            kind, given = node.func.id, {keyword.arg for keyword in node.keywords}
            by_place = kind == "Problem" and (len(node.args) == 5 or isinstance(node.args[-1], ast.Starred))
            if kind in {"Problem", *CLASSES} - OWN_REMEDY and not by_place and not given & {"remedy", None}:
                yield ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else file.name


def test_every_error_has_a_remedy() -> None:
    files = [file for name in WITH_REMEDIES for file in [PACKAGE / name, *(PACKAGE / name).rglob("*.py")]]
    found = {code for file in files if file.suffix == ".py" for code in codes_without_remedy(file)}
    assert found == WITHOUT_REMEDY


def test_a_message_is_short_however_many_problems_it_lists() -> None:
    problems = [
        Problem("recipe.key_unknown", f"is no key {number}", "a" * 3_000, "b" * 3_000) for number in range(9_999)
    ]
    for error in (RecipeError(problems), PlanError(problems), DataProblems("data.rows_invalid", "the rows", problems)):
        assert len(str(error)) <= errors.MAX_CHARACTERS
        assert len(error.problems) == 9_999
        assert "more lines" in str(error)
    one_long_line = str(RecipeError([Problem("recipe.key_unknown", "is no key", "a" * 1_700)]))
    assert "0 more" not in one_long_line
