"""Formats of rows, recognized by content: one table, in the order in which they are tried."""

from toolkit.data.formats.base import Format, Look, Reading
from toolkit.data.formats.box_datasets import BOX_DATASETS
from toolkit.data.formats.box_table import BOX_TABLE, NIH_BOXES
from toolkit.data.formats.coco import COCO, COCO_CAPTIONS
from toolkit.data.formats.conversations import CONVERSATIONS
from toolkit.data.formats.image_folder import CLASS_FOLDERS, IMAGE_TABLE
from toolkit.data.formats.plain import PLAIN
from toolkit.data.formats.r2gen import R2GEN
from toolkit.data.formats.voc import VOC
from toolkit.data.formats.vqa_json import VQA_JSON
from toolkit.data.formats.yolo import YOLO

_BOXES = (COCO, VOC, YOLO, NIH_BOXES, *BOX_DATASETS, BOX_TABLE)

FORMATS: tuple[Format, ...] = (
    *_BOXES,
    COCO_CAPTIONS,
    VQA_JSON,
    CLASS_FOLDERS,
    IMAGE_TABLE,
    *CONVERSATIONS,
    R2GEN,
    PLAIN,
)
"""The table of formats. The first that matches a source is its format, so that a more specific one comes earlier."""


def recognize(look: Look) -> Format | None:
    """Return the format of a source, or None if no format matches."""
    return next((one for one in FORMATS if one.matches(look)), None)


__all__ = ["FORMATS", "Format", "Look", "Reading", "recognize"]
