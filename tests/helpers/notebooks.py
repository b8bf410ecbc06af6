"""Notebooks from their sources: ``python tests/helpers/notebooks.py`` writes each .ipynb from the .py beside it."""

from pathlib import Path

import jupytext  # type: ignore[import-untyped]
import nbformat

FOLDER = Path(__file__).parents[2] / "recipes" / "notebooks"


def sources() -> list[Path]:
    """Return the sources of the notebooks, in the percent format."""
    return sorted(FOLDER.glob("*.py"))


def notebook(source: Path) -> nbformat.NotebookNode:
    """Return the notebook of a source without outputs. The same source always gives the same notebook."""
    made: nbformat.NotebookNode = jupytext.read(source, fmt="py:percent")
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
    """Return the text of the notebook's file."""
    return str(nbformat.writes(notebook(source))).rstrip("\n") + "\n"  # type: ignore[no-untyped-call]


def main() -> None:
    """Write every notebook."""
    for source in sources():
        source.with_suffix(".ipynb").write_text(text_of(source), encoding="utf-8")


if __name__ == "__main__":
    main()
