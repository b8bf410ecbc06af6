"""Whether generated images are copies of real ones: their distance to the nearest real image.

The yardstick is the distance from real images to the nearest real image of another patient. Its 1 % quantile is a
distance that hardly any two different real images have.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.imagegen.distribution import FeatureSet
from toolkit.imagegen.figure import Bootstrap, Figure, undefined
from toolkit.scoring.statistics import proportion

_CHUNK = 512


@dataclass(frozen=True, slots=True)
class CopyFigures:
    """Nearest-neighbour distances in feature space.

    Attributes:
        quantile: Which quantile of the real images' distances is the floor.
        floor: That quantile. None if there are no two groups of real images.
        real_median: Median distance from a real image to the nearest one of another group.
        generated_median: Median distance from a generated image to the nearest real one.
        nearest: Smallest distance of a generated image.
        below_floor: Fraction of the generated images whose distance is at most the floor. Real images have
            ``quantile`` by definition.
    """

    quantile: float
    floor: float | None
    real_median: float | None
    generated_median: float | None
    nearest: float | None
    below_floor: Figure


def copy_figures(generated: FeatureSet, real: FeatureSet, bootstrap: Bootstrap, quantile: float = 0.01) -> CopyFigures:
    """Compare generated images with the real images that the generator may have been trained on.

    Args:
        generated: Features of generated images, grouped by prompt.
        real: Features of real images, grouped by patient. Images of one group may be alike.
        bootstrap: Settings of the interval.
        quantile: Of the real distances.
    """
    n, n_groups = len(generated.groups), len(set(generated.groups))
    among_real = nearest_distances(real.features_NF, real, real.groups)
    among_real = among_real[among_real.isfinite()]
    found = nearest_distances(generated.features_NF, real, None) if len(real.groups) else torch.zeros(0)
    median = float(found.median()) if len(found) else None
    nearest = float(found.min()) if len(found) else None
    if not len(among_real) or not n:
        reason = "no generated image" if len(among_real) else "fewer than 2 groups of real images"
        return CopyFigures(quantile, None, None, median, nearest, undefined(reason, n, n_groups, bootstrap.confidence))
    floor = float(torch.quantile(among_real.double(), quantile))
    below = (found.double() <= floor).double().tolist()
    figure = Figure(proportion(below, generated.groups, bootstrap.resamples, bootstrap.seed, bootstrap.confidence))
    return CopyFigures(quantile, floor, float(among_real.median()), median, nearest, figure)


def nearest_distances(queries_NF: Tensor, real: FeatureSet, own_groups: tuple[str, ...] | None) -> Tensor:
    """Return the Euclidean distance from each query to the nearest real image, on the CPU.

    Args:
        queries_NF: Features of the queries.
        real: Where neighbours are searched.
        own_groups: The group of each query, whose images are left out. An infinite distance if no other is left.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(real.groups))}
    real_codes_M = torch.tensor([codes[group] for group in real.groups], dtype=torch.long)
    parts = []
    for start in range(0, len(queries_NF), _CHUNK):
        chunk = queries_NF[start : start + _CHUNK].double()
        # Without matrix products, whose rounding gives a copy a distance above 0.
        distances_CM = torch.cdist(chunk, real.features_NF.double(), compute_mode="donot_use_mm_for_euclid_dist")
        if own_groups is not None:
            own_C = torch.tensor([codes.get(group, -1) for group in own_groups[start : start + _CHUNK]])
            distances_CM = distances_CM.masked_fill(own_C[:, None] == real_codes_M, torch.inf)
        parts.append(distances_CM.amin(dim=1))
    return torch.cat(parts) if parts else torch.zeros(0)
