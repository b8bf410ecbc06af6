"""Rounding of GRPO's gradients: with packed prompts, and without them in other batches.

    python tests/benchmarks/bench_rounding.py [gemma3 qwen2_5_vl qwen3_vl]

Tiny models of the families make one optimizer step with equal completions. Each difference is given as the largest one
of a gradient relative to the largest gradient, and as the L2 norm of all differences relative to that of all gradients.

Float64 shows whether packing computes the same. In float32, two equally exact computations differ by their rounding
errors. Their size is the difference between float32 and float64 without packing. A part of them is the same for all
batches, and other batch sizes or padding show the rest.

The exit status is 1 if packing differs by more than 1e-6 in float64, or if its float32 gradients are further from
float64 than twice those without packing.
"""

import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch

from tests.helpers.grpo_steps import FAMILIES, PACKING, Tensors, Way, difference, train
from tests.helpers.tiny_families import build_tiny
from toolkit.tiny import FOLDER

LIMIT = 1e-6
PACKED = frozenset({PACKING})
WAYS = {
    "float64": Way(dtype=torch.float64),
    "float64, packed": Way(PACKED, torch.float64),
    "float32": Way(),
    "float32, packed": Way(PACKED),
    "float32, 3 completions in a pass": Way(micro_batch=3),
    "float32, 9 completions in a pass": Way(micro_batch=9),
    "float32, padded to a multiple of 64": Way(multiple=64),
}
PAIRS = (
    ("float64, packed", "float64"),
    ("float32", "float64"),
    ("float32, packed", "float64"),
    ("float32, packed", "float32"),
    ("float32, 3 completions in a pass", "float32"),
    ("float32, 9 completions in a pass", "float32"),
    ("float32, padded to a multiple of 64", "float32"),
)


def gradients(family: str, folder: Path) -> dict[str, Tensors]:
    """Return the gradients of the first step of each way."""
    model = Path(FOLDER) if family == "gemma3" else build_tiny(family, folder)
    steps = {name: train(folder / str(number), model, way, 1) for number, (name, way) in enumerate(WAYS.items())}
    for name, found in steps.items():
        if found.completions != steps[name.split(",")[0]].completions:
            sys.exit(f"{family}, {name}: other completions, so gradients cannot be compared")
    return {name: found.gradients[0] for name, found in steps.items()}


def main() -> int:
    passed = True
    for family in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found = gradients(family, Path(folder))
        print(f"{family:<60} {'largest':>8} {'L2 norm':>8}")
        figures = {pair: difference(found[pair[0]], found[pair[1]]) for pair in PAIRS}
        for (one, other), (largest, norm) in figures.items():
            print(f"{one + ' - ' + other:<60} {largest:>8.1e} {norm:>8.1e}", flush=True)
        exact, plain, packed = (figures[pair] for pair in PAIRS[:3])
        if max(exact) > LIMIT or any(own > 2 * rounding for own, rounding in zip(packed, plain, strict=True)):
            print(f"{family}: MISSED")
            passed = False
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
