"""Rating sheets for tests, with prompts that would break careless HTML, JSON or CSV."""

from pathlib import Path

import numpy as np

from toolkit import recipe
from toolkit.imagegen.ratings.prepare import image_stores
from toolkit.imagegen.ratings.sheet import Sheet, SheetItem, SheetOptions, write_sheet
from toolkit.recipe.imagegen import Imagegen

SIZE = 32
PROMPTS = (
    'CT: "ground glass", left, lower lobe',
    "CT: </script><script>document.title='broken'</script>",
    "CT: <b>bold</b> &amp; <!-- <script> __SHEET__",
    "CT: first line\nsecond line",
    "CT: Größe 3 µm, \u2028 日本語, 😀, \\u003c, it's, $1 $& ${x}, =1+1",
)
SOURCES = ("base-secret", "ddpo-secret")


def sheet_section(**keys: object) -> Imagegen:
    return Imagegen(ratings=("ratings.csv",), size=SIZE, **keys)


def sheet_items(count: int) -> list[SheetItem]:
    rng = np.random.default_rng(0)
    return [
        SheetItem(
            rng.integers(0, 256, (SIZE, SIZE), np.uint8),
            PROMPTS[number % len(PROMPTS)],
            ("CT", "X-Ray")[number % 2],
            SOURCES[number % 2],
            f"MRN-{number}",
        )
        for number in range(count)
    ]


def make_sheet(folder: Path, count: int, options: SheetOptions | None = None, section: Imagegen | None = None) -> Sheet:
    section = section or sheet_section()
    stores = image_stores(section, recipe.Images(disk_cache=False))
    return write_sheet(sheet_items(count), section, stores, folder / "sheet", folder / "key.json", options)
