"""Draw what a completion names (boxes, outlines, targets) over the image that the model saw."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from toolkit.data.shapes import Shape
from toolkit.images.policy import LoadedImage

SIDES = (512, 1024)
"""Smallest and largest longer side of a drawn image in pixels. Lines would hide a smaller image."""

ANSWER, REFERENCE = (255, 176, 0), (0, 158, 115)
"""Colors of the completion and of the reference. They differ in lightness too, for color-blind readers."""

Point = tuple[float, float]


def draw_shapes(loaded: LoadedImage, answer: Sequence[Shape], reference: Sequence[Shape] = ()) -> Image.Image:
    """Return the image as the model sees it, without padding, with shapes over it.

    Args:
        loaded: an image of an ``ImageStore``.
        answer: what the completion names, in pixels of the original image.
        reference: what the reference has, likewise.
    """
    image = loaded.image if loaded.record.content is None else loaded.image.crop(loaded.record.content)
    factor = min(max(SIDES[0] / max(image.size), 1.0), SIDES[1] / max(image.size))
    size = tuple(max(1, round(side * factor)) for side in image.size)
    drawn = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    width, height = loaded.record.source_size
    scale = (size[0] / width, size[1] / height)
    canvas = ImageDraw.Draw(drawn)
    for shapes, color in ((reference, REFERENCE), (answer, ANSWER)):
        for shape in shapes:
            _draw(canvas, shape, scale, color)
    return drawn


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape, scale: Point, color: tuple[int, int, int]) -> None:
    numbers = shape.numbers
    points = [(x * scale[0], y * scale[1]) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    line = max(2, round(max(canvas.im.size) / 200))
    if shape.kind == "point":
        (x, y), radius = points[0], 3 * line
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=line)
    elif shape.kind == "box":
        canvas.line(_corners(points), fill=color, width=line, joint="curve")
    else:
        canvas.line([*points, points[0]] if shape.kind == "outline" else points, fill=color, width=line, joint="curve")
    if shape.kind == "arrow":
        (x, y), radius = points[-1], 2 * line
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    if shape.label:
        _label(canvas, min(points, key=lambda point: point[1]), shape.label, color)


def _corners(points: Sequence[Point]) -> list[Point]:
    """Return the closed line around a box. The model may give its corners in any order."""
    (x1, y1), (x2, y2) = points
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]


def _label(canvas: ImageDraw.ImageDraw, at: Point, text: str, color: tuple[int, int, int]) -> None:
    """Draw a label above a point, moved into the image, on a ground of its own."""
    width, height = canvas.im.size
    font = ImageFont.load_default(max(12.0, max(width, height) / 40))
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    x = min(max(0.0, at[0]), max(0.0, width - (right - left) - 4))
    y = min(max(0.0, at[1] - (bottom - top) - 6), max(0.0, height - (bottom - top) - 4))
    canvas.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=color)
    canvas.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)
