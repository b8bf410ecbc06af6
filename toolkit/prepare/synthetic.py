"""Synthetic lesions for a recipe: generated in the layout of HAM10000, then prepared like a download."""

from pathlib import Path

from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.request import PrepareRequest
from toolkit.recipe import Phantom
from toolkit.tasks.lesion.synthetic import write_ham10000


def write_lesions(folder: Path, phantom: Phantom, seed: int) -> dict[str, Path]:
    """Write images, masks and rows, and return the JSON file of each split that has rows.

    The split is by lesion, so split sizes only approximate the requested numbers of images. Images are
    ``phantom.size`` pixels wide and three quarters as high.
    """
    total = phantom.train + phantom.validation + phantom.test
    written = write_ham10000(folder, total, seed, (phantom.size, phantom.size * 3 // 4))
    fractions = {"validation": phantom.validation / total, "test": phantom.test / total}
    request = PrepareRequest(folder, seed, fractions["validation"], fractions["test"], workers=1)
    prepare_ham10000(
        [written["images_part_1"], written["images_part_2"]], written["masks"], written["metadata"], request
    )
    files = {split: folder / f"{split}.json" for split in ("train", "validation", "test")}
    return {split: file for split, file in files.items() if file.is_file()}
