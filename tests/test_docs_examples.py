"""Examples of the pages run: blocks with ``>>>``, Python blocks, and the tutorial of an own data set."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.cli import main

DOCS = Path(__file__).parents[1] / "docs"
GENERATED_EXAMPLES = re.compile(r"<!-- examples:begin -->.*?<!-- examples:end -->", re.DOTALL)
"""Worked examples of docstrings, which run in their own modules."""


def python_blocks(page: str) -> list[str]:
    text = GENERATED_EXAMPLES.sub("", (DOCS / page).read_text(encoding="utf-8"))
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


PAGES = [file.relative_to(DOCS).as_posix() for file in sorted(DOCS.rglob("*.md"))]
WITH_PROMPTS = [page for page in PAGES if any(">>>" in block for block in python_blocks(page))]


@pytest.mark.parametrize("page", WITH_PROMPTS)
def test_examples_with_prompts_print_what_the_page_shows(page: str) -> None:
    source = "\n".join(block for block in python_blocks(page) if ">>>" in block)
    examples = doctest.DocTestParser().get_doctest(source, {}, page, page, 0)
    assert doctest.DocTestRunner().run(examples).failed == 0
    assert len(examples.examples) > 0


def test_pages_have_examples_with_prompts() -> None:
    assert "concepts/statistics.md" in WITH_PROMPTS


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_other_python_blocks_are_python(page: str) -> None:
    for block in python_blocks(page):
        is_signature = page == "reference/python_api.md" and block.startswith("toolkit.")
        if ">>>" not in block and not is_signature:
            ast.parse(block)


def named(text: str, comment: str) -> str:
    """Return the fenced block after a comment."""
    (found,) = re.findall(rf"^<!-- {re.escape(comment)} -->\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.mark.slow
def test_the_tutorial_of_an_own_data_set_inspects_the_rows_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "tutorials" / "own_data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for file in ("make_csv.py", "mine.toml"):
        Path(file).write_text(named(text, f"file: {file}"), encoding="utf-8")
    run_command("data synthetic chest --out chest --train 600 --test 1")
    subprocess.run([sys.executable, "make_csv.py"], check=True)
    capsys.readouterr()
    run_command("data inspect mine.toml --show 1")
    assert named(text, "output: data inspect") in capsys.readouterr().out
    table = Path("chest/questions.csv").read_text(encoding="utf-8")
    assert f"```text\n{table[: table.index('In which zone')]}```" in text


def run_command(words: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 0
