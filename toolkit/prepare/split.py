"""Splits of prepared rows by group and class, and the groups of images that have several names in common."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from toolkit.data.splits import join_groups, row_keys, split_by_group

FEW = "\0few"
"""Stratum of all classes with fewer groups than splits."""


def split_rows(groups: Sequence[str], classes: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Return the split of each row. No group is in two splits.

    In every split, each class is within one group of its requested fraction. A group with several classes counts as the
    class that is rarest in the table. Classes with fewer groups than splits are pooled. If the pool has too few groups
    as well, it goes to the split with the largest fraction.

    >>> split_rows(["a", "a", "b", "c", "d"], ["nv", "nv", "nv", "mel", "mel"], {"train": 0.5, "test": 0.5}, seed=1)
    ['test', 'test', 'train', 'test', 'train']
    """
    class_of = _group_classes(groups, classes)
    requested = {name: part for name, part in sorted(fractions.items(), key=lambda item: item[1]) if part > 0}
    groups_in = Counter(class_of.values())
    strata: defaultdict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        name = class_of[group]
        strata[name if groups_in[name] >= len(requested) else FEW].append(row)
    result = [""] * len(groups)
    for rows in strata.values():
        names = [groups[row] for row in rows]
        enough = len(set(names)) >= len(requested)
        assigned = split_by_group(names, requested, seed) if enough else [list(requested)[-1]] * len(names)
        for row, split in zip(rows, assigned, strict=True):
            result[row] = split
    return result


def join_names(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the group of each row from its names, ordered from patient to image. Unknown names are blank.

    Rows with a common name of one kind are in one group, also transitively. The group is called by its first name of
    the widest kind, in alphabetical order.

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


def _group_classes(groups: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Return the class of each group: its rarest one. Ties go to the first by name."""
    sizes = Counter(classes)
    result: dict[str, str] = {}
    for group, name in zip(groups, classes, strict=True):
        other = result.setdefault(group, name)
        result[group] = min(other, name, key=lambda one: (sizes[one], one))
    return result


def mixed_groups(groups: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the first row of each group with more than one class."""
    first = {group: row for row, group in reversed(list(enumerate(groups)))}
    mixed = {group for group, name in zip(groups, classes, strict=True) if classes[first[group]] != name}
    return sorted(first[group] for group in mixed)
