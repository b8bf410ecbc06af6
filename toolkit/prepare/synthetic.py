"""Synthetic lesions for a recipe: generated in the layout of HAM10000, then prepared like a download."""

from pathlib import Path

from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.request import PrepareRequest
from toolkit.recipe import SyntheticData
from toolkit.tasks.lesion.synthetic import write_ham10000


def write_lesions(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write images, masks and rows, and return the JSON file of each split that has rows.

    The split is by lesion, so split sizes only approximate the requested numbers of images. Images are
    ``synthetic.size`` pixels wide and three quarters as high.
    """
    total = synthetic.train + synthetic.validation + synthetic.test
    written = write_ham10000(folder, total, seed, (synthetic.size, synthetic.size * 3 // 4))
    fractions = {"validation": synthetic.validation / total, "test": synthetic.test / total}
    request = PrepareRequest(folder, seed, fractions["validation"], fractions["test"], workers=1)
    prepare_ham10000(
        [written["images_part_1"], written["images_part_2"]], written["masks"], written["metadata"], request
    )
    files = {split: folder / f"{split}.json" for split in ("train", "validation", "test")}
    return {split: file for split, file in files.items() if file.is_file()}
