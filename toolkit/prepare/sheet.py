"""Contact sheet as PNG and HTML: images with boxes and outlines, sampled evenly by class."""

import base64
import hashlib
import html
import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from toolkit.images import ImagePolicy, ImageStore
from toolkit.images.ref import ImageRef
from toolkit.prepare.measure import MaskMeasurements, PreparedImage

MAX_IMAGES = 48
COLUMNS = 8
SIDE = 220
"""Longest side of an image on the sheet, in pixels."""
LINE = 16
MARGIN = 6
BOX_COLOUR, OUTLINE_COLOUR, PAPER, INK = "#ffd400", "#00e5ff", "#ffffff", "#111111"


def choose_images(images: Sequence[PreparedImage], seed: int) -> list[PreparedImage]:
    """Return at most ``MAX_IMAGES`` images, one class after another, images with a box first, drawn by the seed."""
    classes: defaultdict[str, list[PreparedImage]] = defaultdict(list)
    for one in images:
        classes[one.diagnosis].append(one)
    ordered = [sorted(classes[name], key=lambda one: _order(one, seed)) for name in sorted(classes)]
    turns = [one for turn in zip_longest(*ordered) for one in turn if one is not None]
    return sorted(turns[:MAX_IMAGES], key=lambda one: one.diagnosis)


def write_sheet(folder: Path, images: Sequence[PreparedImage]) -> list[str]:
    """Write ``sheet.png`` and ``sheet.html``, and return the names of images that cannot be decoded."""
    store = ImageStore(ImagePolicy(max_side=SIDE), "placeholder", memory_mb=0)
    loaded = [store.load(ImageRef(one.files.image)) for one in images]
    tiles = [_draw_regions(shown.image, one.found) for shown, one in zip(loaded, images, strict=True)]
    captions = [_caption(one) for one in images]
    _grid(tiles, captions).save(folder / "sheet.png")
    (folder / "sheet.html").write_text(_page(tiles, captions), encoding="utf-8", newline="\n")
    return [one.name for shown, one in zip(loaded, images, strict=True) if shown.record.placeholder]


def _draw_regions(image: Image.Image, found: MaskMeasurements) -> Image.Image:
    """Return a copy of the image, at any size, with the boxes and outlines of its mask."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    across, down = image.width / found.size[0], image.height / found.size[1]
    for polygon in found.polygons or []:
        # A vertex is the index of a pixel, so its centre is half a pixel further right and down.
        points = [((x + 0.5) * across, (y + 0.5) * down) for x, y in polygon]
        pen.line([*points, points[0]], fill=OUTLINE_COLOUR, width=1)
    for x1, y1, x2, y2 in found.boxes or []:
        left, top = int(x1 * across), int(y1 * down)
        # x2 and y2 are exclusive, and Pillow draws the last pixel of a rectangle too.
        right, bottom = max(left, round(x2 * across) - 1), max(top, round(y2 * down) - 1)
        pen.rectangle((left, top, right, bottom), outline=BOX_COLOUR, width=1)
    return drawn


def _order(one: PreparedImage, seed: int) -> tuple[bool, bytes]:
    name = f"{seed}\0{one.name}".encode("utf-8", "surrogatepass")
    return not one.found.boxes, hashlib.blake2b(name, digest_size=8).digest()


def _caption(one: PreparedImage) -> tuple[str, str]:
    note = "" if one.found.boxes else " (empty mask)" if one.files.mask else " (no mask)"
    return f"{one.diagnosis or 'no diagnosis'}{note}", one.name


def _grid(tiles: Sequence[Image.Image], captions: Sequence[tuple[str, str]]) -> Image.Image:
    across, down = SIDE + MARGIN, max(tile.height for tile in tiles) + 2 * LINE + MARGIN
    columns = min(COLUMNS, len(tiles))
    lines = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * across + MARGIN, lines * down + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x, y = MARGIN + number % columns * across, MARGIN + number // columns * down
        sheet.paste(tile, (x, y))
        for line, text in enumerate(caption):
            pen.text((x, y + tile.height + line * LINE), _shorten_to_tile(text, font), INK, font)
    return sheet


def _shorten_to_tile(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, shortened to the width of a tile."""
    shown = " ".join(text.split())
    while font.getlength(shown) > SIDE:
        shown = shown[:-2].rstrip("…") + "…"
    return shown


def _page(tiles: Sequence[Image.Image], captions: Sequence[tuple[str, str]]) -> str:
    figures = "\n".join(_figure(tile, caption) for tile, caption in zip(tiles, captions, strict=True))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Boxes and outlines</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 14px sans-serif; margin: 1rem; }}
main {{ display: flex; flex-wrap: wrap; gap: 0.6rem; }}
figure {{ margin: 0; width: {SIDE}px; overflow-wrap: anywhere; }}
</style></head><body>
<p>Boxes are yellow, outlines are blue; {len(tiles)} images, sampled evenly by class.</p>
<main>
{figures}
</main></body></html>
"""


def _figure(tile: Image.Image, caption: tuple[str, str]) -> str:
    content = io.BytesIO()
    tile.save(content, "JPEG", quality=88)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    first, second = (html.escape(text) for text in caption)
    image = f'<img src="data:image/jpeg;base64,{data}" width="{tile.width}" height="{tile.height}" alt="{second}">'
    return f"<figure>{image}<figcaption><b>{first}</b><br>{second}</figcaption></figure>"
