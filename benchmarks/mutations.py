"""Files that are damaged at random: each must be read, or refused with vaejax's own error, within limits of time and memory.

    python -m benchmarks.mutations
    python -m benchmarks.mutations --n=200 --formats PNG NPZ --keep=/tmp/bad

Every mutation starts from a small valid file: made here, or below --data where that is given. A few of its bits are turned, it
is cut short, a part of it is lost, doubled, or taken from another file, or some bytes, where a length may be, become 0, or as
large as can be. What protects a format's content is applied after the change in some of the files, so that it reaches what lies
within: the checksums of a PNG's chunks, the compression of NIfTI and NPZ. The n-th mutation of a seed is always the same.

The readers run in a process with the limits of `data.untrusted`. The status is 1 where one of them broke the promise.
"""

import argparse
import gzip
import io
import json
import random
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import nibabel
import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from rich.console import Console
from rich.table import Table

from vaejax.datasets import arrays, dicom, image, isolation, nifti
from vaejax.errors import DataError

LIMITS = isolation.Limits(5.0, 2 * 2**30)
LARGEST = 60_000
"""Bytes of a file below --data that is used."""

Random = random.Random


class Origin(NamedTuple):
    """A valid file: what is mutated, and how a file is made of it."""

    content: bytes
    wrap: Callable[[bytes], bytes] = bytes


# --- valid files


def of_dicom(folder: Path | None) -> list[Origin]:
    """Native in three byte orders and deflated, each codec, a palette, several frames."""
    grey = (np.indices((16, 16)).sum(axis=0) * 100).astype("<u2")
    small = (grey // 16).astype("u1")
    encoded = {
        uid.JPEGBaseline8Bit: imagecodecs.jpeg8_encode(small),
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(small, lossless=True),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(small),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(small, codecformat="j2k", reversible=True),
        uid.RLELossless: struct.pack("<16I", 1, 64, *[0] * 14) + imagecodecs.packbits_encode(small.tobytes()),
    }
    native = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)
    files = [dicom_file(grey.tobytes(), syntax, 16) for syntax in native]
    files.append(dicom_file(grey.astype(">u2").tobytes(), uid.ExplicitVRBigEndian, 16))
    files += [dicom_file(encapsulate([stream + bytes(len(stream) % 2)]), syntax, 8) for syntax, stream in encoded.items()]
    files.append(dicom_file(small.tobytes() * 3, uid.ExplicitVRLittleEndian, 8, NumberOfFrames=3))
    tables = {
        f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
    }
    palette = {name: [256, 0, 16] if name.endswith("Descriptor") else bytes(512) for name in sorted(tables)}
    files.append(
        dicom_file(small.tobytes(), uid.ExplicitVRLittleEndian, 8, PhotometricInterpretation="PALETTE COLOR", **palette)
    )
    return [Origin(content) for content in files + found(folder, "*.dcm")]


def dicom_file(pixels: bytes, syntax: str, bits: int, **fields: object) -> bytes:
    """A file of 16 x 16 pixels."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    data.Modality, data.PatientID, data.SeriesInstanceUID = "CT", "1", "1.2"
    data.Rows = data.Columns = 16
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation = bits - 1, 0
    data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = "2", "-1024", "40", "400"
    data.PixelSpacing, data.ImagePositionPatient = ["1", "1"], ["0", "0", "0"]
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    for name, value in fields.items():
        setattr(data, name, value)
    data.PixelData = pixels
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    content = io.BytesIO()
    data.save_as(content, enforce_file_format=True)
    return content.getvalue()


def of_nifti(folder: Path | None) -> list[Origin]:
    """NIfTI-1 and -2, integers, floats, rescaled, of one to five axes; changed before and after compression."""
    voxels = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    scaled = nibabel.Nifti1Image(voxels, np.eye(4))
    scaled.header.set_slope_inter(2.0, -5.0)
    images = [
        nibabel.Nifti1Image(voxels.astype(kind), np.diag([2.0, 3.0, 4.0, 1.0])) for kind in ("i2", "u1", "f4", "f8", ">i4")
    ]
    images += [scaled, nibabel.Nifti2Image(voxels, np.eye(4)), nibabel.Nifti1Image(voxels.reshape(6, 5, 2, 2, 1), np.eye(4))]
    plain = [each.to_bytes() for each in images]
    plain += [gzip.decompress(content) for content in found(folder, "*.nii.gz")] + found(folder, "*.nii")
    plain = [content for content in plain if len(content) < 4 * LARGEST]
    return [
        *map(Origin, plain),
        *(Origin(content, packed) for content in plain),
        *(Origin(packed(content)) for content in plain),
    ]


def packed(content: bytes) -> bytes:
    """Compressed; the same for the same content."""
    return gzip.compress(content, mtime=0)


def of_png(folder: Path | None) -> list[Origin]:
    """Grey of 1, 8 and 16 bits, with alpha, colour, palette; with the checksums of the change, and without."""
    grey = (np.indices((24, 20)).sum(axis=0) * 5).astype(np.uint8)
    pictures = [
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(np.stack([grey] * 3, -1)),
        Image.fromarray(np.stack([grey] * 4, -1)),
        Image.fromarray(np.stack([grey] * 2, -1)),
        Image.fromarray(grey).convert("1"),
        Image.fromarray(np.stack([grey] * 3, -1)).quantize(8),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for picture in pictures:
        content = io.BytesIO()
        picture.save(content, "PNG", exif=exif)
        files.append(content.getvalue())
    files += found(folder, "*.png")
    return [Origin(content) for content in files] + [Origin(content, with_checksums) for content in files]


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold."""
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4])
        body = content[place + 4 : end]
        parts += [content[place : place + 4], body, struct.pack(">I", zlib.crc32(body))]
        place = end + 4
    return b"".join(parts) + content[place:]


def of_npz(folder: Path | None) -> list[Origin]:
    """Each type of image, compressed and not; changed as a file, and in one of the arrays within."""
    origins = []
    for kind in (np.uint8, np.uint16, np.float32, np.float64):
        images = np.linspace(0, 1 if kind in (np.float32, np.float64) else 200, 6 * 8 * 7).astype(kind).reshape(6, 8, 7)
        held = {f"{split}_images": images for split in ("train", "val", "test")}
        held |= {f"{split}_labels": np.arange(6)[:, None] % 2 for split in ("train", "val", "test")}
        for save in (np.savez, np.savez_compressed):
            content = io.BytesIO()
            save(content, **held)
            origins.append(Origin(content.getvalue()))
        origins += [Origin(as_npy(values), Within(as_npy(images), name)) for name, values in held.items()]
    return origins + [Origin(content) for content in found(folder, "*.npz")]


class Within(NamedTuple):
    """Makes an .npz of a changed member, and of others that are whole."""

    images: bytes
    name: str

    def __call__(self, member: bytes) -> bytes:
        """The file."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            members = {"train_images": self.images, self.name: member}
            for name, value in members.items():
                file.writestr(zipfile.ZipInfo(f"{name}.npy"), value)
        return content.getvalue()


def as_npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def found(folder: Path | None, pattern: str) -> list[bytes]:
    """The small files below a folder."""
    files = sorted(folder.rglob(pattern)) if folder else []
    return [path.read_bytes() for path in files if path.stat().st_size <= LARGEST][:40]


# --- mutations


def mutated(origins: list[Origin], number: int, seed: int) -> bytes:
    """The number-th mutation: one to three changes of one of the files."""
    rng = Random(f"{seed} {number}")
    origin = rng.choice(origins)
    content = origin.content
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(CHANGES)(content, rng, origins)
    return origin.wrap(content)


def flip(content: bytes, rng: Random, _: list[Origin]) -> bytes:
    """One to sixteen bits are turned, in the first bytes more often than elsewhere: there is the header."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 16) if changed else 0):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 600)
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: Random, _: list[Origin]) -> bytes:
    """Cut short."""
    return content[: rng.randrange(len(content) + 1)]


def splice(content: bytes, rng: Random, origins: list[Origin]) -> bytes:
    """A part is replaced by one of another file, or of this one; either may be empty."""
    other = rng.choice(origins).content if rng.random() < 0.5 else content
    start, source = rng.randrange(len(content) + 1), rng.randrange(len(other) + 1)
    lost, gained = (
        rng.choice((0, rng.randrange(64), rng.randrange(4096))),
        rng.choice((0, rng.randrange(64), rng.randrange(4096))),
    )
    return content[:start] + other[source : source + gained] + content[start + lost :]


def length(content: bytes, rng: Random, _: list[Origin]) -> bytes:
    """Two, four or eight bytes become a length that cannot be, or can hardly be."""
    size = rng.choice((2, 4, 8))
    most = 2 ** (8 * size) - 1
    value = rng.choice((0, 1, 2, most, most - 1, most // 2, most // 2 + 1, rng.randint(0, most), rng.randint(0, 2**16 - 1)))
    end = len(content) if rng.random() < 0.5 else min(len(content), 600)
    place = rng.randrange(end + 1)
    return content[:place] + value.to_bytes(size, rng.choice(("little", "big"))) + content[place + size :]


CHANGES = (flip, cut, splice, length)


# --- what becomes of them


def measured(read: Callable[[Path], object], path: Path) -> tuple[str, float, int]:
    """What a reader made of a file, in how many seconds, and the peak memory of its process, bytes."""
    start = time.perf_counter()
    try:
        read(path)
        result = "read"
    except DataError:
        result = "refused"
    seconds = time.perf_counter() - start
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return result, seconds, int(lines["VmHWM"].split()[0]) * 1024


FORMATS = {
    "DICOM": (of_dicom, dicom.decode),
    "NIfTI": (of_nifti, nifti.decode),
    "PNG": (of_png, image.decode),
    "NPZ": (of_npz, arrays.read),
}


def run(name: str, n: int, seed: int, data: Path | None = None, keep: Path | None = None) -> dict[str, float]:
    """Counts of what became of n mutations of a format, the slowest (seconds), and the peak memory (MiB)."""
    make, read = FORMATS[name]
    origins = make(data)
    counts, slowest, peak = Counter[str](), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for number in range(n):
            content = mutated(origins, number, seed)
            path.write_bytes(content)
            try:
                result, seconds, memory = isolation.isolated(LIMITS, measured, read, path)
                slowest, peak = max(slowest, seconds), max(peak, memory)
            except isolation.Exceeded as error:
                result = str(error)
            except Exception as error:
                result = f"another error: {type(error).__name__}"
            counts[result] += 1
            if keep and result not in ("read", "refused"):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{number}").write_bytes(content)
                print(f"{name} {number}: {result}", flush=True)
    broken = {key: count for key, count in counts.items() if key not in ("read", "refused")}
    kept = {"origins": len(origins), "read": counts["read"], "refused": counts["refused"], "broken": sum(broken.values())}
    return kept | {"slowest_s": round(slowest, 3), "peak_MiB": peak // 2**20} | broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="mutations of each format; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all")
    parser.add_argument("--data", type=Path, help="folder of valid files to use, too")
    parser.add_argument("--keep", type=Path, help="folder for the files that broke the promise")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    results = {name: run(name, given.n, given.seed, given.data, given.keep) for name in given.formats}
    table = Table("format", "valid files", "mutations", "read", "refused", "promise broken", "slowest, s", "peak, MiB")
    for name, result in results.items():
        row = (result[key] for key in ("origins", "read", "refused", "broken", "slowest_s", "peak_MiB"))
        origins, *others = map(str, row)
        table.add_row(name, origins, str(given.n), *others)
    Console(width=120).print(table)
    if given.json:
        given.json.write_text(json.dumps({"n": given.n, "seed": given.seed, "formats": results}, indent=2) + "\n")
    return int(any(result["broken"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
