"""The identity of a picture, by which its processed form is remembered."""

from PIL import Image

KEY = "toolkit_key"
"""Where a picture carries its identity: in ``Image.info``, which a deep copy keeps."""


def set_image_key(image: Image.Image, key: str) -> Image.Image:
    """Give a picture its identity."""
    image.info[KEY] = key
    return image
