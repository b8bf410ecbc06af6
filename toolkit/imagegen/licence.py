"""The licence of a generator's base model. A LoRA trained on the base inherits it with its use restrictions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ModelError
from toolkit.models.model_paths import public_name

KEY = "imagegen.generator.licence"

_FOLDER = Path(__file__).parent / "licences"
_MEDICAL = "To provide medical advice and medical results interpretation"


@dataclass(frozen=True, slots=True)
class GeneratorLicence:
    """A licence.

    Attributes:
        id: the Hub's identifier, or "other".
        name: its name.
        link: address of its text. Empty: not known.
        medical: its use restriction about medicine, word for word. Empty: not known.
        file: the copy of its text. None: this package has no copy.
    """

    id: str
    name: str
    link: str = ""
    medical: str = ""
    file: Path | None = None


APACHE = GeneratorLicence("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
OPEN_RAIL = GeneratorLicence(
    "creativeml-openrail-m",
    "CreativeML Open RAIL-M",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    _MEDICAL,
    _FOLDER / "creativeml-openrail-m.txt",
)
OPEN_RAIL_PLUS = GeneratorLicence(
    "openrail++",
    "CreativeML Open RAIL++-M",
    "https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL",
    _MEDICAL,
    _FOLDER / "openrail++.txt",
)

BASES: Sequence[tuple[str, GeneratorLicence]] = (
    (r"tiny", APACHE),  # It ships with this package, under its licence.
    (r"stable-diffusion-v1-[1-5]", OPEN_RAIL),
    (r"stable-diffusion-2(-1)?(-base)?", OPEN_RAIL_PLUS),
)
"""The last part of a base's name, in small letters -> its licence."""

_BY_ID: Mapping[str, GeneratorLicence] = {licence.id: licence for licence in (OPEN_RAIL, OPEN_RAIL_PLUS)}


def licence_of(base: str, named: str | None = None) -> GeneratorLicence:
    """Return the licence of a base model.

    Args:
        base: ``imagegen.generator.model``: a Hub name, a folder, which goes by its name, or ``tiny``.
        named: ``imagegen.generator.licence``, for a base that is not in the table.

    Raises:
        ModelError: the base is unknown and no licence is named, or the named one contradicts the table, or is
            Apache-2.0, which no Stable Diffusion base is under.

    >>> licence_of("stable-diffusion-v1-5/stable-diffusion-v1-5").id
    'creativeml-openrail-m'
    """
    known, shown = _known(base), public_name(base)
    named = named.strip().lower() if named else None
    if known is not None:
        if named not in (None, known.id):
            rule = f"the licence must be the base model's, which is {known.id} for {shown}"
            raise ModelError("imagegen.licence_not_bases", rule, place=KEY, value=named, remedy=f"Remove {KEY}.")
        return known
    remedy = f"Set {KEY} to the identifier on the base's model card, such as {OPEN_RAIL.id}."
    if not named:
        raise ModelError(
            "imagegen.licence_unknown", "the base model's licence must be known", place=KEY, value=shown, remedy=remedy
        )
    if named.startswith("apache"):
        rule = "a LoRA must have the licence of its Stable Diffusion base, which is never Apache-2.0"
        raise ModelError("imagegen.licence_is_apache", rule, place=KEY, value=named, remedy=remedy)
    return _BY_ID.get(named, GeneratorLicence("other", named))


def _known(base: str) -> GeneratorLicence | None:
    name = public_name(base).rpartition("/")[2].lower()
    return next((licence for pattern, licence in BASES if re.fullmatch(pattern, name)), None)
