"""How many images an encoder takes at a time. Imported by the plan too, so it must not import torch."""

MOST_IMAGES = 64
MOST_PIXELS = 2**20
"""Pixels of a pass. DINOv2 base at 518 pixels then takes 3 images, CLIP large at 224 pixels 20, and each of them needs
less than 1 GiB for hidden states. Tokens per pass, which decide how busy a GPU is, are about the same for both."""


def scoring_batch(side: int) -> int:
    """Return the number of images of a pass.

    Args:
        side: of the images that the encoder takes, in pixels.

    >>> scoring_batch(32), scoring_batch(224), scoring_batch(518), scoring_batch(2048)
    (64, 20, 3, 1)
    """
    return max(1, min(MOST_IMAGES, MOST_PIXELS // side**2))
