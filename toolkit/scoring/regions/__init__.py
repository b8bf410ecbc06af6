"""Boxes, polygons, masks and locations of one image, and coordinate conventions of model families. Torch-free.

Everything is in pixels of the upright original image: x to the right, y down, x2 and y2 exclusive.
"""

from toolkit.scoring.regions.box_formats import BOX_FORMATS, TOLERANCE, XYXY, BoxEvidence, BoxFormat, FoundBox
from toolkit.scoring.regions.box_text import box_of, parse_box, parse_numbers, write_box
from toolkit.scoring.regions.boxes import Box, Size, box_giou, box_iou, centre, clip_box, match, order_box
from toolkit.scoring.regions.coordinates import (
    COORDINATES,
    FAMILIES,
    Coordinates,
    CoordinatesKey,
    Family,
    Frame,
    choose_coordinates,
    choose_family,
    find_family,
)
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
    Polygon,
    dice,
    draw_boxes,
    draw_polygons,
    find_regions,
    fit_mask,
    mask_iou,
    read_mask,
    shorten,
)

__all__ = [
    "BOX_FORMATS",
    "COORDINATES",
    "FAMILIES",
    "GRIDS",
    "TOLERANCE",
    "XYXY",
    "Box",
    "BoxEvidence",
    "BoxFormat",
    "Coordinates",
    "CoordinatesKey",
    "Family",
    "FoundBox",
    "Frame",
    "Location",
    "Mask",
    "Polygon",
    "Size",
    "box_giou",
    "box_iou",
    "box_of",
    "centre",
    "choose_coordinates",
    "choose_family",
    "clip_box",
    "dice",
    "draw_boxes",
    "draw_polygons",
    "find_family",
    "find_regions",
    "fit_mask",
    "format_location",
    "locate_box",
    "location_score",
    "mask_iou",
    "match",
    "order_box",
    "parse_box",
    "parse_location",
    "parse_numbers",
    "read_mask",
    "shorten",
    "write_box",
]
