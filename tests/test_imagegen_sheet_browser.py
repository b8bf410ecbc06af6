"""Rating sheets in headless Chromium, with real key presses."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.chromium import open_browser
from tests.helpers.sheets import PROMPTS, make_sheet, sheet_items, sheet_section
from toolkit.imagegen.ratings.experts import intra_rater_agreement
from toolkit.imagegen.ratings.load import Ratings, load_ratings
from toolkit.imagegen.ratings.next_round import collect_ratings
from toolkit.imagegen.ratings.sheet import Sheet, SheetOptions

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECONDS = 1000
PLAIN = SheetOptions(repeated=0)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with open_browser() as browser:
        yield browser


@dataclass
class Tab:
    """A page of a sheet in a tab."""

    page: "Page"

    def start(self, rater: str = "ab", level: int = 3) -> None:
        self.page.fill("#rater-id", rater)
        self.page.check(f'input[name="expert-level"][value="{level}"]')
        self.page.press("#rater-id", "Enter")
        self.page.wait_for_selector("#work:visible")

    def press(self, *keys: str) -> None:
        """Press each key once an image is visible, or all are rated."""
        for key in keys:
            self.wait()
            self.page.keyboard.press(key)

    def wait(self) -> None:
        self.page.wait_for_selector('body[data-view="rating"][data-ready="true"], body[data-view="finished"]')

    def restart(self) -> None:
        self.page.reload()
        self.wait()

    def download(self, folder: Path, trigger: Callable[[], None] | None = None) -> Path:
        with self.page.expect_download() as download:
            (trigger or (lambda: self.page.keyboard.press("d")))()
        file = folder / download.value.suggested_filename
        download.value.save_as(file)
        return file

    @property
    def rated(self) -> int:
        return int(self.page.evaluate("document.getElementById('progress').value"))

    @property
    def view(self) -> str:
        return str(self.page.evaluate("document.body.dataset.view"))

    def messages(self) -> list[str]:
        return self.page.locator(".message:visible").all_inner_texts()


@dataclass
class Desk:
    """A browser profile whose tabs have one storage. What tabs log and request is recorded."""

    open: Callable[[Path], Tab]
    logged: list[str]
    requested: list[str]


@pytest.fixture
def desk(browser: "Browser") -> Iterator[Desk]:
    context = browser.new_context(accept_downloads=True, offline=True)
    context.set_default_timeout(20 * SECONDS)
    logged: list[str] = []
    requested: list[str] = []

    def open_page(file: Path) -> Tab:
        page = context.new_page()
        page.on("console", lambda message: logged.append(message.text))
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(file.as_uri())
        return Tab(page)

    yield Desk(open_page, logged, requested)
    context.close()
    assert logged == []
    assert {url.partition(":")[0] for url in requested} <= {"file", "data", "blob"}
    assert all(url.endswith(".html") for url in requested if url.startswith("file:"))


def load(file: Path) -> Ratings:
    return load_ratings(sheet_section(max_dropped=0), [str(file)])


def levels_by_item(ratings: Ratings, sheet: Sheet) -> dict[int, tuple[int, ...]]:
    item_of = {entry.image_path: entry.item for entry in sheet.key.images}
    return {item_of[image.name]: image.levels for image in ratings.images}


def test_all_images_are_rated_and_the_csv_loads(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 10, SheetOptions(repeated=0.2))
    tab = desk.open(sheet.pages[0])
    tab.start("Zoë_1", level=2)
    keys = ["1", "2", "3", "3", "2", "1", "1", "2", "3", "1", "2", "3"]
    tab.press(*keys)
    assert (tab.view, tab.rated) == ("finished", 12)

    ratings = load(tab.download(tmp_path / "sheet"))
    assert (ratings.rows, ratings.dropped, len(ratings.images)) == (12, (), 10)
    expected = {entry.item: tuple(int(keys[place - 1]) - 1 for place in entry.positions) for entry in sheet.key.images}
    assert levels_by_item(ratings, sheet) == expected
    assert {(rating.rater, rating.expert_level) for _, rating in ratings.pairs} == {("Zoë_1", 2)}
    items = sheet_items(10)
    item_of = {entry.image_path: items[entry.item] for entry in sheet.key.images}
    for image in ratings.images:
        assert (image.prompt, image.modality) == (item_of[image.name].prompt, item_of[image.name].modality)
    repeated = [levels for levels in expected.values() if len(levels) == 2]
    agreement = intra_rater_agreement(ratings)
    assert agreement.n == len(repeated) == 2
    assert agreement.equal == sum(first == second for first, second in repeated) / 2


def test_prompts_are_shown_as_text(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 5, PLAIN)
    tab = desk.open(sheet.pages[0])
    tab.start()
    shown = []
    for _ in PROMPTS:
        tab.wait()
        shown.append(tab.page.evaluate("document.getElementById('prompt').textContent"))
        tab.press("1")
    assert sorted(shown) == sorted(PROMPTS)
    assert tab.page.title() == "Image rating"


def test_a_reload_in_the_middle_keeps_rater_and_ratings(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 4, PLAIN)
    tab = desk.open(sheet.pages[0])
    tab.start()
    tab.press("3", "1")
    tab.restart()
    assert (tab.view, tab.rated) == ("rating", 2)
    tab.press("u", "2", "2", "1")
    tab.restart()
    assert (tab.view, tab.rated) == ("finished", 4)
    levels = levels_by_item(load(tab.download(tmp_path / "sheet")), sheet)
    assert [levels[entry.item] for entry in sheet.key.images] == [(2,), (1,), (1,), (0,)]


def test_undo_at_the_start_and_a_key_after_the_last_image_do_nothing(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 2, PLAIN)
    tab = desk.open(sheet.pages[0])
    tab.start()
    tab.press("u", "Backspace", "d", "0", "4", "x", "Enter", " ")
    assert (tab.view, tab.rated) == ("rating", 0)
    tab.press("1", "2", "3", "3")
    assert (tab.view, tab.rated) == ("finished", 2)
    tab.press("u")
    assert (tab.view, tab.rated) == ("rating", 1)
    tab.press("3")
    levels = levels_by_item(load(tab.download(tmp_path / "sheet")), sheet)
    assert [levels[entry.item] for entry in sheet.key.images] == [(0,), (2,)]


def test_a_held_key_rates_one_image(tmp_path: Path, desk: Desk) -> None:
    tab = desk.open(make_sheet(tmp_path, 6, PLAIN).pages[0])
    tab.start()
    for _ in range(4):  # A second down without an up is a repeat.
        tab.wait()
        tab.page.keyboard.down("2")
    tab.page.keyboard.up("2")
    assert tab.rated == 1
    tab.press("2", "2")
    for _ in range(3):
        tab.page.keyboard.down("u")
    tab.page.keyboard.up("u")
    assert tab.rated == 2
    tab.wait()
    tab.page.focus("#buttons button")
    for _ in range(3):
        tab.page.keyboard.down("Enter")
        tab.wait()
    tab.page.keyboard.up("Enter")
    assert tab.rated == 3


def test_shortcuts_of_the_browser_are_no_ratings(tmp_path: Path, desk: Desk) -> None:
    tab = desk.open(make_sheet(tmp_path, 3, PLAIN).pages[0])
    tab.start()
    tab.press("Control+1", "Alt+2", "Meta+3", "Control+u")
    assert tab.rated == 0


def test_buttons_rate_and_undo(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 2, PLAIN)
    tab = desk.open(sheet.pages[0])
    tab.start()
    for name in ("3 best", "1 worst"):
        tab.wait()
        tab.page.get_by_role("button", name=name).click()
    tab.page.get_by_role("button", name="Undo").click()
    tab.wait()
    tab.page.get_by_role("button", name="2").click()
    levels = levels_by_item(load(tab.download(tmp_path / "sheet", lambda: tab.page.click("#download-finished"))), sheet)
    assert [levels[entry.item] for entry in sheet.key.images] == [(2,), (1,)]


def test_pages_of_a_sheet_have_only_the_rater_in_common(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 6, SheetOptions(repeated=0, per_page=3))
    (tmp_path / "other").mkdir()
    other = make_sheet(tmp_path / "other", 3, PLAIN)
    first, second = desk.open(sheet.pages[0]), desk.open(sheet.pages[1])
    first.start("ab", level=1)
    first.press("1", "2")
    second.restart()
    assert (second.view, second.rated) == ("rating", 0)
    second.press("3", "3", "3")
    first.restart()
    assert first.rated == 2
    first.press("1")
    files = [tab.download(tmp_path / "sheet") for tab in (first, second)]
    assert collect_ratings(files, sheet.key, tmp_path / "sheet" / "ratings.csv") == 6
    section = sheet_section(max_dropped=0)
    ratings = load_ratings(section, [str(file) for file in files])
    assert [image.levels for image in ratings.images] == [(0,), (1,), (0,), (2,), (2,), (2,)]
    assert {rating.expert_level for _, rating in ratings.pairs} == {1}
    assert desk.open(other.pages[0]).view == "form"


def test_a_second_tab_adds_to_the_ratings_of_the_first(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 5, PLAIN)
    one, two = desk.open(sheet.pages[0]), desk.open(sheet.pages[0])
    one.start()
    one.press("1", "2")
    two.start()  # Its form was open while the first tab rated.
    assert two.rated == 2
    two.press("3")
    # Browsers copy localStorage between the processes of two tabs after some milliseconds.
    stored_text = f"localStorage.getItem('toolkit-sheet/{sheet.id}/page-1')"
    one.page.wait_for_function(f"JSON.parse({stored_text}).ab.length == 3")
    # The first tab may still show an image that is rated by now: a key must not rate it again, or any other.
    one.page.keyboard.press("1")
    one.wait()
    stored = json.loads(one.page.evaluate(stored_text))
    assert stored in ({"ab": [0, 1, 2]}, {"ab": [0, 1, 2, 0]})
    one.page.wait_for_function("document.getElementById('progress').value >= 3")
    one.press(*"11"[: 5 - one.rated])
    levels = levels_by_item(load(one.download(tmp_path / "sheet")), sheet)
    assert [levels[entry.item] for entry in sheet.key.images][:3] == [(0,), (1,), (2,)]


def test_two_raters_of_one_browser_keep_their_own_ratings(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 2, PLAIN)
    tab = desk.open(sheet.pages[0])
    tab.start("first", level=3)
    tab.press("1", "1")
    file = tab.download(tmp_path / "sheet")
    tab.page.click("#change-rater")
    tab.start("second", level=1)
    assert tab.rated == 0
    tab.press("3", "2")
    ratings = load_ratings(sheet_section(max_dropped=0), [str(file), str(tab.download(tmp_path / "sheet"))])
    assert [image.levels for image in ratings.images] == [(0, 2), (0, 1)]
    assert [rating.rater for _, rating in ratings.pairs] == ["first", "second"] * 2


def test_a_rater_id_that_could_break_the_csv_is_rejected(tmp_path: Path, desk: Desk) -> None:
    tab = desk.open(make_sheet(tmp_path, 1, PLAIN).pages[0])
    for rater in ("", "   ", "=1+1", "a b", 'a"b', "a,b", "<b>", "-a"):
        tab.page.fill("#rater-id", rater)
        tab.page.press("#rater-id", "Enter")
        assert tab.view == "form"
        (message,) = tab.messages()
        assert "rater ID" in message
        assert "expert level" in message
    tab.start()
    assert tab.view == "rating"


def test_a_full_storage_is_reported_and_loses_no_rating(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 3, PLAIN)
    tab = desk.open(sheet.pages[0])
    tab.start()
    tab.press("1")
    assert tab.messages() == []
    fill = """() => {
        for (let size = 2 ** 22; size >= 1; size = Math.floor(size / 2)) {
            for (let n = 0; ; n++) try { localStorage.setItem(`${size}-${n}`, "x".repeat(size)); } catch { break; }
        }
    }"""
    tab.page.evaluate(fill)
    tab.press("2")
    assert len(tab.messages()) == 1
    assert "cannot save" in tab.messages()[0]
    levels = levels_by_item(load(tab.download(tmp_path / "sheet")), sheet)
    assert [levels[entry.item] for entry in sheet.key.images[:2]] == [(0,), (1,)]
    tab.page.evaluate(
        "Object.keys(localStorage).filter((key) => /^[0-9]/.test(key)).forEach((key) => localStorage.removeItem(key))"
    )
    tab.press("3")
    assert tab.page.locator("#alerts .message").count() == 0
    tab.restart()
    assert tab.rated == 3


def test_a_forbidden_storage_is_reported_and_loses_no_rating(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 2, PLAIN)
    tab = desk.open(sheet.pages[0])
    forbidden = "{ get() { throw new DOMException('denied', 'SecurityError'); } }"
    tab.page.add_init_script(f"Object.defineProperty(window, 'localStorage', {forbidden});")
    tab.page.reload()
    tab.start()
    tab.press("3", "2")
    assert any("cannot save" in message for message in tab.messages())
    levels = levels_by_item(load(tab.download(tmp_path / "sheet")), sheet)
    assert [levels[entry.item] for entry in sheet.key.images] == [(2,), (1,)]


def test_a_damaged_state_is_reported(tmp_path: Path, desk: Desk) -> None:
    sheet = make_sheet(tmp_path, 2, PLAIN)
    tab = desk.open(sheet.pages[0])
    key = f"toolkit-sheet/{sheet.id}/page-1"
    for text in ("{", "[1]", '{"ab": [7]}', '{"ab": [0, 0, 0]}', '{"ab": "x"}', "null", '{"": []}'):
        tab.page.evaluate("([key, text]) => localStorage.setItem(key, text)", [key, text])
        tab.page.reload()
        assert any("cannot be read" in message for message in tab.messages()), text
    tab.start()
    tab.press("1", "1")
    assert tab.view == "finished"


@pytest.mark.parametrize("levels", [(-1, 0.5, 10), tuple(range(1, 11))])
def test_other_ratings_have_digits_as_keys(tmp_path: Path, desk: Desk, levels: tuple[float, ...]) -> None:
    section = sheet_section(rating_range=levels, max_dropped=0)
    sheet = make_sheet(tmp_path, 3, PLAIN, section)
    tab = desk.open(sheet.pages[0])
    tab.start()
    last = str(len(levels) % 10)
    tab.press("1", last, "2")
    ratings = load_ratings(section, [str(tab.download(tmp_path / "sheet"))])
    assert [image.levels for image in ratings.images] == [(0,), (len(levels) - 1,), (1,)]


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_the_keyboard_help_is_visible(tmp_path: Path, desk: Desk, width: int) -> None:
    section = sheet_section(rating_range=tuple(range(1, 11)))
    tab = desk.open(make_sheet(tmp_path, 2, PLAIN, section).pages[0])
    tab.page.set_viewport_size({"width": width, "height": 800})
    tab.start("a" * 40)
    tab.wait()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.locator("#keys").is_visible()
    box = tab.page.locator("#image").bounding_box()
    assert box is not None
    assert box["width"] == pytest.approx(box["height"], abs=1)
