"""Majority baseline of lesions: the most frequent diagnosis and location, and the median box, without the image."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

from toolkit.data.sample import Sample
from toolkit.scoring.regions import format_location
from toolkit.tasks.lesion.prompt import write_box


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> an answer with one lesion, equal for every image except for the image's size.

    Each edge of the box is the median over the largest lesions of the training rows, as a fraction of the side.
    """
    diagnoses: Counter[str] = Counter()
    places: Counter[tuple[int, ...]] = Counter()
    edges: list[list[float]] = []
    for sample in samples:
        reference, (width, height) = sample.reference, sample.fields["size"]
        if reference["diagnosis"]:
            diagnoses[reference["diagnosis"]] += 1
        if reference["places"]:
            places[tuple(reference["places"][0])] += 1
        if reference["boxes"]:
            x1, y1, x2, y2 = reference["boxes"][0]
            edges.append([x1 / width, y1 / height, x2 / width, y2 / height])
    code = diagnoses.most_common(1)[0][0] if diagnoses else None
    row, column = places.most_common(1)[0][0] if places else (1, 1)
    box = [median(values) for values in zip(*edges, strict=True)] if edges else None

    def complete(sample: Sample) -> str:
        settings, (width, height) = sample.fields["settings"], sample.fields["size"]
        parts = [f"<location>{format_location((row, column), settings.grid)}</location>"]
        if code is not None:
            parts.insert(0, f"<diagnosis>{settings.labels.name(code)}</diagnosis>")
        if box is not None:
            pixels = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
            parts.append(f"<bbox>{write_box(sample.fields['frame'], pixels)}</bbox>")
        return " ".join(parts)

    return complete
