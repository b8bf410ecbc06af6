"""Notebooks from their sources: ``python tests/helpers/notebooks.py`` writes each .ipynb from the .py beside it."""

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parents[2] / "recipes" / "notebooks"


def sources() -> list[Path]:
    """The text sources, in the percent format."""
    return sorted(FOLDER.glob("*.py"))


def notebook(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source: no outputs, and nothing that differs from one making to the next."""
    made = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    made["metadata"] = {"kernelspec": made["metadata"]["kernelspec"], "language_info": {"name": "python"}}
    made["nbformat"], made["nbformat_minor"] = 4, 5
    nbformat.validate(made)
    return made


def text_of(source: Path) -> str:
    """The notebook as its file holds it."""
    return str(nbformat.writes(notebook(source))).rstrip("\n") + "\n"


def main() -> None:
    """Write every notebook."""
    for source in sources():
        source.with_suffix(".ipynb").write_text(text_of(source), encoding="utf-8")


if __name__ == "__main__":
    main()
