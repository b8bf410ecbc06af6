"""Splits by group in which every class has about its share; the same on every machine, no picture needed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from toolkit.data.splits import join_groups, row_keys, split_by_group

FEW = "\0few"
"""The stratum of classes that have fewer groups than there are splits."""


def split_rows(groups: Sequence[str], classes: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """The split of each row: no group in two, and each class within one group of its share in every split.

    A group with several classes counts for the one that is rarest in the whole table. Classes with fewer groups than
    splits are dealt together; where even these are fewer, they go to the split with the largest share.

    >>> split_rows(["a", "a", "b", "c", "d"], ["nv", "nv", "nv", "mel", "mel"], {"train": 0.5, "test": 0.5}, seed=1)
    ['train', 'train', 'test', 'train', 'test']
    """
    class_of = group_classes(groups, classes)
    wanted = {name: share for name, share in sorted(shares.items(), key=lambda item: item[1]) if share > 0}
    groups_in = Counter(class_of.values())
    strata: defaultdict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        name = class_of[group]
        strata[name if groups_in[name] >= len(wanted) else FEW].append(row)
    result = [""] * len(groups)
    for rows in strata.values():
        names = [groups[row] for row in rows]
        enough = len(set(names)) >= len(wanted)
        dealt = split_by_group(names, wanted, seed) if enough else [list(wanted)[-1]] * len(names)
        for row, split in zip(rows, dealt, strict=True):
            result[row] = split
    return result


def group_classes(groups: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """The class that each group counts for: of several the rarest, of equally rare ones the first by name."""
    sizes = Counter(classes)
    result: dict[str, str] = {}
    for group, name in zip(groups, classes, strict=True):
        other = result.setdefault(group, name)
        result[group] = min(other, name, key=lambda one: (sizes[one], one))
    return result


def mixed_groups(groups: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The first row of each group whose rows have more than one class."""
    first = {group: row for row, group in reversed(list(enumerate(groups)))}
    mixed = {group for group, name in zip(groups, classes, strict=True) if classes[first[group]] != name}
    return sorted(first[group] for group in mixed)


def join_names(rows: Iterable[Sequence[str]]) -> list[str]:
    """The group of each row, given its names from the widest (a patient) to the narrowest (the picture); blank: none.

    Rows that share a name of one kind are one group, also by way of third rows; it is called by its widest name, the
    first in alphabetical order.

    >>> join_names([("p1", "l1", "a"), ("", "l1", "b"), ("", "", "c")])
    ['p1', 'p1', 'c']
    """
    listed = list(rows)
    kinds = ([f"{kind}\0{name}" for kind, name in enumerate(names) if name] for names in listed)
    keys = join_groups(row_keys((names[-1], shared, "") for names, shared in zip(listed, kinds, strict=True))).tolist()
    best: dict[int, tuple[int, str]] = {}
    for key, names in zip(keys, listed, strict=True):
        own = min((kind, name) for kind, name in enumerate(names) if name)
        best[key] = min(best.get(key, own), own)
    return [best[key][1] for key in keys]
