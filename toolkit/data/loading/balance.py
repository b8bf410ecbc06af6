"""Balanced sampling: as many draws as rows, equally from every class, and within a class equally from every group."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from random import Random

import numpy as np

from toolkit.data.loading.sample_set import SampleSet
from toolkit.data.sample import Sample


def balance(
    samples: SampleSet, stratum: Callable[[Sample], str], seed: int
) -> tuple[SampleSet, dict[str, tuple[int, int]]]:
    """Return the rows to train on, and class -> (rows, draws), most frequent class first.

    The draws of a class cycle through its groups (lesions, patients), and within a group through its rows. A lesion
    with six images thus counts as much as one with a single image. The seed decides which come first. The result is the
    same on every machine.
    """
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, sample in enumerate(samples):
        groups[stratum(sample)][sample.group].append(position)
    rows = {name: sum(map(len, members.values())) for name, members in groups.items()}
    order = sorted(groups, key=lambda name: (-rows[name], name))
    fractions = Counter(islice(cycle(order), len(samples)))
    drawn = [islice(_draws(groups[name], Random(f"{seed}/balance/{name}")), fractions[name]) for name in order]
    positions = np.array([position for some in drawn for position in some], np.int64)
    return samples.take(samples.rows[positions]), {name: (rows[name], fractions[name]) for name in order}


def _draws(groups: dict[str, list[int]], random: Random) -> Iterator[int]:
    """Yield the rows of the class, group after group, without end."""
    names: Sequence[str] = sorted(groups)
    names = random.sample(names, len(names))
    turns = {name: cycle(random.sample(groups[name], len(groups[name]))) for name in names}
    for name in cycle(names):
        yield next(turns[name])
