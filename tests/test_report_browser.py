"""The HTML report in headless Chromium: no errors, filters, themes, and nothing that overlaps or leaves the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.test_report import example
from toolkit.data.shapes import Shape
from toolkit.reporting.blocks import (
    Code,
    Example,
    Examples,
    ImageGrid,
    Matrices,
    Matrix,
    Part,
    Plot,
    Plots,
    Reply,
    Report,
    Section,
    Table,
    Text,
)
from toolkit.reporting.embedding import ImageBudget
from toolkit.reporting.page import html_page
from toolkit.reporting.plots import ForestRow, Series, forest, lines, square
from toolkit.scoring.statistics import Estimate

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (1280, 390)
LONG = "colorectal adenocarcinoma epithelium with_a_very_long_name_that_has_no_space"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install .[test])")
    if not CHROMIUM.is_file():
        pytest.skip(f"Chromium is not at {CHROMIUM} (apt-get install --no-install-recommends chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def estimate(value: float) -> Estimate:
    return Estimate(value, 12_345, value - 0.04, value + 0.05, "wilson", 12_345)


def plots() -> Plots:
    table = Table.of(("row", "value", "95 % interval", "n"), [(LONG, "50.0 %", "46.0 to 55.0", "12,345")] * 3)
    bars = [ForestRow("majority baseline", estimate(0.3), quiet=True), ForestRow(LONG, estimate(0.8))]
    series = [Series(f"{LONG} {number}", range(80), list(np.linspace(0, 1, 80) ** number)) for number in range(1, 7)]
    drawn = {
        "forest": forest("forest", bars, "accuracy in percent"),
        "differences": forest("differences", bars * 4, "percentage points", zero=True),
        "lines": lines("lines", series),
        "small": lines("small", [Series("learning rate", range(80), list(np.linspace(0, 2e-6, 80)))]),
        "large": lines("large", [Series("tokens", range(80), list(np.linspace(0, 2e9, 80)))]),
        "square": square("square", series[:5], ("false positive rate", "true positive rate"), [(0.5, estimate(0.5))]),
    }
    return Plots(tuple(Plot(name, svg, table) for name, svg in drawn.items()))


def with_image(number: int, outcome: str) -> Example:
    pixels = np.full((96, 128, 3), 40 * number % 255, np.uint8)
    image = ImageBudget(1_000_000).encode(Image.fromarray(pixels))
    box = Shape("box", (10, 10, 60, 50), "cyst")
    reply = Reply("after GRPO", LONG * 3, 0.5, "no box", True, {"iou": (0.5, LONG)}, {LONG: 0.7}, (box,))
    name = f"id-{number:08x}"
    return Example(name, "row 7", LONG, LONG, outcome, True, 0, (image,), (box, Shape("point", (5, 5))), (reply, reply))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with every kind of block, long names, and 20 examples."""
    image = ImageBudget(1_000_000).encode(Image.fromarray(np.zeros((32, 32, 3), np.uint8)))
    found = [example(number, "right") for number in range(13)]
    found += [example(20, "wrong", worst=2), example(21, "wrong", changed=True, worst=1), example(22, "unreadable")]
    found += [with_image(number, "partly") for number in range(30, 34)]
    labels = tuple(f"{number} {LONG}" for number in range(9))
    counts = tuple(tuple(1000 * (row == column) + column for column in range(10)) for row in range(9))
    blocks = (
        Text("A paragraph."),
        Text("A warning.", "warning"),
        Table.of(("name", "a", "b", "c", "d", "e"), [(LONG, "1", "+2.0 (-1.0 to +3.0), clear", "3", "4", LONG)] * 3),
        plots(),
        Matrices((Matrix("before", labels, (*labels, "(unreadable)"), counts),) * 2),
        Code(f'[run]\nname = "{LONG}"\n' + "x" * 400),
        ImageGrid(tuple(f"round {number}" for number in range(9)), ((LONG, (image,) * 9),) * 3, "Rounds"),
        Examples(tuple(found)),
    )
    facts = (("model", LONG), ("score", "50.0 % (46.0 to 55.0, n 12,345)"))
    report = Report("a run", facts, (Part("run-0", "run", (Section("all", "All blocks", blocks),)),), has_rows=True)
    written = tmp_path_factory.mktemp("page") / "report.html"
    written.write_text(html_page(report))
    return written


@pytest.fixture(params=WIDTHS, ids=lambda width: f"{width} px")
def page(request: pytest.FixtureRequest, browser: "Browser", file: Path) -> Iterator["Page"]:
    """Yield the page in a window, and check that it logged no error."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("dialog", lambda dialog: found.append(dialog.message))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else found.append(sent.url))
    page.goto(file.as_uri())
    yield page
    assert found == []
    page.close()


OUTSIDE = """() => [...document.querySelectorAll("svg.plot text")].filter((text) => {
  const box = text.ownerSVGElement.getBoundingClientRect(), one = text.getBoundingClientRect();
  return one.left < box.left - 1 || one.right > box.right + 1 || one.top < box.top - 1 || one.bottom > box.bottom + 1;
}).map((text) => text.textContent)"""

OVERLAPPING = """() => {
  const texts = [...document.querySelectorAll("svg.plot text")].map((one) => [one, one.getBoundingClientRect()]);
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  return texts.map(([one, a], number) => texts.slice(number + 1)
    .filter(([other, b]) => one.ownerSVGElement === other.ownerSVGElement && meet(a, b))
    .map(([other]) => `${one.textContent} / ${other.textContent}`).join()).filter((found) => found);
}"""


def test_nothing_leaves_the_page_and_no_text_of_a_plot_overlaps(page: "Page") -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPPING) == []


def test_text_of_plots_is_at_least_ten_pixels_high(page: "Page") -> None:
    sizes = """() => [...document.querySelectorAll("svg.plot")].map((plot) =>
      11 * plot.getBoundingClientRect().width / plot.viewBox.baseVal.width)"""
    assert min(page.evaluate(sizes)) >= 10


def shown(page: "Page") -> list[str]:
    return page.locator(".card:visible h4").all_inner_texts()


def test_filters_show_their_examples(page: "Page") -> None:
    assert len(shown(page)) == 12  # of 20
    page.click("button.more")
    assert len(shown(page)) == 20
    page.click('button[data-filter="wrong"]')
    assert shown(page) == ["id-00000014", "id-00000015"]
    assert page.inner_text("[role=status]") == "2 of 2 examples shown"
    assert page.get_attribute('button[data-filter="wrong"]', "aria-pressed") == "true"
    page.click('button[data-filter="worst"]')
    assert shown(page) == ["id-00000015", "id-00000014"]  # the worst one first
    page.click('button[data-filter="unreadable"]')
    assert shown(page) == ["id-00000016"]
    page.click('button[data-filter="changed"]')
    assert shown(page)[0] == "id-00000015"
    assert len(shown(page)) == 5


def test_filters_are_used_with_the_keyboard(page: "Page") -> None:
    page.focus('button[data-filter="unreadable"]')
    page.keyboard.press("Enter")
    assert shown(page) == ["id-00000016"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.dataset.filter") == "wrong"
    assert shown(page) == ["id-00000014", "id-00000015"]


def test_the_theme_follows_the_system_and_the_button(page: "Page") -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != light
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert page.evaluate(ground) == dark
    ink = 'getComputedStyle(document.querySelector("svg.plot text")).fill'
    assert page.evaluate(ink) == page.evaluate("getComputedStyle(document.body).color")


def test_print_shows_every_example_in_black_on_white(page: "Page") -> None:
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate('window.dispatchEvent(new Event("beforeprint"))')
    assert len(shown(page)) == 20
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator(".filters").first.is_visible()


def test_every_image_and_plot_has_a_text_for_screen_readers(page: "Page") -> None:
    missing = """() => [...document.querySelectorAll("svg[role=img], img")]
      .filter((one) => !(one.getAttribute("aria-label") || one.getAttribute("alt"))).length"""
    assert page.evaluate(missing) == 0
    repeated = """() => { const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
      return ids.filter((id, number) => ids.indexOf(id) !== number); }"""
    assert page.evaluate(repeated) == []
