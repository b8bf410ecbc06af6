"""Measure how fast a 16-bit X-ray of 2500 x 2048 becomes the model's image, against OpenCV's read and resize alone.

    python tests/benchmarks/bench_images.py [--rounds 15]

All methods alternate, round by round, so that other load on the machine affects all of them. The fastest round of each
counts. Prints a table, then one JSON object. The exit code is 1 if a limit is missed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from toolkit.images import ImagePolicy, ImageStore, load
from toolkit.images.ref import ImageRef

HEIGHT, WIDTH, SIDE = 2500, 2048, 896
LIMITS = {"load": 0.9, "disk cache": 10.0, "memory cache": 10.0}


def write_xray(path: Path) -> None:
    """Write a smooth chest-like field with detector noise as PNG, with 12 of 16 bits used."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = 2000 + 900 * np.sin(y / 300) * np.cos(x / 250)
    cv2.imwrite(str(path), (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 4095).astype(np.uint16))


def opencv_alone(path: Path) -> None:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.resize(pixels, (round(WIDTH * SIDE / HEIGHT), SIDE), interpolation=cv2.INTER_AREA)


def methods(path: Path, folder: Path) -> dict[str, Callable[[], object]]:
    policy, ref = ImagePolicy(max_side=SIDE), ImageRef(path)
    warm = ImageStore(policy, disk=folder / "warm")
    warm.get(ref)
    time.sleep(2.1)  # a file's content key is stored once the file has not changed for two seconds
    cold = iter(range(10**6))
    return {
        "opencv alone": lambda: opencv_alone(path),
        "load": lambda: load(ref, policy),
        "load, window by percentiles": lambda: load(ref, ImagePolicy(max_side=SIDE, window="percentile")),
        "load and fill the disk cache": lambda: ImageStore(policy, disk=folder / str(next(cold))).get(ref),
        "disk cache": lambda: ImageStore(policy, disk=folder / "warm").get(ref),
        "memory cache": lambda: warm.get(ref),
    }


def fastest(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the milliseconds of the fastest round of each method."""
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "xray.png"
        write_xray(path)
        best = fastest(methods(path, Path(name)), rounds)
    speed = {method: best["opencv alone"] / ms for method, ms in best.items()}
    for method, ms in best.items():
        limit = f"at least {LIMITS[method]:g}" if method in LIMITS else ""
        print(f"{method:30} {ms:8.2f} ms   {speed[method]:7.2f} x   {limit}")
    missed = [method for method, limit in LIMITS.items() if speed[method] < limit]
    print(json.dumps({"milliseconds": best, "speed": speed, "limits": LIMITS, "missed": missed}))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
