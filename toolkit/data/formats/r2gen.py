"""Reports in the layout of R2Gen (Chen et al. 2020, arXiv 2010.16056): paths of images and the report of a study."""

from toolkit.data.formats.base import Format, Look


def _has_reports(look: Look) -> bool:
    return bool(look.objects) and all(
        isinstance(row.get("image_path"), list) and isinstance(row.get("report"), str) for row in look.objects
    )


R2GEN = Format(
    name="R2Gen annotations",
    description="a JSON object of splits (train, val, test), each a list of rows with image_path (a list) and report",
    matches=_has_reports,
    records=lambda reading: reading.rows(),
)
