"""Formats of rows, recognized by content: one table, in the order in which they are tried."""

from toolkit.data.formats.base import Format, Look, Reading
from toolkit.data.formats.plain import PLAIN

FORMATS: tuple[Format, ...] = (PLAIN,)
"""The table of formats. The first that matches a source is its format, so that a more specific one comes earlier."""


def recognize(look: Look) -> Format | None:
    """Return the format of a source, or None if no format matches."""
    return next((one for one in FORMATS if one.matches(look)), None)


__all__ = ["FORMATS", "Format", "Look", "Reading", "recognize"]
