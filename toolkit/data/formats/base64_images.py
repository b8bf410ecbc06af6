"""Images that rows contain as text: data URLs and base64."""

import base64
import binascii
import re
from typing import Any

from toolkit.data.embedded_images import EmbeddedImageStore, is_image
from toolkit.errors import RowProblem

MIN_BASE64 = 64
"""A shorter text is never read as an image in base64."""

STARTS = ("data:image/", "/9j/", "iVBORw0KGgo", "SUkqA", "TU0AK", "R0lGOD", "UklGR", "Qk0")
"""Starts of data URLs, and of JPEG, PNG, TIFF, GIF, WebP and BMP in base64."""

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


def image_in_text(value: str) -> bytes | None:
    """Return the bytes of a data URL or of an image in base64, or None for any other text, such as a path.

    Raises:
        RowProblem: A data URL has no image.
    """
    header = _DATA_URL.match(value)
    text = value[header.end() :] if header else value
    if header is None and (len(text) < MIN_BASE64 or _BASE64.fullmatch(text) is None):
        return None
    try:
        content = base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError):
        content = b""
    if header is not None and not is_image(content):
        rule, remedy = "a data URL must have an image in base64", "Encode the image again."
        raise RowProblem("data.data_url_invalid", rule, value=value, remedy=remedy)
    return content if is_image(content) else None


def may_have_images(value: Any) -> bool:
    """Return whether a row, or a value in it, may have images as text. This is fast for rows without any."""
    if isinstance(value, str):
        return len(value) >= MIN_BASE64 and value.startswith(STARTS)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    for one in value:
        if isinstance(one, str):
            if len(one) >= MIN_BASE64 and one.startswith(STARTS):
                return True
        elif isinstance(one, list | dict) and may_have_images(one):
            return True
    return False


def with_kept_images(value: Any, images: EmbeddedImageStore) -> Any:
    """Return a row whose images as text are kept in ``images`` and replaced by their paths.

    Raises:
        RowProblem: A data URL has no image.
    """
    if isinstance(value, str):
        content = image_in_text(value) if may_have_images(value) else None
        return value if content is None else images.keep(content)
    if isinstance(value, list):
        return [with_kept_images(one, images) for one in value]
    if isinstance(value, dict):
        return {name: with_kept_images(one, images) for name, one in value.items()}
    return value
