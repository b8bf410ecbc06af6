"""Practice lesions for a recipe: generated in HAM10000's layout, then prepared as a download is."""

from pathlib import Path

from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.request import Request
from toolkit.recipe import Phantom
from toolkit.tasks.lesion.synthetic import write_ham10000


def write_lesions(folder: Path, phantom: Phantom, seed: int) -> dict[str, Path]:
    """Write pictures, masks and rows, and give the JSON file of each split that has rows.

    The splits are by lesion, so their numbers of pictures are about those that are asked for. Pictures are
    ``phantom.size`` wide and three quarters of it high.
    """
    total = phantom.train + phantom.validation + phantom.test
    written = write_ham10000(folder, total, seed, (phantom.size, phantom.size * 3 // 4))
    shares = {"validation": phantom.validation / total, "test": phantom.test / total}
    request = Request(folder, seed, shares["validation"], shares["test"], workers=1)
    prepare_ham10000(
        [written["images_part_1"], written["images_part_2"]], written["masks"], written["metadata"], request
    )
    files = {split: folder / f"{split}.json" for split in ("train", "validation", "test")}
    return {split: file for split, file in files.items() if file.is_file()}
