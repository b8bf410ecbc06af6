"""Every generated text and its file."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from docs.generate import (
    command_line,
    error_pages,
    model_tables,
    python_api,
    recipe_keys,
    recipe_schema,
    results_fields,
    task_tables,
)

ROOT = Path(__file__).resolve().parents[2]

FILES: Mapping[str, Callable[[], str]] = {
    "docs/reference/recipe_keys.md": recipe_keys.text,
    "docs/reference/recipe.schema.json": recipe_schema.schema_text,
    "docs/reference/errors.md": error_pages.errors_page,
}
"""File -> its whole text."""

PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"models": model_tables.family_table, "data": task_tables.data_table},
    "docs/reference/cli.md": {"commands": command_line.command_table, "options": command_line.option_lists},
    "docs/reference/rewards.md": {"rewards": task_tables.reward_table, "examples": task_tables.reward_lists},
    "docs/reference/metrics.md": {"scores": task_tables.score_table},
    "docs/reference/results_json.md": {"fields": results_fields.results_lists},
    "docs/reference/python_api.md": {"functions": python_api.function_lists},
    "docs/guides/choosing_a_model.md": {"traits": model_tables.trait_table},
    "docs/guides/troubleshooting.md": {
        "areas": error_pages.area_table,
        **{symptom: partial(error_pages.symptom_list, symptom) for symptom in error_pages.SYMPTOMS},
    },
}
"""Page -> name of a part between comments -> its text."""


def generated_files() -> dict[Path, str]:
    """Return file -> its text as it must be."""
    files = {ROOT / name: text() for name, text in FILES.items()}
    for name, parts in PARTS.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        for part, text in parts.items():
            page = replace_part(page, part, text())
        files[ROOT / name] = page
    return files


def replace_part(page: str, name: str, text: str) -> str:
    """Return a page with another text between the comments ``NAME:begin`` and ``NAME:end``.

    Raises:
        ValueError: The page does not have each comment once.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must have {begin.strip()} and {end} once")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"
