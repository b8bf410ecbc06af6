"""Values that can be None and must not be."""

from typing import TypeVar

Value = TypeVar("Value")


def defined(value: Value | None) -> Value:
    """Return a value that must not be None."""
    assert value is not None
    return value
