"""Practice lesions for a recipe: generated in HAM10000's layout, then prepared as a download is."""

from pathlib import Path

from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.request import Request
from toolkit.recipe import SyntheticData
from toolkit.tasks.lesion.synthetic import write_ham10000


def write_lesions(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write pictures, masks and rows, and give the JSON file of each split that has rows.

    The splits are by lesion, so their numbers of pictures are about those that are asked for. Pictures are
    ``synthetic.size`` wide and three quarters of it high.
    """
    total = synthetic.train + synthetic.validation + synthetic.test
    written = write_ham10000(folder, total, seed, (synthetic.size, synthetic.size * 3 // 4))
    shares = {"validation": synthetic.validation / total, "test": synthetic.test / total}
    request = Request(folder, seed, shares["validation"], shares["test"], workers=1)
    prepare_ham10000(
        [written["images_part_1"], written["images_part_2"]], written["masks"], written["metadata"], request
    )
    files = {split: folder / f"{split}.json" for split in ("train", "validation", "test")}
    return {split: file for split, file in files.items() if file.is_file()}
