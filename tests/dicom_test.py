"""DICOM files give the pixels that the standard says; whatever is wrong with one is one DataError."""

import json
import logging
import math
import os
import random
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from vaejax.datasets.dicom import Header, decode, order, raw, read_header
from vaejax.datasets.windows import Lut, window
from vaejax.errors import DataError

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's, when such a file is written


def _dataset(pixels: np.ndarray, photometric: str = "MONOCHROME2", stored: int | None = None, **fields) -> Dataset:
    """A data set of `pixels` [h, w], [f, h, w] or [f, h, w, 3]."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.generate_uid()
    data.Modality, data.PatientID, data.PatientName = "OT", "patient 7", "Doe^Jane"
    data.SamplesPerPixel = 3 if pixels.shape[-1] == 3 and pixels.ndim == 4 else 1
    data.PhotometricInterpretation = photometric
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    size = pixels.shape[:-1] if data.SamplesPerPixel == 3 else pixels.shape
    data.Rows, data.Columns = size[-2:]
    if len(size) == 3:
        data.NumberOfFrames = size[0]
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    if pixels.dtype.kind == "f":
        data.FloatPixelData = pixels.tobytes()
    else:
        data.BitsStored = stored or data.BitsAllocated
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    return data


def _save(path: Path, data: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    if "PixelData" in data:
        data["PixelData"].VR = (
            "OB" if (uid.UID(syntax).is_compressed and syntax in ENCODINGS) or data.BitsAllocated <= 8 else "OW"
        )
    data.save_as(path, enforce_file_format=True)
    return path


def _noise(*shape: int, dtype: str = "u2", low: int = 0, high: int = 4096) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


def _smooth(*shape: int) -> np.ndarray:
    """uint8 with nothing that a good lossy codec would lose."""
    return (np.indices(shape).sum(axis=0) * 2 % 200 + 20).astype(np.uint8)


def _item(**fields) -> Dataset:
    data = Dataset()
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    return data


# --- values


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("u1", 0, 256), ("u2", 0, 4096), ("i2", -2048, 2048), ("i4", -(2**30), 2**30)]
)
def test_integers_stay_as_they_are_where_the_modality_changes_nothing(tmp_path, syntax, dtype, low, high):
    pixels = _noise(2, 5, 7, dtype=dtype, low=low, high=high)
    picture = decode(_save(tmp_path / "a.dcm", _dataset(pixels, RescaleSlope=1, RescaleIntercept=0), syntax))
    assert picture.pixels.dtype == pixels.dtype
    assert picture.header.shape == (2, 5, 7, 1)
    np.testing.assert_array_equal(picture.pixels[..., 0], pixels)


def test_big_endian_pixels_come_in_the_order_of_this_machine(tmp_path):
    pixels = _noise(5, 7)
    path = _save(tmp_path / "a.dcm", _dataset(pixels.astype(">u2")), uid.ExplicitVRBigEndian)
    assert decode(path).pixels.dtype.isnative
    np.testing.assert_array_equal(decode(path).pixels[0, ..., 0], pixels)


def test_rescale_gives_the_units_of_the_modality_and_raw_does_not(tmp_path):
    pixels = _noise(5, 7, dtype="i2", low=-2000, high=2000)
    path = _save(tmp_path / "a.dcm", _dataset(pixels, RescaleSlope="2.5", RescaleIntercept="-1024"))
    assert decode(path).pixels.dtype == np.float32
    np.testing.assert_array_equal(decode(path).pixels[0, ..., 0], pixels * 2.5 - 1024)
    np.testing.assert_array_equal(raw(path)[0, ..., 0], pixels)


def test_large_integers_are_rescaled_in_double_precision(tmp_path):
    pixels = np.array([[2**31 + 1, 2**31 + 3]], "u4")
    path = _save(tmp_path / "a.dcm", _dataset(pixels, RescaleIntercept=str(-(2**31)), RescaleSlope="1"))
    assert decode(path).pixels.ravel().tolist() == [1, 3]


def test_each_frame_of_an_enhanced_file_has_its_own_rescale_and_place(tmp_path):
    pixels = _noise(3, 4, 4)
    frames = [
        _item(
            PixelValueTransformationSequence=[_item(RescaleSlope=i + 1, RescaleIntercept=-i)],
            PlanePositionSequence=[_item(ImagePositionPatient=[0, 0, 3 * i])],
        )
        for i in range(3)
    ]
    shared = _item(
        PlaneOrientationSequence=[_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[_item(PixelSpacing=[0.5, 0.75], SliceThickness=3)],
    )
    data = _dataset(pixels, PerFrameFunctionalGroupsSequence=frames, SharedFunctionalGroupsSequence=[shared])
    picture = decode(_save(tmp_path / "a.dcm", data))
    for i in range(3):
        np.testing.assert_array_equal(picture.pixels[i, ..., 0], pixels[i] * (i + 1.0) - i)
    assert (picture.header.spacing, picture.header.thickness) == ((0.5, 0.75), 3)
    np.testing.assert_array_equal(picture.header.positions, [[0, 0, 0], [0, 0, 3], [0, 0, 6]])
    np.testing.assert_array_equal(picture.header.orientations, np.tile([[1, 0, 0], [0, 1, 0]], (3, 1, 1)))


def test_a_modality_table_replaces_slope_and_intercept(tmp_path):
    table = _item(LUTDescriptor=[4, 10, 16], LUTData=[100, 300, 500, 900])
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.array([[9, 10, 11, 12, 13, 14]], "u2")
    path = _save(tmp_path / "a.dcm", _dataset(pixels, ModalityLUTSequence=[table]))
    assert decode(path).pixels.dtype == np.float32
    assert decode(path).pixels.ravel().tolist() == [100, 100, 300, 500, 900, 900]  # outside: the nearest


def test_bits_that_are_not_stored_count_for_nothing(tmp_path):
    pixels = _noise(5, 7)
    path = _save(tmp_path / "a.dcm", _dataset(pixels | 0xF000, stored=12))
    np.testing.assert_array_equal(decode(path).pixels[0, ..., 0], pixels)
    signed = _noise(5, 7, dtype="i2", low=-2048, high=2048)
    path = _save(tmp_path / "b.dcm", _dataset((signed & 0x0FFF).astype("i2"), stored=12))
    np.testing.assert_array_equal(decode(path).pixels[0, ..., 0], signed)


def test_float_pixels_are_not_rescaled(tmp_path):
    pixels = np.array([[0.5, np.nan, -3e30]], "f4")
    path = _save(tmp_path / "a.dcm", _dataset(pixels, RescaleSlope=2, RescaleIntercept=1))
    np.testing.assert_array_equal(decode(path).pixels[0, ..., 0], pixels)


@pytest.mark.parametrize(
    ("dtype", "stored", "fields", "total"),
    [
        ("u2", 12, {}, 4095),
        ("u1", 8, {}, 255),
        ("i2", 16, {}, -1),
        ("u2", 10, {"RescaleSlope": 2, "RescaleIntercept": -5}, 2 * 1023 - 10),
    ],
)
def test_monochrome1_is_mirrored_with_its_windows_and_raw_is_not(tmp_path, dtype, stored, fields, total):
    pixels = _noise(6, 7, dtype=dtype, high=2 ** min(stored, 12) // 2)
    windows = {"WindowCenter": [100, 60.5], "WindowWidth": [80, 1]}
    dark = _save(tmp_path / "1.dcm", _dataset(pixels, "MONOCHROME1", stored, **windows, **fields))
    plain = _save(tmp_path / "2.dcm", _dataset(pixels, "MONOCHROME2", stored, **windows, **fields))
    mirrored, image = decode(dark), decode(plain)
    np.testing.assert_array_equal(raw(dark), raw(plain))
    assert mirrored.pixels.dtype == image.pixels.dtype
    np.testing.assert_array_equal(mirrored.pixels, total - image.pixels.astype(np.float64))
    mine, theirs = mirrored.header.windows[0], image.header.windows[0]
    np.testing.assert_allclose(window(*mine).grey(mirrored.pixels), 1 - window(*theirs).grey(image.pixels), atol=1e-6)


def test_a_table_of_monochrome1_is_mirrored_too(tmp_path):
    table = _item(LUTDescriptor=[3, 5, 8], LUTData=[0, 200, 255])
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.arange(12, dtype="u1").reshape(3, 4)
    dark, plain = (
        decode(_save(tmp_path / f"{name}.dcm", _dataset(pixels, name, VOILUTSequence=[table])))
        for name in ("MONOCHROME1", "MONOCHROME2")
    )
    expected = plain.header.luts[0].grey(plain.pixels)
    assert expected.max() == 1
    assert expected.ravel()[6] == np.float32(200 / 255)
    np.testing.assert_allclose(dark.header.luts[0].grey(dark.pixels), 1 - expected, atol=1e-6)


# --- windows


def _window(x: float, centre: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 as they are printed, for y from 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (x - centre) / width))
    if function == "LINEAR":
        if x <= centre - 0.5 - (width - 1) / 2:
            return 0
        return 1 if x > centre - 0.5 + (width - 1) / 2 else (x - (centre - 0.5)) / (width - 1) + 0.5
    if x <= centre - width / 2:
        return 0
    return 1 if x > centre + width / 2 else (x - centre) / width + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (2048, 4096), (-600.5, 1500), (0, 100), (7, 1), (7, 2)])
@pytest.mark.parametrize("dtype", ["i2", "f4", "i4"])
def test_windows_are_those_of_the_standard(function, centre, width, dtype):
    x = (np.arange(-100, 100) if width < 3 else np.arange(-3000, 3000, 7)).astype(dtype)
    expected = [_window(float(value), centre, width, function) for value in x]
    np.testing.assert_allclose(window(centre, width, function).grey(x), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("width", "function"), [(0.5, "LINEAR"), (0, "SIGMOID"), (-1, "LINEAR_EXACT"), (math.nan, "LINEAR"), (9, "CUBIC")]
)
def test_windows_that_the_standard_forbids_are_refused(width, function):
    with pytest.raises(DataError, match="a window"):
        window(0, width, function)


def test_a_file_s_windows_come_as_pairs_and_impossible_ones_not_at_all(tmp_path):
    fields = {"WindowCenter": [40, 300, 7], "WindowWidth": [400, 1500, 0], "VOILUTFunction": "SIGMOID"}
    header = read_header(_save(tmp_path / "a.dcm", _dataset(_noise(3, 3), **fields)))
    assert (header.windows, header.function) == (((40, 400), (300, 1500)), "SIGMOID")


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_undone_between_black_and_white(function):
    scale = window(40, 400, function)
    x = np.linspace(-155, 235, 200)
    np.testing.assert_allclose(scale.units(scale.grey(x)), x, atol=0.01)
    assert np.isnan(scale.units(np.full(2, np.nan, np.float32))).all()
    np.testing.assert_array_equal(scale.grey(np.array([np.nan, -np.inf, np.inf])), [0, 0, 1])


def test_a_table_that_rises_is_undone():
    table = Lut(-10, np.array([0, 100, 100, 255], "u1"), 255)
    assert table.rises
    np.testing.assert_allclose(table.grey(np.array([np.nan, -99, -9.4, -8, 99])), [0, 0, 100 / 255, 100 / 255, 1], rtol=1e-6)
    back = table.units(np.array([0, 50 / 255, 200 / 255, 1, np.nan], np.float32))
    np.testing.assert_allclose(back, [-10, -9.5, -8 + 100 / 155, -7, np.nan], rtol=1e-5)
    assert not Lut(0, np.array([0, 9, 3], "u1"), 255).rises
    assert not Lut(0, np.array([7, 7], "u1"), 255).rises


# --- colour


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_planes_of_colour_are_interleaved(tmp_path, dtype):
    pixels = _noise(2, 3, 4, 3, dtype=dtype, high=256)
    data = _dataset(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)).reshape(pixels.shape), "RGB", PlanarConfiguration=1)
    picture = decode(_save(tmp_path / "a.dcm", data))
    assert picture.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(picture.pixels, pixels)


def test_ybr_becomes_rgb(tmp_path):
    ybr = np.array([[[[76, 85, 255], [150, 44, 21], [29, 255, 107], [128, 128, 128]]]], "u1")  # red, green, blue, grey
    picture = decode(_save(tmp_path / "a.dcm", _dataset(ybr, "YBR_FULL")))
    expected = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]]
    np.testing.assert_allclose(picture.pixels.reshape(4, 3).astype(int), expected, atol=1)


def test_ybr_that_is_stored_at_half_the_width_becomes_rgb(tmp_path):
    data = _dataset(np.zeros((1, 1, 4, 3), "u1"), "YBR_FULL_422")
    data.PixelData = bytes((76, 76, 85, 255, 29, 128, 255, 107))  # Y, Y, Cb, Cr of two red, then of a blue and a lighter one
    found = decode(_save(tmp_path / "a.dcm", data)).pixels.reshape(4, 3).astype(int)
    np.testing.assert_allclose(found, [[255, 0, 0], [255, 0, 0], [0, 0, 255], [99, 99, 255]], atol=1)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("first", [0, 3])
def test_palettes_are_expanded(tmp_path, bits, first):
    tables = _noise(3, 5, dtype=f"u{bits // 8}", high=2**bits)
    fields = {}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [5, first, bits]
        fields[f"{colour}PaletteColorLookupTableData"] = table.tobytes() + bytes(table.nbytes % 2)
    pixels = _noise(4, 4, dtype="u1", high=10)
    data = _dataset(pixels, "PALETTE COLOR", **fields)
    for colour in ("Red", "Green", "Blue"):
        data[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
    path = _save(tmp_path / "a.dcm", data)
    expected = tables[:, np.clip(pixels.astype(int) - first, 0, 4)]
    assert decode(path).pixels.dtype == tables.dtype
    np.testing.assert_array_equal(decode(path).pixels[0], np.moveaxis(expected, 0, -1))
    np.testing.assert_array_equal(raw(path)[0, ..., 0], pixels)


def test_a_segmented_palette_is_a_chain_of_runs_and_lines(tmp_path):
    segments = np.array([0, 2, 10, 20, 1, 4, 100], "<u2").tobytes()  # 10, 20, then four steps to 100
    data = _dataset(np.arange(6, dtype="u1").reshape(2, 3), "PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [6, 0, 16])
        data[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(data, f"Segmented{colour}PaletteColorLookupTableData", segments)
    assert decode(_save(tmp_path / "a.dcm", data)).pixels[0, ..., 1].ravel().tolist() == [10, 20, 40, 60, 80, 100]


# --- compressed frames


def _rle(pixels: np.ndarray) -> bytes:
    """A frame [h, w, c] as PS3.5 annex G says."""
    planes = [
        np.ascontiguousarray(pixels[..., c])
        .astype(pixels.dtype.newbyteorder(">"))
        .view("u1")
        .reshape(-1, pixels.itemsize)[:, b]
        for c in range(pixels.shape[-1])
        for b in range(pixels.itemsize)
    ]
    segments = [imagecodecs.packbits_encode(plane.tobytes()) for plane in planes]
    segments = [segment + bytes(len(segment) % 2) for segment in segments]
    starts = 64 + np.cumsum([0, *map(len, segments)])[:-1]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def _jpeg(pixels: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(pixels.squeeze(), lossless=True, predictor=1, bitspersample=8 * pixels.itemsize)


def _jpeg_2000(pixels: np.ndarray) -> bytes:
    return imagecodecs.jpeg2k_encode(pixels.squeeze(), codecformat="J2K", reversible=True, mct=False)


ENCODINGS = {
    uid.RLELossless: _rle,
    uid.JPEGLosslessSV1: _jpeg,
    uid.JPEGLSLossless: lambda pixels: imagecodecs.jpegls_encode(pixels.squeeze()),
    uid.JPEG2000Lossless: _jpeg_2000,
}


@pytest.mark.parametrize("syntax", ENCODINGS, ids=lambda syntax: uid.UID(syntax).name[:12])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_lossless_encodings_give_every_bit(tmp_path, syntax, dtype):
    frames = _noise(3, 16, 24, 1, dtype=dtype, low=-2000 if dtype == "i2" else 0, high=256 if dtype == "u1" else 30000)
    data = _dataset(frames[..., 0])
    data.PixelData = encapsulate([ENCODINGS[syntax](frame.view(f"u{frame.itemsize}")) for frame in frames])
    picture = decode(_save(tmp_path / "a.dcm", data, syntax))
    assert picture.pixels.dtype == frames.dtype
    np.testing.assert_array_equal(picture.pixels, frames)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_lossless_colour_gives_every_bit(tmp_path, syntax):
    frames = _noise(2, 16, 24, 3, dtype="u1", high=256)
    data = _dataset(frames, "RGB", PixelData=encapsulate([ENCODINGS[syntax](frame) for frame in frames]))
    np.testing.assert_array_equal(decode(_save(tmp_path / "a.dcm", data, syntax)).pixels, frames)


def test_jpeg_2000_that_is_unsigned_against_its_header_gets_its_signs_back(tmp_path):
    pixels = _noise(16, 24, 1, dtype="i2", low=-4096, high=4096)
    data = _dataset(pixels[..., 0], stored=13)
    stream = imagecodecs.jpeg2k_encode(
        (pixels[..., 0] & 0x1FFF).astype("u2"), codecformat="J2K", bitspersample=13, reversible=True
    )
    data.PixelData = encapsulate([stream])
    np.testing.assert_array_equal(decode(_save(tmp_path / "a.dcm", data, uid.JPEG2000Lossless)).pixels[0], pixels)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_jpeg_colours_are_those_that_the_header_says_if_no_marker_does(tmp_path, photometric):
    pixels = np.stack([_smooth(16, 24), np.full((16, 24), 60, np.uint8), np.full((16, 24), 180, np.uint8)], axis=-1)
    inside = "RGB" if photometric == "RGB" else "YCBCR"
    stream = imagecodecs.jpeg8_encode(pixels, level=98, colorspace="RGB", outcolorspace=inside, subsampling="444")
    bare, i = stream[:2], 2
    while stream[i + 1] != 0xDA:  # without the markers of JFIF and Adobe, and with components 1, 2, 3
        length = 2 + int.from_bytes(stream[i + 2 : i + 4])
        if stream[i + 1] not in (0xE0, 0xEE):
            bare += stream[i : i + length]
        i += length
    bare = (
        (bare + stream[i:]).replace(b"R\x11\x00G\x11", b"\x01\x11\x00\x02\x11").replace(b"\x00B\x11\x00", b"\x00\x03\x11\x00")
    )
    bare = bare.replace(b"\xff\xda\x00\x0c\x03R\x00G\x00B\x00", b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00")
    data = _dataset(pixels[None], photometric, PixelData=encapsulate([bare]))
    found = decode(_save(tmp_path / "a.dcm", data, uid.JPEGBaseline8Bit)).pixels[0]
    assert np.abs(found.astype(int) - pixels).mean() < 3


def test_a_frame_that_is_larger_than_its_header_says_is_never_decoded(tmp_path, monkeypatch):
    data = _dataset(_noise(8, 8, dtype="u1", high=256))
    data.PixelData = encapsulate([imagecodecs.jpeg2k_encode(np.zeros((300, 300), np.uint8), codecformat="J2K")])
    monkeypatch.setattr("imagecodecs.jpeg2k_decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="300 x 300 pixels of 1 samples; expected 8 x 8 of 1"):
        decode(_save(tmp_path / "a.dcm", data, uid.JPEG2000Lossless))


def test_too_few_frames_and_foreign_syntaxes_are_said(tmp_path):
    frames = _noise(3, 8, 8, 1, dtype="u1", high=256)
    data = _dataset(frames[..., 0], PixelData=encapsulate([_rle(frame) for frame in frames[:2]]))
    with pytest.raises(DataError):
        decode(_save(tmp_path / "a.dcm", data, uid.RLELossless))
    with pytest.raises(DataError, match=r"no decoder for its transfer syntax \(High-Throughput JPEG 2000"):
        decode(_save(tmp_path / "b.dcm", data, uid.HTJ2KLossless))


# --- geometry and identity


def test_slices_are_sorted_by_where_they_lie_and_not_by_number():
    rng = np.random.default_rng(3)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    normal, along = np.cross(axes[0], axes[1]), rng.permutation(40) * 1.25
    positions = along[:, None] * normal + rng.normal(size=3) + rng.normal(size=(40, 1)) * axes[0]  # shifted in the plane, too
    rows = order(positions, np.tile(axes[:2], (40, 1, 1)))
    np.testing.assert_array_equal(rows, np.argsort(along))


def test_slices_at_one_place_or_askew_have_no_order():
    positions, orientations = np.zeros((3, 3)), np.tile(np.eye(3)[:2], (3, 1, 1))
    positions[:, 2] = 0, 5, 5 + 1e-5
    with pytest.raises(DataError, match="1 of 3 slices lie where another one does"):
        order(positions, orientations)
    orientations[1] = np.eye(3)[1:]
    with pytest.raises(DataError, match="not parallel"):
        order(positions, orientations)


def test_a_dose_grid_has_gray_and_the_places_of_its_planes(tmp_path):
    pixels = _noise(3, 4, 5, dtype="u4")
    fields = {"DoseGridScaling": "0.001", "GridFrameOffsetVector": [0, 2, 5]}
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    picture = decode(_save(tmp_path / "a.dcm", _dataset(pixels, **fields, **place)))
    np.testing.assert_array_equal(picture.header.positions, [[1, 2, 3], [1, 2, 5], [1, 2, 8]])
    np.testing.assert_allclose(picture.pixels[..., 0], pixels * 0.001, rtol=1e-6)


def test_nothing_of_the_header_but_what_is_listed_comes_out(tmp_path):
    fields = {"SeriesInstanceUID": "1.2.3", "InstitutionName": "Doe Hospital", "ImageComments": "Jane Doe", "SliceThickness": 2}
    picture = decode(_save(tmp_path / "a.dcm", _dataset(_noise(3, 3), **fields, SpacingBetweenSlices=2.5)))
    assert (picture.header.patient, picture.header.series, picture.header.modality) == ("patient 7", "1.2.3", "OT")
    assert (picture.header.thickness, picture.header.gap) == (2, 2.5)
    assert "Doe" not in repr(picture)
    path = _save(tmp_path / "b.dcm", _dataset(_noise(3, 3), Modality="Jane"))
    assert read_header(path).modality is None


# --- broken and hostile files


def test_a_deflate_bomb_is_stopped_before_it_grows(tmp_path):
    path = _save(tmp_path / "a.dcm", _dataset(np.zeros((64, 64), "u1")), uid.DeflatedExplicitVRLittleEndian)
    head = path.read_bytes()[: 132 + 12 + int.from_bytes(path.read_bytes()[140:144], "little")]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(head + b"".join(deflater.compress(bytes(2**20)) for _ in range(200)) + deflater.flush())
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    with pytest.raises(DataError, match="a deflated stream of more than 1048576 bytes"):
        decode(path, max_bytes=2**20)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_a_deflated_file_without_its_end_is_said(tmp_path):
    path = _save(tmp_path / "a.dcm", _dataset(_noise(64, 64)), uid.DeflatedExplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="a deflated stream that is cut short"):
        decode(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize(
    "fields",
    [
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 10**9},
        {"NumberOfFrames": 10**6, "Rows": 1, "Columns": 1},
        {"BitsAllocated": 32, "Rows": 60000, "Columns": 60000},
    ],
)
def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path, syntax, fields):
    data = _dataset(_noise(8, 8))
    if syntax == uid.RLELossless:
        data.PixelData = encapsulate([_rle(_noise(8, 8, 1))])
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    path = _save(tmp_path / "a.dcm", data, syntax)
    tracemalloc.start()
    for read in (decode, raw, read_header):
        with pytest.raises(DataError, match="at most"):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_large_files_and_things_that_are_no_files_are_refused_unread(tmp_path):
    path = _save(tmp_path / "a.dcm", _dataset(_noise(8, 8)))
    with pytest.raises(DataError, match=r"a file of \d+ bytes; at most 100"):
        decode(path, max_bytes=100)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(DataError, match="not a regular file"):
            decode(tmp_path / name)
    with pytest.raises(DataError, match=r"^No such file or directory$"):
        decode(tmp_path / "absent.dcm")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "an empty file"), (b"\x89PNG" + bytes(200), "not a DICOM file"), (bytes(128) + b"DICM", "no pixel data")],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, reason):
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        decode(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"SamplesPerPixel": 2}, "colour model"),
        ({"PhotometricInterpretation": "Doe^Jane"}, "^a colour model that is not supported, with 1 samples a pixel$"),
        ({"BitsStored": 17}, "17 bits stored in 16"),
        ({"HighBit": 15, "BitsStored": 12}, "upper bits"),
        ({"Rows": 0}, "1 frames of 0 x 6 pixels"),
        ({"Rows": 7}, "72 bytes of pixels; expected 84"),
        ({"FloatPixelData": bytes(4)}, "more than one kind"),
    ],
)
def test_contradictions_are_said(tmp_path, fields, reason):
    with pytest.raises(DataError, match=reason):
        decode(_save(tmp_path / "a.dcm", _dataset(_noise(6, 6), **fields)))


def test_no_reason_and_no_log_quotes_the_header(tmp_path, caplog, recwarn):
    path = _save(
        tmp_path / "a.dcm",
        _dataset(_noise(6, 6), NumberOfFrames=2, ImagePositionPatient=[1, 2, 3], PatientBirthDate="19500101"),
    )
    content = path.read_bytes().replace(b"IS\x02\x002 ", b"IS\x02\x00JD").replace(b"19500101", b"Jane Doe")
    assert b"IS\x02\x00JD" in content
    path.write_bytes(content)
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=r"^NumberOfFrames is no number$"):
        decode(path)
    assert not caplog.records
    assert not recwarn.list


def _damaged(content: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 3, 10, 50))):
        damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(damaged)


def _small(path: Path, syntax: str) -> tuple[Path, np.ndarray]:
    pixels = _noise(2, 12, 12, 1, high=4096)
    fields = {
        "ImagePositionPatient": [1, 2, 3],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "WindowCenter": 40,
        "WindowWidth": 400,
    }
    data = _dataset(pixels[..., 0], "MONOCHROME1", stored=12, RescaleSlope=2, RescaleIntercept=-1024, **fields)
    if syntax in ENCODINGS:
        data.PixelData = encapsulate([ENCODINGS[syntax](frame) for frame in pixels])
    return _save(path, data, syntax), pixels


SYNTAXES = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, *ENCODINGS]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: uid.UID(syntax).name[:12])
def test_a_truncated_file_gives_an_error_or_all_its_pixels(tmp_path, syntax):
    path, pixels = _small(tmp_path / "a.dcm", syntax)
    content, reasons = path.read_bytes(), []
    for seed in range(50):
        path.write_bytes(content[: random.Random(seed).randrange(len(content))])
        try:
            np.testing.assert_array_equal(raw(path), pixels)
        except DataError as error:
            reasons.append(str(error))
    assert len(reasons) >= 45
    assert all(re.fullmatch(r"[^\n]{5,200}", reason) for reason in reasons)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: uid.UID(syntax).name[:12])
def test_damaged_bytes_give_pixels_or_a_data_error_and_nothing_else(tmp_path, syntax):
    path, _ = _small(tmp_path / "a.dcm", syntax)
    content, reasons = path.read_bytes(), []
    for seed in range(100):
        path.write_bytes(_damaged(content, seed))
        try:
            decode(path)
        except DataError as error:
            reasons.append(str(error))
    assert 0 < len(reasons) < 100
    assert all(re.fullmatch(r"[^\n]{5,200}", reason) for reason in reasons)


# --- real files


@pytest.fixture
def formats(real_data: Path) -> Path:
    folder = real_data / "formats" / "dicom"
    if not folder.is_dir():
        pytest.skip("real images: no folder 'formats/dicom'")
    return folder


UNREADABLE = {
    "emri_small_jpeg_2k_lossless_too_short.dcm": "no pixel data, or cut short",
    "rtplan_truncated.dcm": "no pixel data",
    "liver_rle.dcm": "RLE of single bits",
    "badVR.dcm": "NumberOfFrames is no number",
    "MR_truncated.dcm": "8130 bytes of pixels; expected 8192",
    "JPEG2000-embedded-sequence-delimiter.dcm": "expected 1024 x 256 of 1",
}
"""Each stands in docs/formats.md."""


def test_every_file_of_the_manifest_is_decoded_or_named(formats):
    agreed, refused = 0, {}
    for entry in json.loads((formats / "manifest.json").read_text()):
        path = formats / entry["path"]
        try:
            stored = raw(path)
        except DataError as error:
            refused[path.name] = str(error)
            continue
        shape, dtype, low, high = re.fullmatch(r"\((.*)\) (\S+) \[(.*),(.*)\]", entry["arr"]).groups()
        shape = tuple(int(size) for size in shape.split(","))
        channels = stored.shape[-1]
        assert stored.shape == (
            *(() if "frames" in entry and len(shape) > 2 + (channels > 1) else (1,)),
            *shape,
            *(() if channels > 1 else (1,)),
        )
        assert stored.dtype == np.dtype(dtype).newbyteorder("=")
        # a cosine transform of 12 bits may be rounded the other way by another library; six digits are printed
        within = {"abs": 1 if entry["ts"].startswith("JPEG Extended") else 0, "rel": 1e-5}
        assert (stored.min(), stored.max()) == (pytest.approx(float(low), **within), pytest.approx(float(high), **within)), (
            path.name
        )
        _check_units(path, entry, stored)
        agreed += 1
    assert (agreed, set(refused)) == (42, set(UNREADABLE))
    for name, reason in UNREADABLE.items():
        assert reason in refused[name]


def _check_units(path: Path, entry: dict, stored: np.ndarray) -> None:
    """What the manifest says of the rescale holds for the decoded pixels."""
    picture = decode(path)
    slope, intercept = float(entry.get("slope", 1)), float(entry.get("icpt", 0))
    assert isinstance(picture.header, Header)
    if picture.header.modality != "RTDOSE" and entry["pi"] == "MONOCHROME2" and "frames" not in entry:
        np.testing.assert_allclose(picture.pixels, stored * slope + intercept, rtol=1e-6, atol=1e-3)
    if entry["pi"] == "MONOCHROME1":
        np.testing.assert_array_equal(picture.pixels, 2 ** int(entry["bs"]) - 1 - stored)


def test_one_ct_has_the_same_pixels_in_all_lossless_encodings(formats):
    lossless = [
        path
        for path in sorted((formats / "cornerstone").glob("CTImage.dcm_*"))
        if re.search("RLE|Deflated|Lossless|Process14", path.name)
    ]
    assert len(lossless) == 5
    reference = decode(lossless[0])
    for path in lossless[1:]:
        np.testing.assert_array_equal(decode(path).pixels, reference.pixels, err_msg=path.name)
    for path in set((formats / "cornerstone").glob("CTImage.dcm_*")) - set(lossless):
        difference = np.abs(decode(path).pixels - reference.pixels)
        assert 0 < difference.mean() < 5, path.name  # HU


@pytest.mark.parametrize("encoding", ["RLE", "big_endian", "jpeg_2k_lossless"])
def test_one_mr_has_the_same_pixels_in_all_lossless_encodings(formats, encoding):
    plain, other = (decode(formats / "pydicom_data" / f"emri_small{name}.dcm").pixels for name in ("", f"_{encoding}"))
    np.testing.assert_array_equal(plain, other)


def test_a_series_is_sorted_by_position(real_data):
    folder = real_data / "hippocampus_msd" / "dicom"
    if not folder.is_dir():
        pytest.skip("real images: no folder 'hippocampus_msd/dicom'")
    sizes = []
    for study in sorted(folder.iterdir()):
        headers = [read_header(path) for path in sorted(study.rglob("*.dcm"))]
        assert len({header.series for header in headers}) == 1
        positions = np.concatenate([header.positions for header in headers])
        rows = order(positions, np.concatenate([header.orientations for header in headers]))
        gaps = np.linalg.norm(np.diff(positions[rows], axis=0), axis=1)
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-3)
        sizes.append(len(rows))
    assert sorted(sizes) == [32, 35, 40]
