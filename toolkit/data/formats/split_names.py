"""Names of splits in files and folders, such as val, dev or Training."""

import re
from collections.abc import Iterable, Mapping

_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "valset", "validset"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
}

_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")


def split_of(name: str) -> str | None:
    """Return train, validation or test for a usual name of a split, or None for any other name.

    >>> split_of("val"), split_of("Training"), split_of("test-00000-of-00002"), split_of("latest")
    ('validation', 'train', 'test', None)
    """
    return _NAMES.get(_SHARD.sub("", name).casefold())


def find_split(wanted: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that mean this split, as the source writes them.

    >>> find_split("validation", ("train", "val"))
    ('val',)
    """
    return tuple(name for name in names if split_of(name) == wanted)
