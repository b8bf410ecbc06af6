"""Names of a model's parts, for rooms that must not load a model library to know them."""

import re

VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|image_encoder)\.")
"""Names of vision towers in transformers' models."""
