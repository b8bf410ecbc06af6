"""The diagnosis of each image of the ISIC archive: named diagnoses only, or only benign and malignant."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal

from toolkit.data import Tally
from toolkit.prepare.labels import fold_diagnosis

Classes = Literal["diagnosis", "malignancy"]
"""What a class is: a named diagnosis, or benign and malignant."""

MALIGNANCIES = frozenset({"benign", "malignant", "indeterminate", "indeterminate/benign", "indeterminate/malignant"})
"""Values of benign_malignant and of the archive's first level, which name no diagnosis."""

LEVELS = tuple(f"diagnosis_{level}" for level in range(1, 6))
"""Fields of the archive's diagnosis, from general to specific."""

GROUPS = 2
"""The first levels name groups, such as benign melanocytic proliferations. Deeper levels name diagnoses."""

Records = Mapping[str, Mapping[str, str]]
"""Image name -> field -> text."""


def find_diagnoses(records: Records, classes: Classes | None, tally: Tally) -> dict[str, str]:
    """Return image name -> its diagnosis. Images without one are counted.

    With ``diagnosis``, an image has no diagnosis if only its malignancy or a group of diagnoses is known, because its
    class would have other classes as members.

    Args:
        records: All images.
        classes: What a class is. None: a named diagnosis if any image has one, otherwise malignancy.
        tally: Counter that gets images without a diagnosis.
    """
    groups = {fold_diagnosis(text) for record in records.values() for text in _groups(record)}
    texts = {name: _most_specific(record) for name, record in records.items()}
    named = {name: text for name, text in texts.items() if text and fold_diagnosis(text) not in groups}
    malignancies = {name: text for name, record in records.items() if (text := _malignancy(name, record, tally))}
    use_names = classes == "diagnosis" or (classes is None and named)
    for name in records:
        wide = texts[name] or malignancies.get(name)
        if name in (named if use_names else malignancies):
            continue
        if use_names and wide:
            reason = (
                "images of which only malignancy or a group of diagnoses is known, which have no diagnosis "
                "(--classes malignancy uses it as the diagnosis of all images)"
            )
            tally.add(reason, f"{name}: {wide}", "data.diagnosis_not_specific")
        else:
            tally.add("images without a diagnosis", name, "data.diagnosis_missing")
    if malignancies and not use_names and classes is None:
        first = next(iter(malignancies.items()))
        tally.add(
            "sources without a named diagnosis, in which benign and malignant are the diagnoses",
            ": ".join(first),
            "data.diagnosis_is_malignancy",
        )
    return named if use_names else malignancies


def wider_diagnoses(records: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return each diagnosis of the archive -> the diagnosis one level above it. Groups are not diagnoses."""
    found: dict[str, str] = {}
    contradictory = set()
    for record in records:
        names = [text for level in LEVELS[GROUPS:] if (text := record.get(level, ""))]
        for wide, narrow in pairwise(names):
            if found.setdefault(narrow, wide) != wide:
                contradictory.add(narrow)
    return {narrow: wide for narrow, wide in found.items() if narrow not in contradictory and narrow != wide}


def _groups(record: Mapping[str, str]) -> list[str]:
    """Return the group names above a more specific level."""
    known = [(number, record[level]) for number, level in enumerate(LEVELS) if record.get(level)]
    return [text for number, text in known[:-1] if number < GROUPS]


def _most_specific(record: Mapping[str, str]) -> str:
    """Return the most specific known diagnosis: by name, archive level or class. Empty without one."""
    for key in ("diagnosis", *reversed(LEVELS), "class"):
        text = record.get(key, "")
        if text and text.lower() != "unknown" and text.lower() not in MALIGNANCIES:
            return text
    return ""


def _malignancy(name: str, record: Mapping[str, str], tally: Tally) -> str:
    """Return whether a lesion is benign or malignant. Empty if the record does not say it, or contradicts itself."""
    texts = [record.get(key, "").lower() for key in ("benign_malignant", LEVELS[0], "diagnosis")]
    known = list(dict.fromkeys(text for text in texts if text in MALIGNANCIES))
    if len(known) > 1 and {"benign", "malignant"} <= set(known):
        tally.add("images that are both benign and malignant", f"{name}: {', '.join(known)}", "data.cells_differ")
        return ""
    return known[0] if known else ""
