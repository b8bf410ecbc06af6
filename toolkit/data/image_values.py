"""Values that look like paths of images, in whatever column they are."""

import re
from collections.abc import Mapping
from typing import Any

from toolkit.data.literals import read_literal
from toolkit.images import names

_IMAGE_PATH = re.compile(rf".*({'|'.join(map(re.escape, names.SUFFIXES))})(#.*)?\W*", re.IGNORECASE | re.DOTALL)


def looks_like_path(text: str) -> bool:
    """Return whether a text ends like the path of an image, or of a frame in it."""
    return len(text) < 4096 and _IMAGE_PATH.fullmatch(text) is not None


def looks_like_image(value: Any) -> bool:
    """Return whether a value is one path of an image or more: a text, a list, an object, or their text in a CSV.

    >>> looks_like_image("a.png"), looks_like_image(["a.png", "ct.nii.gz#3"]), looks_like_image("['a.png']")
    (True, True, True)
    >>> looks_like_image({"path": "a.png"}), looks_like_image("Is it a.png?"), looks_like_image([])
    (True, True, False)
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        found = read_literal(value)
        value = value if found is None else found
    if isinstance(value, list | tuple):
        return bool(value) and all(map(looks_like_image, value))
    if isinstance(value, Mapping):
        return any(looks_like_image(one) for one in value.values() if isinstance(one, str))
    return isinstance(value, str) and looks_like_path(value)
