"""The returned CSV files of a rating sheet as one file of ratings."""

import stat
from pathlib import Path

import pytest

from tests.helpers.problems import raises
from tests.helpers.rated import write_csv
from tests.helpers.sheets import make_sheet, sheet_items, sheet_section
from toolkit.errors import DataError
from toolkit.imagegen.ratings.experts import intra_rater_agreement
from toolkit.imagegen.ratings.load import load_ratings
from toolkit.imagegen.ratings.next_round import COLUMNS, collect_ratings
from toolkit.imagegen.ratings.sheet import Sheet, SheetOptions


def page_rows(sheet: Sheet, page: int, rater: str, rating: int = 2) -> list[list[object]]:
    """The rows that a page downloads, in the order of the page."""
    items = sheet_items(12)
    rows = [
        [
            entry.image_path,
            rating,
            items[entry.item].modality,
            2,
            items[entry.item].prompt,
            rater,
            sheet.id,
            page,
            place,
        ]
        for entry in sheet.key.images
        if entry.page == page
        for place in entry.positions
    ]
    return sorted(rows, key=lambda row: int(str(row[-1])))


@pytest.fixture
def sheet(tmp_path: Path) -> Sheet:
    return make_sheet(tmp_path, 12, SheetOptions(repeated=0.2, per_page=8))


def test_overlapping_downloads_of_raters_and_pages_become_one_file(tmp_path: Path, sheet: Sheet) -> None:
    whole = page_rows(sheet, 1, "ab")
    tables = {
        "part": whole[:3],
        "whole": whole,
        "second": page_rows(sheet, 2, "ab"),
        "other": page_rows(sheet, 1, "cd", 1),
    }
    files = [Path(write_csv(tmp_path / f"{name}.csv", rows, COLUMNS)) for name, rows in tables.items()]
    out = tmp_path / "sheet" / "ratings.csv"
    count = collect_ratings(files, sheet.key, out)
    assert count == 2 * len(whole) + len(tables["second"])
    assert stat.S_IMODE(out.stat().st_mode) == 0o600  # it has patients
    ratings = load_ratings(sheet_section(max_dropped=0), [str(out)])
    assert (ratings.count, ratings.dropped) == (count, ())
    patients = {entry.image_path: entry.patient for entry in sheet.key.images}
    assert {image.name: image.patient for image in ratings.images} == patients
    repeated = sum(len(entry.positions) == 2 for entry in sheet.key.images)
    on_first = sum(len(entry.positions) == 2 for entry in sheet.key.images if entry.page == 1)
    assert intra_rater_agreement(ratings).n == repeated + on_first
    with raises(DataError, "imagegen.collected_file_exists"):
        collect_ratings(files, sheet.key, out)


def test_contradictions_other_sheets_and_changed_files_are_rejected(tmp_path: Path, sheet: Sheet) -> None:
    rows = page_rows(sheet, 1, "ab")
    first = Path(write_csv(tmp_path / "first.csv", rows, COLUMNS))
    changed = {
        "sheet_ratings_conflict": ([[*row[:1], 3, *row[2:]] for row in rows], COLUMNS),
        "sheet_image_not_in_key": ([[*row[:6], "0000", *row[7:]] for row in rows], COLUMNS),
        "sheet_columns_missing": ([row[:-1] for row in rows], COLUMNS[:-1]),
        "sheet_position_not_whole": ([[*row[:-1], "x"] for row in rows], COLUMNS),
    }
    other_image = ("sheet_image_not_in_key", ([["images/a.png", *row[1:]] for row in rows], COLUMNS))
    for name, (table, columns) in (*changed.items(), other_image):
        file = Path(write_csv(tmp_path / f"{name}.csv", table, columns))
        with raises(DataError, f"imagegen.{name}"):
            collect_ratings([first, file], sheet.key, tmp_path / "ratings.csv")
    assert not (tmp_path / "ratings.csv").exists()
