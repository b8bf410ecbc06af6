"""Former names of recipe keys, commands and command-line options. Each is rejected with the new name."""

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "data.phantom": "data.synthetic",
    "export.allow_dequantised": "export.allow_dequantized",
    "toolkit data phantom": "toolkit data synthetic",
    "--rehearse": "--dry-run",
    "toolkit report compute": "toolkit report RUN… --format markdown",
}
"""Former name -> new name. A recipe key is dotted, and a command begins with ``toolkit``."""


def use_new_name(former: str) -> str:
    """Return ``Use <new name> instead.``, or an empty string if nothing was called ``former``."""
    return f"Use {RENAMED[former]} instead." if former in RENAMED else ""
