"""Turns about chest radiographs with several findings: one lung, the heart or a device at a time."""

from collections.abc import Callable, Sequence
from functools import partial

from tests.tiny_training.chest import SIDE, to_rgb
from tests.tiny_training.turns import Example, ImageLabels, QuestionAnswer, one_of, weighted
from toolkit.synthetic import Rng
from toolkit.synthetic.chest import FINDINGS, SIDES, ZONES, draw_findings, make_case
from toolkit.tasks.report_generation.synthetic import LUNG_FINDINGS, Located, draw_located

Found = Sequence[Located]


def draw(seed: int, number: int) -> Example:
    """Return a radiograph with up to four findings, its turns and its labels."""
    _, rng = make_case(seed, number)
    found = draw_located(rng)
    light = draw_findings([(one.finding.name, one.location) for one in found], SIDE, rng)
    return Example(to_rgb(light), partial(make_turn, found), ImageLabels(classes=_classes(found)))


def make_turn(found: Found, rng: Rng) -> QuestionAnswer:
    """Return a turn about these findings. Its kind is drawn by weight."""
    return weighted(_KINDS, rng)(found, rng)


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """Return the texts of a turn about random findings, for the tokenizer."""
    _, own = make_case(seed, number)
    return (*make_turn(draw_located(own), rng),)


def _lung(found: Found, rng: Rng) -> QuestionAnswer:
    side = one_of(SIDES, rng)
    here = _lung_finding(found, side)
    return QuestionAnswer(f"Describe the {side} lung.", here.sentence if here else f"The {side} lung is clear.")


def _heart(found: Found, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Describe the heart.", f"The heart is {'enlarged' if _large_heart(found) else 'normal'}.")


def _device(found: Found, rng: Rng) -> QuestionAnswer:
    device = _device_of(found)
    return QuestionAnswer("Describe devices.", device.sentence if device else "No device.")


def _yes_no(found: Found, rng: Rng) -> QuestionAnswer:
    names = [one.finding.name for one in found]
    queried = FINDINGS[rng.integers(len(FINDINGS))].name if rng.random() < 0.5 else one_of(names, rng)
    return QuestionAnswer(f"Does the image show: {queried}?\nAnswer yes or no.", "Yes" if queried in names else "No")


_KINDS: tuple[tuple[Callable[[Found, Rng], QuestionAnswer], float], ...] = (
    (_lung, 0.5),
    (_heart, 0.15),
    (_device, 0.15),
    (_yes_no, 0.2),
)


def _classes(found: Found) -> tuple[tuple[int, int], ...]:
    """Return finding and zone of each lung, the size of the heart, and the side of a device."""
    classes = []
    for side in SIDES:
        here = _lung_finding(found, side)
        zone = here.location.split()[1] if here and " " in here.location else ""
        classes += [
            (LUNG_FINDINGS.index(here.finding.name) + 1 if here else 0, len(LUNG_FINDINGS) + 1),
            (ZONES.index(zone) + 1 if zone else 0, len(ZONES) + 1),
        ]
    device = _device_of(found)
    return *classes, (int(_large_heart(found)), 2), (SIDES.index(device.location) + 1 if device else 0, len(SIDES) + 1)


def _lung_finding(found: Found, side: str) -> Located | None:
    return next((one for one in found if one.finding.name in LUNG_FINDINGS and one.location.startswith(side)), None)


def _large_heart(found: Found) -> bool:
    return any(one.finding.name == "Cardiomegaly" for one in found)


def _device_of(found: Found) -> Located | None:
    return next((one for one in found if one.finding.name == "Pacemaker"), None)
