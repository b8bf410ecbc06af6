"""Measure how fast HAM10000's masks become rows, against scikit-image's label, regionprops and find_contours.

    python tests/benchmarks/bench_masks.py [--count 2000] [--workers N]

The whole preparation is timed with all cores, from the metadata to the written files, on generated masks of 600x450
(one region, one in five with two). Each has its own image file. Below 10,015 masks the time is scaled up linearly,
which overestimates it: processes start and the sheet is drawn only once. scikit-image measures some of the same masks
on one core, and its boxes must be equal. Prints a table, then one JSON object. The exit code is 1 if the limit is
missed.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from skimage import io, measure

from toolkit.prepare import PrepareRequest, prepare_ham10000
from toolkit.prepare.measure import usable_cores

WIDTH, HEIGHT = 600, 450
ALL = 10_015
LIMIT_SECONDS = 60.0
RIVAL = 200
"""Masks that scikit-image measures."""


def write_download(folder: Path, count: int) -> list[str]:
    """Write metadata, masks and images in HAM10000's layout. The images are one file under many names."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    image = folder / "image.jpg"
    cv2.imwrite(str(image), rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    names = [f"ISIC_{number:07d}" for number in range(count)]
    for number, name in enumerate(names):
        os.link(image, folder / "images" / f"{name}.jpg")
        cv2.imwrite(str(folder / "masks" / f"{name}_segmentation.png"), draw_mask(rng, 1 + (number % 5 == 0)))
    with (folder / "metadata.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"])
        for number, name in enumerate(names):
            row = [f"HAM_{number:07d}", name, ("nv", "mel", "bkl")[number % 3], "histo", 50, "male", "back", "made"]
            table.writerow(row)
    return names


def draw_mask(rng: np.random.Generator, regions: int) -> np.ndarray:
    """Return ellipses with a wavy edge, as annotators draw lesions."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    turn = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    for part in range(regions):
        x = WIDTH * (0.25 + 0.5 * part + 0.1 * rng.random()) if regions > 1 else WIDTH * rng.uniform(0.35, 0.65)
        wave = 1 + sum(rng.normal(0, 0.08 / k) * np.cos(k * turn + rng.uniform(0, 6)) for k in range(2, 16))
        radius = rng.uniform(50, 120) / regions**0.5
        points = np.stack([x + 1.3 * radius * wave * np.cos(turn), HEIGHT / 2 + radius * wave * np.sin(turn)], 1)
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 255)
    return mask


def with_scikit_image(file: Path) -> tuple[list[int], int]:
    """Return the box of the largest region in this package's convention, and the number of vertices of all outlines."""
    mask = io.imread(file) > 0
    regions = measure.regionprops(measure.label(mask, connectivity=2))
    outlines = measure.find_contours(np.pad(mask, 1).astype(float), 0.5)
    y1, x1, y2, x2 = max(regions, key=lambda region: region.area).bbox
    return [x1, y1, x2, y2], sum(map(len, outlines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=usable_cores())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_download(folder, options.count)
        start = time.perf_counter()
        request = PrepareRequest(folder / "out", workers=options.workers)
        prepare_ham10000([folder / "images"], folder / "masks", folder / "metadata.csv", request)
        ours = (time.perf_counter() - start) / options.count
        chosen = names[:RIVAL]
        start = time.perf_counter()
        boxes = {name: with_scikit_image(folder / "masks" / f"{name}_segmentation.png")[0] for name in chosen}
        rival = (time.perf_counter() - start) / len(chosen)
        rows = json.loads((folder / "out" / "ham10000_with_spatial_data.json").read_text())
    differing = [row["image_id"] for row in rows if row["image_id"] in boxes and row["bbox"] != boxes[row["image_id"]]]
    seconds = ours * ALL
    scaled = "" if options.count == ALL else f", scaled up from {options.count:,}"
    print(f"{'toolkit, ' + str(options.workers) + ' processes':34} {ours * 1e3:7.2f} ms a mask")
    print(f"{'scikit-image, one core':34} {rival * 1e3:7.2f} ms a mask   {rival / ours:.1f} times as long")
    print(f"{f'{ALL:,} masks{scaled}':34} {seconds:7.1f} s   limit {LIMIT_SECONDS:g} s")
    print(f"{'boxes that differ':34} {len(differing):7d} of {len(boxes)}")
    facts = {"count": options.count, "workers": options.workers, "ms": ours * 1e3, "scikit_image_ms": rival * 1e3}
    print(json.dumps({**facts, "seconds_for_all": seconds, "limit": LIMIT_SECONDS, "differing": differing}))
    return int(seconds > LIMIT_SECONDS or bool(differing))


if __name__ == "__main__":
    sys.exit(main())
