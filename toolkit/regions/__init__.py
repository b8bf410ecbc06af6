"""Boxes, polygons, masks and places of one picture, and how a model family writes coordinates. No torch.

Everything is in pixels of the upright original picture: x to the right, y down, x2 and y2 exclusive.
"""

from toolkit.regions.boxes import Box, Size, box_giou, box_iou, centre, clip_box, order_box
from toolkit.regions.coordinates import COORDINATES, Coordinates, Frame, choose_coordinates
from toolkit.regions.masks import (
    Mask,
    Polygon,
    Region,
    dice,
    draw_boxes,
    draw_polygons,
    find_regions,
    fit_mask,
    mask_iou,
    read_mask,
    shorten,
)
from toolkit.regions.matching import match
from toolkit.regions.places import GRIDS, Place, place_of, place_score, read_place, spell_place

__all__ = [
    "COORDINATES",
    "GRIDS",
    "Box",
    "Coordinates",
    "Frame",
    "Mask",
    "Place",
    "Polygon",
    "Region",
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
    "mask_iou",
    "match",
    "order_box",
    "place_of",
    "place_score",
    "read_mask",
    "read_place",
    "shorten",
    "spell_place",
]
