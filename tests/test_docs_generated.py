"""Generated texts of the documentation: current and complete. The schema of recipes in an independent validator."""

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from docs.generate import error_pages, results_fields
from docs.generate.docstrings import parse
from docs.generate.error_codes import NAME, Entry, entries, is_code
from docs.generate.pages import ROOT, generated_files, replace_part
from docs.generate.recipe_schema import schema
from toolkit.errors import CODE
from toolkit.tasks import TASKS

SCHEMA = json.loads((ROOT / "docs" / "reference" / "recipe.schema.json").read_text(encoding="utf-8"))
REWARD_NAMES = {name for task in TASKS.values() for name in task.rewards} | {"lettr", "zzz"}
"""Keys of [rewards], which look like codes."""
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.slow
def test_every_generated_text_is_current() -> None:
    """If this fails, run ``python -m docs.generate``."""
    files = generated_files()
    assert [file.name for file, text in files.items() if file.read_text(encoding="utf-8") != text] == []


def test_a_part_is_replaced_between_its_comments_only() -> None:
    page = "before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n"
    assert replace_part(page, "a", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="b:begin"):
        replace_part(page, "b", "new")


INVENTED = {"data.answer_not_text"}
"""Codes of errors that a test makes up."""


def compared_codes(file: Path) -> Iterator[str]:
    """Yield the codes that a test file compares with the code of an error or a finding."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare) and "code" in ast.unparse(node.left):
            constants = [one for side in node.comparators for one in ast.walk(side)]
            yield from (str(one.value) for one in constants if isinstance(one, ast.Constant) and is_code(one.value))


def is_listed(code: str) -> bool:
    """Return whether the reference has a code, or a code with ``NAME`` in the place of some of its words."""
    patterns = [one.split(NAME) for one in entries() if NAME in one]
    return code in entries() or any(code.startswith(one[0]) and code.endswith(one[-1]) for one in patterns)


@pytest.mark.slow
def test_the_reference_has_every_code_that_a_test_expects() -> None:
    found = {code for file in (ROOT / "tests").rglob("test_*.py") for code in compared_codes(file)}
    expected = {code for code in found if code.partition(".")[2] not in REWARD_NAMES} - INVENTED
    assert len(expected) > 200
    assert sorted(code for code in expected if not is_listed(code)) == []


def test_every_code_has_a_meaning() -> None:
    assert [code for code, entry in entries().items() if not entry.rules] == []


@pytest.mark.parametrize(
    ("code", "kind", "rule", "remedy"),
    [
        ("export.base_quantized", "error", "the weights that an adapter is merged into must not be quantized", "Use"),
        ("data.image_outside_root", "", "an image path must not leave the folder data.image_root", ""),
        ("data.image_case_changed", "", "image names were found as the only file whose name differs", ""),
        ("run.disk_full", "error", "the disk must have free space", "Finished work is kept."),
        ("model.config_not_json", "error", "the file must be readable JSON", "Copy or download the file again."),
        ("training.NAME_not_finite", "error", "… must be finite", "Lower learning_rate"),
    ],
)
def test_a_code_has_the_kind_rule_and_remedy_of_the_source(code: str, kind: str, rule: str, remedy: str) -> None:
    found: Entry = entries()[code]
    assert kind in found.kinds
    assert found.rules[0].startswith(rule)
    assert (found.remedies or [""])[0].startswith(remedy)


def test_special_characters_of_a_message_are_text_in_markdown() -> None:
    assert error_pages.escape("an <image> of [data] in `a_b`, _c and d_e") == (
        r"an \<image\> of \[data\] in `a_b`, \_c and d_e"
    )


def test_a_docstring_is_divided_into_its_parts() -> None:
    found = parse(
        "Return one.\n\nMore ``code``\nhere.\n\n>>> 1\n1\n\nArgs:\n    a: first\n        line.\n    b: second.\n"
    )
    assert (found.summary, found.details, found.example) == ("Return one.", "More `code` here.", ">>> 1\n1")
    assert found.sections == {"Args": {"a": "first line.", "b": "second."}}


def test_the_fields_of_scores_counts_and_usage_are_described() -> None:
    described = {"Estimate", "Metrics", "Summary", "RowCount", "ImageScan", "ComputeSummary", "ConfusionMatrix"}
    assert results_fields.undescribed().keys() & described == set()


def test_the_schema_is_valid() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert schema() == SCHEMA


def recipe_of(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_every_shipped_recipe_fits_the_schema(file: Path) -> None:
    errors = [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(recipe_of(file))]
    assert errors == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sft", "learning_rat", 1e-4),
        ("sft", "batch_size", "four"),
        ("sft", "batch_size", 0),
        ("grpo", "loss", "ppo"),
        ("grpo", "generations", 1),
        ("images", "percentiles", [1.0]),
        ("data", "split", {"tests": 0.1}),
        ("model", "precision", 4),
    ],
)
def test_the_schema_rejects_what_loading_rejects(section: str, key: str, value: object) -> None:
    recipe = recipe_of(ROOT / "recipes" / "quickstart.toml")
    recipe.setdefault(section, {})[key] = value
    errors = list(jsonschema.Draft7Validator(SCHEMA).iter_errors(recipe))
    assert {error.absolute_path[0] for error in errors} == {section}


def test_the_schema_accepts_weights_of_custom_rewards() -> None:
    recipe = recipe_of(ROOT / "recipes" / "quickstart.toml") | {"rewards": {"custom": ["a.py:mine"], "mine": 0.5}}
    jsonschema.Draft7Validator(SCHEMA).validate(recipe)


def test_the_code_of_every_error_and_warning_is_documented() -> None:
    raised = set()
    for file in (ROOT / "toolkit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                name, first = node.func.id, node.args[0]
                if (name.endswith("Error") or name in ("Problem", "warn")) and isinstance(first, ast.Constant):
                    raised |= {first.value} if isinstance(first.value, str) and CODE.fullmatch(first.value) else set()
    assert len(raised) > 300
    assert raised - set(entries()) == set()
