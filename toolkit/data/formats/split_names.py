"""Names of splits in files and folders, such as val, dev or Training."""

import re
from collections.abc import Iterable, Mapping

_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("validation", "validate", "val", "valid", "dev", "valset", "validset"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
}

_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")


def split_of(name: str) -> str | None:
    """Return train, validation or test for a usual name of a split, or None for any other name.

    >>> split_of("val"), split_of("Training"), split_of("test-00000-of-00002"), split_of("latest")
    ('validation', 'train', 'test', None)
    """
    return _NAMES.get(_SHARD.sub("", name).casefold())


def split_in(name: str) -> str | None:
    """Return the split of a file name that is or has one word of a split, or None if it has none or several.

    >>> split_in("vqarad_test"), split_in("Train-questions"), split_in("latest"), split_in("train_val")
    ('test', 'train', None, None)
    """
    found = {split for word in re.split(r"[\W_]+", name) if (split := split_of(word)) is not None}
    return split_of(name) or (found.pop() if len(found) == 1 else None)


def find_split(wanted: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that mean this split, as the source writes them.

    >>> find_split("validation", ("train", "val"))
    ('val',)
    """
    return tuple(name for name in names if split_of(name) == wanted)
