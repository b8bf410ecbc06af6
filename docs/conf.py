"""The configuration of Sphinx: ``sphinx-build -W -n docs site`` builds the documentation.

index.md lists the pages as links under headings, which GitHub shows too. The navigation of the site is made from these
lists when index.md is read, so that no list of pages is written twice.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "toolkit"
author = "the toolkit authors"
copyright = f"{author}. Apache-2.0. Not a medical device"
release = re.findall(r'__version__ = "(.+)"', (ROOT / "toolkit" / "__init__.py").read_text(encoding="utf-8"))[0]
repository = PROJECT.get("urls", {}).get("Repository", "").rstrip("/")

extensions = ["myst_parser"]
exclude_patterns = ["generate"]
nitpicky = True
smartquotes = False  # they would change the two hyphens of an option
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # the anchors that GitHub makes
suppress_warnings = ["myst.header"]  # a page may leave out a level of headings
pygments_style = "friendly"
pygments_dark_style = "monokai"

html_theme = "furo"
html_title = f"toolkit {release}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_extra_path = ["reference/recipe.schema.json"]
html_copy_source = False
html_show_sphinx = False


def _navigation(index: str) -> str:
    """Return the table of contents of the site: one tree for each list of pages in the index.

    Its caption is the heading of the list, or the heading and the line above the list.
    """
    trees, title, caption = dict[str, list[str]](), "", ""
    for line in index.splitlines():
        if line.startswith("## "):
            title = caption = line.removeprefix("## ")
        elif re.fullmatch(r"\w[\w ]*:", line):
            caption = f"{title}: {line[0].lower()}{line[1:-1]}"
        elif page := re.match(r"- \[[^]]+\]\(([^)#]+)\.md\)", line):
            trees.setdefault(caption, []).append(page[1])
    blocks = (["```{toctree}", ":hidden:", f":caption: {name}", "", *pages, "```"] for name, pages in trees.items())
    return "\n\n".join("\n".join(block) for block in blocks)


def _root_link(link: re.Match[str]) -> str:
    """Return a link to a file beside docs/, which is no page of the site, as a link to the repository."""
    text, file = link[1], link[2]
    return f"[{text}]({repository}/blob/main/{file})" if repository else f"{text} (`{file}`)"


def _read_source(app: Any, page: str, source: list[str]) -> None:
    """Add the navigation to the index, and replace links to files beside docs/."""
    if page == "index":
        source[0] += f"\n{_navigation(source[0])}\n"
    source[0] = re.sub(r"\[([^]]+)\]\(\.\./\.\./([A-Z]+\.(?:md|cff))\)", _root_link, source[0])


def setup(app: Any) -> None:
    """Connect the hooks of this file."""
    app.connect("source-read", _read_source)
