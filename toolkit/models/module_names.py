"""Names of models and of their parts, for rooms that must not load a model library to know them."""

import re

VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|image_encoder)\.")
"""Names of vision towers in transformers' models."""
IMAGE_BLOCKS = ("gemma3", "gemma3n", "paligemma")
"""Model types whose attention is bidirectional within a picture."""
