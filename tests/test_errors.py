"""Errors and warnings: code, place, value, rule, remedy, and the JSON of a command with --json."""

import json
import logging
import pickle

import pytest

from tests.helpers.problems import warnings_in
from toolkit.cli import main
from toolkit.errors import DataError, Interrupted, MissingExtraError, PlanError, Problem, RecipeError, warn


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
