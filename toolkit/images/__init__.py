"""Images of any medical or common format to 8-bit RGB by one policy, scanned before training and cached."""

from toolkit.images.policy import ImagePolicy, ImageRecord, LoadedImage
from toolkit.images.ref import image_ref
from toolkit.images.scan import BadImage, ScanNote, ScanReport, scan
from toolkit.images.store import ImageStore, StoreReport, load, read_image_header, reduced_size

__all__ = [
    "BadImage",
    "ImagePolicy",
    "ImageRecord",
    "ImageStore",
    "LoadedImage",
    "ScanNote",
    "ScanReport",
    "StoreReport",
    "image_ref",
    "load",
    "read_image_header",
    "reduced_size",
    "scan",
]
