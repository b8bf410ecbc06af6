"""The versions that were tested together, for a package that is installed without its constraints.txt.

A test holds them equal to constraints.txt.
"""

from collections.abc import Mapping

TESTED: Mapping[str, str] = {
    "torch": "2.10.0",
    "torchvision": "0.25.0",
    "transformers": "5.15.0",
    "trl": "1.9.2",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "datasets": "4.8.5",
    "bitsandbytes": "0.50.2",
    "unsloth": "2026.10.7",
    "unsloth_zoo": "2026.10.7",
    "xformers": "0.0.35",
    "triton": "3.6.0",
    "opencv-python": "5.0.0.93",
}
"""Distribution -> version."""
