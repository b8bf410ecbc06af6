"""Names of modules and model types. Packages that must not import a model library can use them."""

import re

VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|image_encoder)\.")
"""Matches modules of vision towers in transformers."""
IMAGE_BLOCKS = ("gemma3", "gemma3n", "paligemma")
"""Model types with bidirectional attention between the tokens of an image."""
