"""Embed images into a page: as the model sees them, small, and within a budget of bytes."""

import base64
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from toolkit.errors import ToolkitError
from toolkit.images import ImageStore
from toolkit.images.ref import ImageRef
from toolkit.reporting.blocks import EmbeddedImage

SIDE = 384
"""Largest side of an embedded image in pixels."""

QUALITY = 82
"""Quality of JPEG. Its marks are invisible at the size of the page."""

LOSSLESS_SIDE = 96
"""Images up to this side are embedded as PNG, because JPEG would blur their few pixels."""


@dataclass
class ImageBudget:
    """The bytes that are left for images, over all runs of a report.

    Attributes:
        left: bytes that are left.
        without: why no image is embedded. Empty: images are embedded.
    """

    left: int
    without: str = ""

    def embed(self, ref: ImageRef, store: ImageStore | None) -> EmbeddedImage:
        """Return an image of a row, rendered by the image policy of the recipe, or why it is missing."""
        if self.without or store is None:
            return EmbeddedImage("", reason=self.without or "The data cannot be read.")
        try:
            loaded = store.fetch(ref)
        except ToolkitError as error:
            return EmbeddedImage("", reason=f"The image cannot be read: {error.rule}.")
        content = loaded.record.content
        image = loaded.image if content is None else loaded.image.crop(content)
        return self.encode(image, loaded.record.source_size)

    def encode(self, image: Image.Image, size: tuple[int, int] | None = None) -> EmbeddedImage:
        """Return an image as a data URI, or why it is missing. ``size``: that of the original. Default: its own."""
        shown = size or image.size
        if self.without:
            return EmbeddedImage("", reason=self.without)
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        stream = BytesIO()
        lossless = max(small.size) <= LOSSLESS_SIDE
        if lossless:
            small.save(stream, "PNG", optimize=True)
        else:
            small.save(stream, "JPEG", quality=QUALITY, optimize=True)
        text = base64.b64encode(stream.getvalue()).decode("ascii")
        if len(text) > self.left:
            return EmbeddedImage("", reason="The image is left out, because the report would be too large.")
        self.left -= len(text)
        return EmbeddedImage(f"data:image/{'png' if lossless else 'jpeg'};base64,{text}", shown)
