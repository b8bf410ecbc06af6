"""Boxes, polygons, masks and locations of one image, and coordinate conventions of model families. Torch-free.

Everything is in pixels of the upright original image: x to the right, y down, x2 and y2 exclusive.
"""

from toolkit.scoring.regions.boxes import Box, Size, box_giou, box_iou, centre, clip_box, match, order_box
from toolkit.scoring.regions.coordinates import COORDINATES, Coordinates, Frame, choose_coordinates
from toolkit.scoring.regions.locations import (
    GRIDS,
    Location,
    format_location,
    locate_box,
    location_score,
    parse_location,
)
from toolkit.scoring.regions.masks import (
    Mask,
    MaskReading,
    Polygon,
    dice,
    draw_boxes,
    draw_polygons,
    find_regions,
    fit_mask,
    mask_iou,
    read_mask,
    read_mask_file,
    shorten,
)

__all__ = [
    "COORDINATES",
    "GRIDS",
    "Box",
    "Coordinates",
    "Frame",
    "Location",
    "Mask",
    "MaskReading",
    "Polygon",
    "Size",
    "box_giou",
    "box_iou",
    "centre",
    "choose_coordinates",
    "clip_box",
    "dice",
    "draw_boxes",
    "draw_polygons",
    "find_regions",
    "fit_mask",
    "format_location",
    "locate_box",
    "location_score",
    "mask_iou",
    "match",
    "order_box",
    "parse_location",
    "read_mask",
    "read_mask_file",
    "shorten",
]
