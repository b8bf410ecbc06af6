"""Windows of images: kinds, named CT windows in Hounsfield units (HU), and the text ``hu:centre,width``."""

import math
import re
from collections.abc import Mapping, Sequence

KINDS = ("auto", "range", "percentile", "dicom")
"""Windows that follow from the file."""

HU_WINDOWS: Mapping[str, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft_tissue": (40.0, 400.0),
    "liver": (30.0, 150.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "subdural": (75.0, 215.0),
    "stroke": (40.0, 40.0),
    "wide": (0.0, 2048.0),
}
"""Name -> centre and width in HU (Radiopaedia, "Windowing (CT)"; wide: Google's MedGemma notebooks)."""

FIXED_WINDOWS: Mapping[str, tuple[float, float]] = {
    "ct_lung": HU_WINDOWS["lung"],
    "ct_soft_tissue": HU_WINDOWS["soft_tissue"],
}
"""``preset`` in [imagegen.windows] -> centre and width in HU."""

MEDGEMMA_CT = "medgemma_ct"
THREE_WINDOWS: Mapping[str, tuple[str, str, str]] = {MEDGEMMA_CT: ("hu:0,2048", "hu:40,350", "hu:40,80")}
"""Name of three windows for red, green and blue -> the windows. MedGemma's notebook high_dimensional_ct shows
[-1024, 1024], [-135, 215] and [0, 80] HU."""

NAMES = (*KINDS, *HU_WINDOWS, *THREE_WINDOWS)

_HU = re.compile(r"hu:\s*([^,\s]+)\s*,\s*([^,\s]+)\s*")


def hounsfield_windows(window: str | Sequence[str]) -> tuple[tuple[float, float], ...]:
    """Return (low, high) in HU of one window, or of three for red, green and blue. Empty for a window in ``KINDS``.

    >>> hounsfield_windows("hu:40,400"), hounsfield_windows("lung"), hounsfield_windows("auto")
    (((-160.0, 240.0),), ((-1350.0, 150.0),), ())
    >>> hounsfield_windows("medgemma_ct")
    ((-1024.0, 1024.0), (-135.0, 215.0), (0.0, 80.0))

    Raises:
        ValueError: The text is not a window. Its argument is the text.
    """
    if not isinstance(window, str):
        return tuple(_window(one) for one in window)
    if window in KINDS:
        return ()
    return tuple(map(_window, THREE_WINDOWS[window])) if window in THREE_WINDOWS else (_window(window),)


def _window(text: str) -> tuple[float, float]:
    match = _HU.fullmatch(text)
    try:
        centre, width = HU_WINDOWS[text] if match is None else (float(match[1]), float(match[2]))
    except (KeyError, ValueError):
        raise ValueError(text) from None
    if not (math.isfinite(centre) and 0 < width < math.inf):
        raise ValueError(text)
    return centre - width / 2, centre + width / 2
