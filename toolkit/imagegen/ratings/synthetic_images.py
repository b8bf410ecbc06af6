"""Synthetic medical images: OCT, CT, X-ray and MRI with a finding that can be seen at 32 pixels, clean or degraded.

Each image has a known finding, prompt, degradation and severity, so that a closed formula says how good it is. The
images are drawn at four times their size and reduced. They resemble medical images and are not anatomy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Light = NDArray[np.float32]
"""Side x side, from 0 (black) to 1 (white)."""

Degradation = Literal["none", "noise", "stripes", "blur", "contrast", "wrong finding"]
DEGRADATIONS: tuple[Degradation, ...] = ("noise", "stripes", "blur", "contrast", "wrong finding")

PROMPTS: Mapping[str, Mapping[str, str]] = {
    "OCT": {
        "normal": "OCT: healthy retinal layers",
        "fluid": "OCT: intraretinal fluid in the macula",
        "drusen": "OCT: drusen that elevate the pigment epithelium",
    },
    "CT": {
        "normal": "CT: clear lungs",
        "nodule": "CT: solid nodule in the lung",
        "effusion": "CT: pleural effusion behind the lung",
    },
    "X-Ray": {
        "normal": "X-Ray: normal heart and clear lungs",
        "cardiomegaly": "X-Ray: enlarged heart",
        "effusion": "X-Ray: pleural effusion at the base of the lung",
    },
    "MRI": {
        "normal": "MRI: normal brain",
        "tumor": "MRI: bright tumor in the brain",
        "ventricles": "MRI: enlarged ventricles",
    },
}
"""Modality -> finding -> prompt."""

MISMATCH = 0.5
"""An image of another finding than the prompt's is rated as if it had this fraction of its quality."""

LEAST_SEVERITY = 0.1
"""Less severe degradations cannot be seen."""

OVERSAMPLING = 4


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticImage:
    """An image and its ground truth.

    Attributes:
        pixels: (size, size) float32 in [0, 1].
        modality: one of ``PROMPTS``.
        finding: the finding that the image shows.
        prompt: the prompt of the image. Another finding's prompt if the degradation is ``wrong finding``.
        degradation: kind of the image's defect.
        severity: 0 (clean) to 1.
    """

    pixels: Light
    modality: str
    finding: str
    prompt: str
    degradation: Degradation
    severity: float

    @property
    def quality(self) -> float:
        """Quality of the image alone, in [0, 1]: 1 - severity. A wrong finding does not lower it."""
        return 1.0 if self.degradation == "wrong finding" else 1.0 - self.severity

    @property
    def agrees(self) -> bool:
        """Whether the image shows what its prompt says."""
        return PROMPTS[self.modality][self.finding] == self.prompt

    @property
    def score(self) -> float:
        """The rating of an expert without errors, in [0, 1]: the quality, lowered if the finding is wrong."""
        return self.quality * (1.0 if self.agrees else MISMATCH)

    def as_8_bit(self) -> NDArray[np.uint8]:
        """Return the pixels as (size, size) bytes."""
        return np.rint(self.pixels * 255).astype(np.uint8)


def synthetic_image(seed: int, index: int, size: int = 32, degraded: float = 0.6) -> SyntheticImage:
    """Return image number ``index`` of a series.

    The same arguments give the same image. Another size gives the same finding, degradation and severity.

    Args:
        seed: the seed of the series.
        index: the index of the image, from 0. Images are independent of each other.
        size: side in pixels, at least 16.
        degraded: fraction of the images that are degraded. 0 gives clean images that show what their prompts say.
    """
    rng = np.random.default_rng([seed, index])
    modality = str(rng.choice(list(PROMPTS)))
    findings = list(PROMPTS[modality])
    wanted = str(rng.choice(findings))
    degradation: Degradation = "none"
    if rng.random() < degraded:
        degradation = DEGRADATIONS[rng.integers(len(DEGRADATIONS))]
    severity = 0.0 if degradation == "none" else float(rng.uniform(LEAST_SEVERITY, 1))
    shown = wanted
    if degradation == "wrong finding":
        shown, severity = str(rng.choice([finding for finding in findings if finding != wanted])), 1.0
    light = draw(modality, shown, size, rng)
    pixels = _DEGRADE[degradation](light, severity, rng) if degradation in _DEGRADE else light
    prompt = PROMPTS[modality][wanted]
    return SyntheticImage(np.clip(pixels, 0, 1), modality, shown, prompt, degradation, severity)


def draw(modality: str, finding: str, size: int, rng: Rng) -> Light:
    """Return a clean image of this finding, with anatomy that varies from image to image: (size, size)."""
    large = _DRAW[modality](finding, size * OVERSAMPLING, rng)
    light = cv2.resize(_posed(large, rng), (size, size), interpolation=cv2.INTER_AREA)
    light += rng.normal(0, 0.012, light.shape).astype(np.float32)
    return np.asarray(np.clip(light, 0, 1), np.float32)


def _posed(light: Light, rng: Rng) -> Light:
    """Return the image slightly turned, scaled and moved."""
    side = len(light)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.normal(0, 2.5), rng.uniform(0.94, 1.05))
    turn[:, 2] += rng.normal(0, 0.012 * side, 2)
    return np.asarray(cv2.warpAffine(light, turn, (side, side), borderMode=cv2.BORDER_REPLICATE), np.float32)


def _draw_oct(finding: str, side: int, rng: Rng) -> Light:
    """Draw a B-scan: retinal layers between two curves, the choroid below."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    top = rng.uniform(0.30, 0.36) + rng.uniform(0.0, 0.25) * (x - 0.5) ** 2 + rng.normal(0, 0.03) * (x - 0.5)
    bottom = top + rng.uniform(0.30, 0.34)
    fovea = 0.11 * np.exp(-(((x - rng.uniform(0.46, 0.54)) / 0.13) ** 2))
    if finding == "fluid":
        fovea = -0.5 * fovea
    if finding == "drusen":
        for centre in np.linspace(0.2, 0.8, 3) + rng.uniform(-0.05, 0.05, 3):
            bottom = bottom - rng.uniform(0.08, 0.12) * np.exp(-(((x - centre) / 0.05) ** 2))
    top = top + fovea
    depth = (y - top) / (bottom - top)
    light = np.interp(depth, *_OCT_LAYERS).astype(np.float32)
    light = np.where(depth > 1.05, 0.45 * np.exp(-5 * (y - bottom)), light).astype(np.float32)
    if finding == "fluid":
        for offset in (-0.09, 0.09):
            centre = (0.5 + offset + rng.uniform(-0.02, 0.02), float(top.mean()) + rng.uniform(0.11, 0.15))
            _ellipse(light, centre, (rng.uniform(0.065, 0.085), rng.uniform(0.075, 0.095)), 0.04)
    return np.asarray(light, np.float32)


_OCT_LAYERS = (
    (-0.04, 0.00, 0.14, 0.20, 0.40, 0.46, 0.54, 0.60, 0.84, 0.88, 1.00, 1.05),
    (0.06, 0.80, 0.70, 0.50, 0.45, 0.28, 0.30, 0.50, 0.18, 0.95, 0.95, 0.45),
)
"""Depth in the retina (0: its inner surface, 1: below the pigment epithelium) and brightness there."""


def _draw_ct(finding: str, side: int, rng: Rng) -> Light:
    """Draw an axial slice of the chest."""
    light = np.full((side, side), 0.02, np.float32)
    _ellipse(light, (0.5, 0.5), (0.47, 0.37), 0.62)
    _ellipse(light, (0.5, 0.5), (0.43, 0.33), 0.50)
    darkness = rng.uniform(0.08, 0.14)
    lungs = {x: (x + rng.uniform(-0.01, 0.01), 0.49) for x in (0.29, 0.71)}
    axes = (rng.uniform(0.14, 0.16), rng.uniform(0.23, 0.26))
    for centre in lungs.values():
        _ellipse(light, centre, axes, darkness)
    _ellipse(light, (0.54, 0.46), (rng.uniform(0.09, 0.11), 0.12), 0.66, slant=20)
    _ellipse(light, (0.5, 0.76), (0.06, 0.06), 0.95)
    chosen = lungs[(0.29, 0.71)[rng.integers(2)]]
    if finding == "nodule":
        place = (chosen[0] + rng.uniform(-0.04, 0.04), chosen[1] + rng.uniform(-0.10, 0.06))
        _ellipse(light, place, (rng.uniform(0.05, 0.06),) * 2, 0.85)
    if finding == "effusion":
        inside = _mask(side, chosen, axes)
        below = np.arange(side)[:, None] / side > chosen[1] + rng.uniform(0.04, 0.09)
        light[inside & below] = 0.58
    return light


def _draw_xray(finding: str, side: int, rng: Rng) -> Light:
    """Draw a frontal radiograph of the chest."""
    light = np.full((side, side), 0.10, np.float32)
    _ellipse(light, (0.5, 0.66), (0.47, 0.62), 0.58)
    _ellipse(light, (0.5, 0.08), (0.12, 0.18), 0.58)
    darkness, lungs = rng.uniform(0.14, 0.22), (0.29, 0.71)
    for x in lungs:
        _ellipse(light, (x, 0.50), (0.155, 0.32), darkness, slant=8 if x < 0.5 else -8)
    for y in np.arange(0.28, 0.76, 0.12):
        for x in lungs:
            _arc(light, (x, y), (0.15, 0.05), 0.09)
    _ellipse(light, (0.5, 0.5), (0.045, 0.5), 0.72)
    width = rng.uniform(0.23, 0.26) if finding == "cardiomegaly" else rng.uniform(0.11, 0.125)
    _ellipse(light, (0.5 + 0.35 * width, 0.66), (width, 0.10 + 0.2 * width), 0.80, slant=15)
    if finding == "effusion":
        x, top = lungs[rng.integers(2)], rng.uniform(0.58, 0.64)
        outer, inner = (x - 0.18, x + 0.14) if x < 0.5 else (x + 0.18, x - 0.14)
        meniscus = [(outer, 0.90), (outer, top), (x, top + 0.06), (inner, top + 0.08), (inner, 0.90)]
        cv2.fillPoly(light, [np.rint(np.array(meniscus) * side).astype(np.int32)], 0.74)
    return light


def _draw_mri(finding: str, side: int, rng: Rng) -> Light:
    """Draw an axial slice of the brain."""
    light = np.full((side, side), 0.02, np.float32)
    axes = (rng.uniform(0.35, 0.38), rng.uniform(0.43, 0.46))
    _ellipse(light, (0.5, 0.5), axes, 0.80)
    _ellipse(light, (0.5, 0.5), (axes[0] - 0.035, axes[1] - 0.035), 0.05)
    _ellipse(light, (0.5, 0.5), (axes[0] - 0.06, axes[1] - 0.06), rng.uniform(0.40, 0.46))
    _ellipse(light, (0.5, 0.5), (axes[0] - 0.14, axes[1] - 0.14), 0.56)
    wide = 2.4 if finding == "ventricles" else 1.0
    width, height = wide * rng.uniform(0.033, 0.040), (1 + 0.3 * (wide - 1)) * rng.uniform(0.11, 0.13)
    for sign in (-1, 1):
        _ellipse(light, (0.5 + sign * (0.035 + 0.7 * width), 0.49), (width, height), 0.06, slant=sign * 12)
    if finding == "tumor":
        sign = (-1, 1)[rng.integers(2)]
        centre = (0.5 + sign * rng.uniform(0.15, 0.19), rng.uniform(0.34, 0.64))
        _ellipse(light, centre, (rng.uniform(0.065, 0.085), rng.uniform(0.065, 0.085)), 0.98)
    return light


_DRAW: Mapping[str, Callable[[str, int, Rng], Light]] = {
    "OCT": _draw_oct,
    "CT": _draw_ct,
    "X-Ray": _draw_xray,
    "MRI": _draw_mri,
}


def _add_noise(light: Light, severity: float, rng: Rng) -> Light:
    return np.asarray(light + rng.normal(0, 0.35 * severity, light.shape), np.float32)


def _add_stripes(light: Light, severity: float, rng: Rng) -> Light:
    """Make rows or columns too bright or too dark, like a detector that is not calibrated."""
    side = len(light)
    waves = np.sin(2 * np.pi * (np.arange(side) / side * rng.uniform(0.2, 0.3) * side + rng.random()))
    stripes = (0.45 * severity * waves).astype(np.float32)
    return np.asarray(light + (stripes[:, None] if rng.random() < 0.5 else stripes[None, :]), np.float32)


def _blur(light: Light, severity: float, rng: Rng) -> Light:
    return np.asarray(cv2.GaussianBlur(light, (0, 0), 0.3 + 0.085 * len(light) * severity), np.float32)


def _lower_contrast(light: Light, severity: float, rng: Rng) -> Light:
    return np.asarray(0.45 + (light - 0.45) * (1 - 0.9 * severity), np.float32)


_DEGRADE: Mapping[Degradation, Callable[[Light, float, Rng], Light]] = {
    "noise": _add_noise,
    "stripes": _add_stripes,
    "blur": _blur,
    "contrast": _lower_contrast,
}


def _ellipse(
    light: Light, centre: tuple[float, float], axes: tuple[float, float], value: float, slant: float = 0
) -> None:
    cv2.ellipse(light, _pixel(light, centre), _pixel(light, axes), slant, 0, 360, value, -1)


def _arc(light: Light, centre: tuple[float, float], axes: tuple[float, float], strength: float) -> None:
    layer = np.zeros_like(light)
    cv2.ellipse(layer, _pixel(light, centre), _pixel(light, axes), 0, 190, 350, strength, max(1, len(light) // 50))
    light += layer


def _mask(side: int, centre: tuple[float, float], axes: tuple[float, float]) -> NDArray[np.bool_]:
    layer = np.zeros((side, side), np.float32)
    _ellipse(layer, centre, axes, 1.0)
    return layer > 0


def _pixel(light: Light, point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0] * len(light)), round(point[1] * len(light))
