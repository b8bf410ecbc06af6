"""The table of diagnoses that prepared rows need: one label for each class, with its synonyms."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """One class of diagnoses: its code, its name in answers, and its synonyms."""

    code: str
    name: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Known:
    """A class of skin lesions that datasets spell in several ways.

    Attributes:
        label: code and name.
        same: other names of the class.
        members: narrower diagnoses, which are in the class only if the dataset uses the class itself.
    """

    label: Label
    same: tuple[str, ...]
    members: tuple[str, ...] = ()


def _known(code: str, name: str, same: str, members: str = "") -> _Known:
    return _Known(Label(code, name), tuple(same.split("; ")), tuple(filter(None, members.split("; "))))


KNOWN = (
    _known(
        "mel",
        "melanoma",
        "malignant melanoma; melanoma NOS",
        "melanoma in situ; lentigo maligna; melanoma invasive; invasive melanoma; melanoma metastasis; "
        "nodular melanoma; superficial spreading melanoma; lentigo maligna melanoma; acral lentiginous melanoma",
    ),
    _known("nv", "melanocytic nevus", "nevus; naevus; melanocytic naevus; nevi; naevi; mole; benign nevus; nevus NOS"),
    _known("bcc", "basal cell carcinoma", "basal cell cancer; basalioma; basal cell carcinoma NOS"),
    _known(
        "akiec",
        "actinic keratosis",
        "AK; solar keratosis; solar or actinic keratosis; actinic keratoses",
        "Bowen's disease; Bowen disease; intraepithelial carcinoma; squamous cell carcinoma in situ",
    ),
    _known(
        "bkl",
        "benign keratosis",
        "benign keratosis-like lesion; benign keratoses",
        "seborrheic keratosis; seborrhoeic keratosis; seborrheic keratoses; solar lentigo; lichenoid keratosis; "
        "lichen planus-like keratosis; pigmented benign keratosis",
    ),
    _known("sk", "seborrheic keratosis", "seborrhoeic keratosis; seborrheic keratoses"),
    _known("df", "dermatofibroma", "fibrous histiocytoma"),
    _known(
        "vasc",
        "vascular lesion",
        "vascular",
        "angioma; hemangioma; haemangioma; angiokeratoma; pyogenic granuloma; cherry angioma",
    ),
    _known(
        "scc",
        "squamous cell carcinoma",
        "squamous cell carcinoma NOS",
        "squamous cell carcinoma invasive",
    ),
)
"""Classes of the ISIC challenges and of HAM10000 and BCN20000, by code."""


def make_labels(diagnoses: Iterable[str], wider: Mapping[str, str]) -> tuple[tuple[Label, ...], dict[str, str]]:
    """Return a label for each class of these diagnoses, and diagnosis -> name of its class.

    No class is part of another one: if the diagnoses have a class and some of its members, the members belong to it.

    Args:
        diagnoses: Texts of the rows.
        wider: Diagnosis -> a wider diagnosis of the same source, such as the level above it.

    >>> diagnoses = ["Nevus", "MEL", "Melanoma in situ", "Nevus, Combined"]
    >>> labels, name_of = make_labels(diagnoses, wider={"Nevus, Combined": "Nevus"})
    >>> [label.code for label in labels], name_of["Melanoma in situ"], name_of["Nevus, Combined"]
    (['nv', 'mel'], 'melanoma', 'melanocytic nevus')
    """
    texts = sorted(set(diagnoses))
    used = {fold_diagnosis(text) for text in texts}
    found: dict[str, list[str]] = {}
    chosen: dict[str, Label] = {}
    for text in texts:
        label = _label_of(_widest(text, wider, used), used)
        chosen.setdefault(fold_diagnosis(label.name), label)
        found.setdefault(fold_diagnosis(label.name), []).append(text)
    labels = tuple(_with_synonyms(label, found[key]) for key, label in sorted(chosen.items()))
    return labels, {text: chosen[key].name for key, own in found.items() for text in own}


def format_labels(labels: Iterable[Label]) -> str:
    """Return the labels as TOML."""
    return "\n".join(
        f"[[label]]\ncode = {_quoted(one.code)}\nname = {_quoted(one.name)}\nsynonyms = {_quoted(list(one.synonyms))}\n"
        for one in labels
    )


def fold_diagnosis(text: str) -> str:
    """Return lower-case words without punctuation and without a plural s."""
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'s", "").replace("’s", ""))
    return " ".join(
        word[:-1] if word.endswith("s") and word[-2:] not in ("ss", "is", "us", "os") else word for word in words
    )


def _widest(text: str, wider: Mapping[str, str], used: set[str]) -> str:
    """Return the widest diagnosis above this one that rows have too, otherwise the diagnosis."""
    result, seen = text, {text}
    while (text := wider.get(text, "")) and text not in seen:
        seen.add(text)
        result = text if fold_diagnosis(text) in used else result
    return result


def _label_of(text: str, used: set[str]) -> Label:
    folded = fold_diagnosis(text)
    for known in KNOWN:
        same = {fold_diagnosis(name) for name in (known.label.code, known.label.name, *known.same)}
        members = {fold_diagnosis(name) for name in known.members}
        if folded in same or (folded in members and used & same):
            return known.label
    return Label("_".join(folded.split()), text)


def _with_synonyms(label: Label, texts: Iterable[str]) -> Label:
    """Return the label with the texts of the rows and its known synonyms."""
    known = next((one for one in KNOWN if one.label == label), None)
    names: dict[str, str] = {}
    for name in (*texts, *((*known.same, *known.members) if known else ())):
        names.setdefault(fold_diagnosis(name), name)
    own = {fold_diagnosis(label.code), fold_diagnosis(label.name)}
    return Label(label.code, label.name, tuple(name for key, name in names.items() if key not in own))


def _quoted(value: object) -> str:
    """Return a string or a list of strings as TOML. JSON writes them the same way."""
    return json.dumps(value, ensure_ascii=False)
