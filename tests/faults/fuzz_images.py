"""Invalid image files: mutated PNG, JPEG, TIFF, GIF, WebP, BMP, DICOM and NIfTI, and bombs."""

import importlib.util
import io
import json
import os
import shlex
import signal
import struct
import time
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.children import Ended
from tests.faults.fuzz_data import recipe_text
from tests.faults.fuzz_mutations import mutate_bytes
from tests.faults.fuzz_outcomes import (
    LONGEST_MESSAGE,
    MEMORY,
    Case,
    attempt,
    described,
    first_wrong,
    in_child,
    judge,
    last_error,
)
from tests.faults.part import Outcome, Part, random_of
from tests.helpers.image_files import png16_bytes, tiff_bytes

SLOW_S = 10.0
"""Seconds of CPU time that one image may take."""
BATCH = 30
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n64 64 scale showpage\n%%EOF\n"


def _encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


@cache
def files() -> Mapping[str, bytes]:
    """Return good image files of many kinds by name."""
    grey = np.random.default_rng(0).normal(30_000, 3_000, (48, 40)).clip(0, 65_535).astype(np.uint16)
    rgb = Image.fromarray(np.stack([grey >> 8, 255 - (grey >> 8), grey >> 9], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "upright"
    frames = {"save_all": True, "append_images": [rgb.rotate(turn) for turn in (90, 180)]}
    return {
        "deep.png": png16_bytes(grey),
        "rgb16.png": png16_bytes(np.stack([grey] * 3, -1)),
        "grey.png": _encoded(rgb.convert("L"), "PNG"),
        "bits.png": _encoded(rgb.convert("1"), "PNG"),
        "palette.png": _encoded(rgb.quantize(16), "PNG", transparency=3),
        "rgba.png": _encoded(rgb.convert("RGBA"), "PNG"),
        "exif.png": _encoded(rgb, "PNG", exif=exif),
        "animated.png": _encoded(rgb, "PNG", **frames),
        "baseline.jpg": _encoded(rgb, "JPEG", exif=exif),
        "progressive.jpg": _encoded(rgb, "JPEG", progressive=True, icc_profile=b"x" * 200),
        "cmyk.jpg": _encoded(rgb.convert("CMYK"), "JPEG"),
        "bare.tif": tiff_bytes(grey),
        "big_endian.tif": tiff_bytes(grey.astype(np.float32), ">"),
        "lzw.tif": _encoded(Image.fromarray(grey), "TIFF", compression="tiff_lzw"),
        "deflate.tif": _encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "packed.tif": _encoded(rgb.convert("1"), "TIFF", compression="group4"),
        "jpeg.tif": _encoded(rgb, "TIFF", compression="jpeg"),
        "pages.tif": _encoded(rgb, "TIFF", **frames),
        "frames.gif": _encoded(rgb, "GIF", **frames),
        "lossy.webp": _encoded(rgb, "WEBP", exif=exif),
        "lossless.webp": _encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "frames.webp": _encoded(rgb, "WEBP", **frames),
        "a.bmp": _encoded(rgb, "BMP"),
        "palette.bmp": _encoded(rgb.quantize(16), "BMP"),
    }


def _png(width: int, height: int, content: bytes, *more: tuple[bytes, bytes]) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        *more,
        (b"IDAT", content),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def bomb(random: Random) -> tuple[str, bytes]:
    """Return a small file that claims or unpacks to something huge, or that is not an image at all."""
    zeros = zlib.compress(bytes(random.choice((1, 100)) << 20), 9)
    side = random.choice((20_000, 60_000, 2**31 - 1))
    tiff = bytearray(tiff_bytes(np.zeros((4, 4), np.uint8)))
    at = tiff.find(struct.pack("<HHI", 256, 4, 1))
    if at >= 0:
        tiff[at + 8 : at + 12] = struct.pack("<I", side)
    kinds = (
        ("pixels.png", _png(side, random.choice((1, side)), zeros)),
        ("text.png", _png(4, 4, zlib.compress(bytes(20)), (b"zTXt", b"a\0\0" + zeros))),
        ("profile.png", _png(4, 4, zlib.compress(bytes(20)), (b"iCCP", b"a\0\0" + zeros))),
        ("wide.tif", bytes(tiff)),
        ("screen.gif", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x00;"),
        ("xray.png", POSTSCRIPT),
        ("xray.jpg", b"%PDF-1.4\n" + bytes(100)),
        ("xray.tif", b"#!/bin/sh\ntouch marker\n"),
        ("xray.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side, -side, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("xray.webp", b"RIFF\xff\xff\xff\xffWEBPVP8X" + struct.pack("<IIHBHB", 10, 0, 65_535, 255, 65_535, 255)),
        ("xray.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'),
        ("empty.png", b""),
    )
    return random.choice(kinds)


def make_image_file(random: Random) -> tuple[str, bytes]:
    """Return the name and bytes of a bad image file."""
    if random.random() < 0.1:
        return bomb(random)
    name, content = random.choice(sorted(files().items()))
    if random.random() < 0.1:
        name = name.rpartition(".")[0] + random.choice((".png", ".jpg", ".tif", ".dcm", ".nii", ".nii.gz", ".gif"))
    if random.random() < 0.15 and name.endswith(".png") and content[:4] == b"\x89PNG":
        return name, _mutate_png(random, content)
    return name, mutate_bytes(random, content)


def _mutate_png(random: Random, content: bytes) -> bytes:
    """Return a PNG whose checksums are right again after a mutation of a chunk."""
    at, chunks = 8, []
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    number = random.randrange(len(chunks))
    kind, data = chunks[number]
    chunks[number] = (random.choice((kind, kind, b"tRNS", b"PLTE")), mutate_bytes(random, data))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return content[:8] + b"".join(packed)


# DICOM and NIfTI


@cache
def dicom_files() -> tuple[Path, ...]:
    """Return pydicom's test files of the wheel that are not large."""
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent / "test_files"
    return tuple(path for path in sorted(folder.rglob("*.dcm")) if path.stat().st_size < 300_000)


TAGS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "RescaleSlope", "RescaleIntercept"),
    *("WindowCenter", "WindowWidth", "PixelData", "PixelSpacing", "PixelAspectRatio", "VOILUTFunction", "Modality"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "SpecificCharacterSet"),
    *("PixelPaddingValue", "LossyImageCompression", "SOPClassUID", "ModalityLUTSequence", "VOILUTSequence"),
)
TAG_VALUES = (
    *(0, 1, 2, 3, 7, 8, 12, 16, 17, 24, 32, 64, 255, 65_535, -1, 10**9, "", "1\\2", "-5", "1e400", "NaN", "0.0"),
    *(
        "MONOCHROME1",
        "PALETTE COLOR",
        "YBR_FULL",
        "RGB",
        "XXX",
        "SIGMOID",
        "ISO_IR 192",
        b"",
        b"\0" * 8,
        [1, 2, 3],
        None,
    ),
)
SYNTAXES = (
    *(
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.5",
    ),
    *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"),
    *("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201", "1.2.3", ""),
)


def make_dicom(random: Random) -> tuple[str, bytes]:
    """Return the name and bytes of a bad DICOM or NIfTI file."""
    if importlib.util.find_spec("nibabel") and random.random() < 0.25:
        name, content = random.choice(sorted(nifti_files().items()))
        return name, _mutate_nifti(random, content)
    path = random.choice(dicom_files())
    if random.random() < 0.5:
        return path.name, mutate_bytes(random, path.read_bytes())
    return path.name, _mutate_tags(random, path)


def _mutate_tags(random: Random, path: Path) -> bytes:
    import warnings

    import pydicom

    content = path.read_bytes()
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = pydicom.dcmread(io.BytesIO(content), force=True)
            for _ in range(random.choice((1, 1, 2))):
                _mutate_tag(random, data)
            data.save_as(stream, enforce_file_format=False)
        except Exception:  # noqa: BLE001  # pydicom does not write every odd value
            return mutate_bytes(random, content)
    return stream.getvalue()


def _mutate_tag(random: Random, data: Any) -> None:
    kind = random.randrange(6)
    tag = random.choice(TAGS)
    if kind == 0 and tag in data:
        delattr(data, tag)
    elif kind == 1 and "PixelData" in data:
        pixels = bytes(data.PixelData)
        data.PixelData = random.choice(
            (pixels[: len(pixels) // 2 * 2 - 2], pixels + b"\0\0", pixels[:10], b"", pixels * 3)
        )
    elif kind == 2:
        data.file_meta.TransferSyntaxUID = random.choice(SYNTAXES)
    else:
        setattr(data, tag, random.choice(TAG_VALUES))


@cache
def nifti_files() -> Mapping[str, bytes]:
    """Return small volumes by name."""
    import gzip

    import nibabel

    found: dict[str, bytes] = {}
    for name, kind in (("short", np.int16), ("float", np.float32), ("byte", np.uint8)):
        values = np.arange(7 * 6 * 5, dtype=kind).reshape(7, 6, 5)
        content = nibabel.Nifti1Image(values, np.diag([0.7, 0.7, 3.0, 1.0])).to_bytes()
        found |= {f"{name}.nii": content, f"{name}.nii.gz": gzip.compress(content, mtime=0)}
    return found


def _mutate_nifti(random: Random, content: bytes) -> bytes:
    import gzip

    packed = content[:2] == b"\x1f\x8b"
    if packed and random.random() < 0.5:
        return mutate_bytes(random, content)
    raw = bytearray(gzip.decompress(content) if packed else content)
    if random.random() < 0.7:
        at, form = random.choice(
            (
                (40, "<h"),
                (42, "<h"),
                (44, "<h"),
                (46, "<h"),
                (70, "<h"),
                (72, "<h"),
                (76, "<f"),
                (80, "<f"),
                (108, "<f"),
                (112, "<f"),
                (116, "<f"),
                (252, "<h"),
                (254, "<h"),
                (280, "<f"),
                (344, "<i"),
            )
        )
        value = random.choice((0, -1, 1, 3, 7, 8, 255, 1792, 32_767))
        floats = (0.0, -1.0, 1e38, float("nan"), float("inf"), 4.0, 351.5)
        struct.pack_into(form, raw, at, random.choice(floats) if form == "<f" else value)
    else:
        raw = bytearray(mutate_bytes(random, bytes(raw)))
    return gzip.compress(bytes(raw), mtime=0) if packed else bytes(raw)


# Trials


def read_all(paths: Sequence[Path], report: Path) -> None:
    """Open each file as training does. Called in the child, which writes a line for each file."""
    import contextlib

    from toolkit.errors import ImageError, ToolkitError
    from toolkit.images import ImagePolicy, ImageStore, load, read_image_header, scan
    from toolkit.images.ref import ImageRef

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    policies = (ImagePolicy(max_side=64), ImagePolicy(max_side=64, window="range"))
    with report.open("w", encoding="utf-8") as lines:
        for number, path in enumerate(paths):
            lines.write(json.dumps([number, "started", ""]) + "\n")
            lines.flush()
            signal.setitimer(signal.ITIMER_PROF, SLOW_S)
            started = time.monotonic()
            result, detail = "accepted", ""
            try:
                volume = "axial" if path.name.endswith((".nii", ".nii.gz")) else ""
                ref = ImageRef(path, frame=2 if volume else 0, axis=volume)
                with contextlib.suppress(ImageError):
                    read_image_header(ref, policies[0])
                scan([ref], ImageStore(policies[1]), mode="header")
                load(ref, policies[number % 2])
            except ToolkitError as error:
                result, detail = "clear", _without(described(error), str(error))
            except BaseException:  # noqa: BLE001  # a bug of the toolkit is an outcome
                traceback.print_exc()
                result, detail = "traceback", _last(traceback.format_exc())
            signal.setitimer(signal.ITIMER_PROF, 0)
            lines.write(json.dumps([number, result, detail, time.monotonic() - started]) + "\n")
    os._exit(0)


def _last(text: str) -> str:
    """Return the error and the last place of a traceback."""
    lines = text.strip().splitlines()
    places = [line.strip() for line in lines if line.lstrip().startswith('File "')]
    return f"{lines[-1][:300]} ({places[-1]})"


def _without(problems: Sequence[Mapping[str, Any]], text: str) -> str:
    """Return what the error lacks, after "unclear: ". Otherwise its code and rule."""
    one = problems[-1]
    lacks = [name for name in ("place", "rule", "remedy", "code") if not one[name]]
    if lacks or len(text) > LONGEST_MESSAGE:
        return f"unclear: {one['code']} lacks {', '.join(lacks) or 'brevity'}: {text[:200]}"
    return f"{one['code']}: {one['rule']}"


def files_trial(name: str, make: Callable[[Random], tuple[str, bytes]]) -> Callable[[int, int, Path], Outcome]:
    """Return a trial that reads ``BATCH`` bad image files, and now and then inspects a dataset of them."""

    def trial(seed: int, number: int, folder: Path) -> Outcome:
        random = random_of(seed, name, number)
        (folder / "in").mkdir()
        paths = []
        for at in range(BATCH):
            label, content = make(random)
            paths.append(folder / "in" / f"{at:02}" / label)
            paths[-1].parent.mkdir()
            paths[-1].write_bytes(content)
        outcomes = _read(paths, folder)
        if number % 4 == 0:
            outcomes.append(_inspect(random, paths, folder))
        return first_wrong(outcomes)

    return trial


def _read(paths: Sequence[Path], folder: Path) -> list[Outcome]:
    rest, outcomes = list(paths), list[Outcome]()
    while rest:
        report = folder / "report.jsonl"
        report.unlink(missing_ok=True)
        ended = in_child(folder, partial(read_all, rest, report), limit_s=2 * SLOW_S * len(rest), memory=MEMORY)
        lines = (
            [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()] if report.exists() else []
        )
        done = {line[0]: line for line in lines if line[1] != "started"}
        outcomes += [_outcome(rest[at], line) for at, line in sorted(done.items())]
        rest = rest[len(done) :]
        if rest:  # the first of the rest ended the child
            outcomes.append(_crashed(rest[0], ended))
            rest = rest[1:]
    return outcomes


def _outcome(path: Path, line: Sequence[Any]) -> Outcome:
    _, result, detail, _ = line
    command = f"read {shlex.quote(str(path))}"
    return Outcome("unclear" if detail.startswith("unclear:") else result, detail, command)


def _crashed(path: Path, ended: Ended) -> Outcome:
    slow = ended.limit or ended.status == -signal.SIGPROF
    return Outcome(
        "hang" if slow else "traceback", f"{ended.limit} {last_error(ended)}", f"read {shlex.quote(str(path))}"
    )


def _inspect(random: Random, paths: Sequence[Path], folder: Path) -> Outcome:
    chosen = random.sample(list(paths), 6)
    rows = [
        {"image": str(path.relative_to(folder / "in")), "question": f"Is {n} normal?", "answer": "yes"}
        for n, path in enumerate(chosen)
    ]
    (folder / "in" / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    recipe = folder / "in" / "recipe.toml"
    images = {"max_side": 64, "unreadable": random.choice(("stop", "skip"))}
    recipe.write_text(
        recipe_text("vqa", {"train": "rows.json", "split": {"test": 0.0}, "max_dropped": 1.0}, images=images)
    )
    return judge(attempt(Case(("data", "inspect", str(recipe)), folder), limit_s=60))


def _dicom_trial(seed: int, number: int, folder: Path) -> Outcome:
    if importlib.util.find_spec("pydicom") is None:
        return Outcome("skipped", "pydicom is not installed")
    return files_trial("dicom", make_dicom)(seed, number, folder)


IMAGES = Part("images", "inputs", files_trial("images", make_image_file))
DICOM = Part("dicom", "inputs", _dicom_trial)
