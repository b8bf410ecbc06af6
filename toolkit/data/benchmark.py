"""Public benchmarks of a task: where the published files are, and the settings that read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Published:
    """A published score on a benchmark, in the protocol of its authors.

    Attributes:
        model: the model and how it was used, such as ``MedGemma 4B, zero-shot``.
        score: the primary score of the task, from 0 to 1.
        source: where it was published.
    """

    model: str
    score: float
    source: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A public dataset as its authors publish it.

    Attributes:
        name: its name in ``toolkit evaluate --benchmark``.
        source: authors, year and identifier.
        test: patterns of the test rows below the data folder. The first that matches is used.
        train: likewise, of the training rows, from which the majority baseline is computed.
        image_root: folders of the image paths below the data folder. The first that exists is used.
        settings: further settings of [data].
        published: published scores in a protocol that the primary score matches.
    """

    name: str
    source: str
    test: tuple[str, ...]
    train: tuple[str, ...] = ()
    image_root: tuple[str, ...] = (".",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()

    def find(self, folder: Path) -> dict[str, Any]:
        """Return [data] for the files in a folder, without the task.

        Without a pattern for training rows, some groups of the published rows are split off as training rows.

        Raises:
            DataError: The folder has none of the files.
        """
        test = _first(folder, self.test)
        train = _first(folder, self.train) if self.train else test
        if test is None or train is None:
            patterns = self.train if train is None else self.test
            rule = f"the folder must have the published files of {self.name}: one of {', '.join(patterns)}"
            remedy = "Give the folder that they were unpacked to with --data."
            raise DataError("evaluate.benchmark_files_missing", rule, place=folder, remedy=remedy)
        root = next((folder / name for name in self.image_root if (folder / name).is_dir()), folder)
        split = {"test": test} if self.train else {"split": {"test": 0.8}}
        return {"train": train, **split, "image_root": str(root), "on_leak": "report", **self.settings}


def _first(folder: Path, patterns: tuple[str, ...]) -> str | None:
    """Return the source of the first pattern that matches: a file or folder, or the split of a folder with shards."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            return f"{found[0].parent}#{found[0].name.partition('-')[0]}"
        if found:
            return str(found[0])
    return None
