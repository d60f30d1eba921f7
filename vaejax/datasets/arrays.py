"""Plain arrays: an .npy of images, or an .npz of images and what is known of them, such as MedMNIST's (https://medmnist.com)."""

import difflib
import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, Num, UInt8

from vaejax.config import DataConfig
from vaejax.datasets import isolation, npy
from vaejax.datasets.image import check_values, native, to_classes
from vaejax.datasets.source import Examples, Source, decoding, hash_files
from vaejax.datasets.splits import by_name
from vaejax.errors import DataError

MAX_BYTES = 8 * 2**30
"""Of an array in an .npz, which is read whole. One in an .npy is mapped, and may be of any size."""

_PREFIXES = ("", "train_", "val_", "test_")
_FIELDS = ("images", "labels", "patients", "segmentation")
_NAMES = ["split", *(prefix + field for prefix in _PREFIXES for field in (*_FIELDS, "masks"))]

_Fields = Mapping[str, np.ndarray]


def source(config: DataConfig) -> Source:
    """The file `config.path`: an array of images (.npy), or named arrays (.npz), each for all images or as train_, val_, test_.

    images: [n, H, W] or [n, H, W, 1 to 4], uint8, uint16 or float of 0 to 1; or volumes [n, D, H, W] or [n, D, H, W, 1 to 4],
    of which every slice along D is an image, and which stay in one split; a last axis of up to 4 is channels.
    labels: whole numbers [n] or [n, 1]; several columns (ChestMNIST) are no classes, and such images come without labels.
    patients: whole numbers or text [n], which only group. segmentation, or masks: classes, of the shape of the images.
    split: text [n], of arrays that are for all images. Arrays of other names are passed over.

    Raises:
        DataError: no such file, another format, or arrays other than these.
    """
    path = Path(config.path or "")
    if not path.is_file():
        found = "a folder" if path.is_dir() else "none"
        raise DataError(f"{path}: expected a file of arrays (.npz, as of MedMNIST, or .npy), found {found}. Check data.path.")
    return Source(hash_files([(path.name, path)]), None, lambda: isolation.data_set(read, config, path))


def read(path: Path) -> dict[str, Examples]:
    """The splits in a file. Raises DataError as `source` does."""
    found = _arrays(path)
    try:
        parts = _parts(found)
        examples = {prefix: _examples(prefix, fields) for prefix, fields in parts.items()}
        for prefix, patients in _patients(parts, examples).items():
            examples[prefix] = examples[prefix]._replace(patients=patients)
        if "" not in examples:
            return {prefix.removesuffix("_"): part for prefix, part in examples.items()}
        n = len(found["images"])
        names = found.get("split", np.full(n, ""))
        _check_column("split", names, n, "U", "text")
        return by_name(examples[""], names.repeat(examples[""].n // n).tolist())
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def of_npy(path: Path) -> Num[np.ndarray, "*n H W C"]:
    """The images of an .npy file as they are prepared: [n, H, W, C], or of volumes [n, D, H, W, C].

    Raises:
        DataError: the bare reason why it is unreadable, or holds no images.
    """
    with decoding("NPY"):
        images = npy.mapped(path)
        _check_images("", images)
        return native(_with_channels(images))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that have a meaning here, by name."""
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC)) == npy.MAGIC:
                return {"images": npy.mapped(path)}
        with zipfile.ZipFile(path) as archive:
            names = {name: name.replace("masks", "segmentation") for name in npy.members(archive) if _known(name)}
            if len(set(names.values())) < len(names):
                raise DataError("expected masks or segmentation, found both")
            return {meaning: npy.member(archive, name, MAX_BYTES) for name, meaning in names.items()}
    except DataError as error:
        raise DataError(f"{path}: {error}.") from None
    except Exception as error:  # damaged files make zipfile raise almost anything
        raise DataError(f"{path}: expected an .npz of plain arrays, found something else ({error}). Fetch it again.") from error


def _known(name: str) -> bool:
    """Whether an array has a meaning here. Raises DataError where its name is but nearly that of one."""
    near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.8)
    if near and near[0] != name:
        raise DataError(f"found the array {name}. Did you mean {near[0]}")
    return bool(near)


def _parts(found: _Fields) -> dict[str, _Fields]:
    """The arrays apart by their prefix: "" alone, or "train_" and others."""
    parts: dict[str, _Fields] = {
        prefix: {field: found[prefix + field] for field in _FIELDS if prefix + field in found}
        for prefix in _PREFIXES
        if prefix + "images" in found
    }
    if ("" in parts) == ("train_" in parts) or ("" in parts and len(parts) > 1):
        listed = ", ".join(sorted(found)) or "no array"
        raise DataError(f"expected either the array images, or train_images with those of other splits, found {listed}.")
    used = {prefix + field for prefix in parts for field in _FIELDS} | ({"split"} if "" in parts else set())
    unused = sorted(found.keys() - used)
    if unused:
        raise DataError(f"found the arrays {', '.join(unused)} without images of theirs. Rename or remove them.")
    for field in _FIELDS:
        having = [prefix + field for prefix in parts if field in parts[prefix]]
        if having and len(having) < len(parts):
            raise DataError(f"expected {field} of every split or of none, found {', '.join(having)} alone.")
    return parts


def _examples(prefix: str, fields: _Fields) -> Examples:
    """Checks one part; slices of volumes become images."""
    images = fields["images"]
    _check_images(prefix, images)
    n = len(images)
    labels = _labels(prefix, fields, n)
    images = _with_channels(images)
    masks = _masks(prefix, fields, images.shape[:-1])
    flat = images.reshape(-1, *images.shape[-3:])
    return Examples(
        len(flat),
        functools.partial(_image, flat),
        None if labels is None else labels.repeat(len(flat) // n),
        segmentation=None if masks is None else masks.reshape(flat.shape[:3]).__getitem__,
        volumes=np.arange(n).repeat(len(flat) // n) if images.ndim == 5 else None,
    )


def _with_channels(images: Num[np.ndarray, "..."]) -> Num[np.ndarray, "*n H W C"]:
    """Images [n, H, W, C], or those of volumes [n, D, H, W, C]; a last axis of up to 4 is channels."""
    return images if images.ndim == 5 or (images.ndim == 4 and images.shape[-1] <= 4) else images[..., None]


def _image(images: Num[np.ndarray, "n H W C"], i: int) -> Num[np.ndarray, "H W C"]:
    return native(images[i])


def _check_images(prefix: str, images: Num[np.ndarray, "..."]) -> None:
    if images.ndim not in (3, 4, 5) or 0 in images.shape or (images.ndim == 5 and images.shape[-1] > 4):
        raise DataError(
            f"{prefix}images: expected the shape [n, H, W] or [n, H, W, C], or of volumes [n, D, H, W] or [n, D, H, W, C], "
            f"found {images.shape}."
        )
    try:
        check_values(images)
    except DataError as error:
        raise DataError(f"{prefix}images: {error}.") from None


def _labels(prefix: str, fields: _Fields, n: int) -> Int[np.ndarray, " n"] | None:
    if "labels" not in fields:
        return None
    labels = fields["labels"]
    _check_column(f"{prefix}labels", labels[:, 0] if labels.ndim == 2 and labels.size else labels, n, "iu", "whole numbers")
    most = np.iinfo(np.int32).max
    if labels.size and not (-most <= labels.min() and labels.max() <= most):
        raise DataError(f"{prefix}labels: expected numbers from {-most} to {most}, found {labels.min()} to {labels.max()}.")
    return labels.reshape(-1).astype(np.int32) if labels.size == n else None


def _masks(prefix: str, fields: _Fields, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."] | None:
    if "segmentation" not in fields:
        return None
    masks = fields["segmentation"]
    if masks.shape != shape:
        raise DataError(f"{prefix}segmentation: expected the shape of the images, {shape}, found {masks.shape}.")
    try:
        return to_classes(masks)
    except DataError as error:
        raise DataError(f"{prefix}segmentation: {error}.") from None


def _patients(parts: Mapping[str, _Fields], examples: Mapping[str, Examples]) -> dict[str, Int[np.ndarray, " n"] | None]:
    """A number for the patient of every image, the same in all parts; a volume of nobody is a patient."""
    counts = {prefix: len(fields["images"]) for prefix, fields in parts.items()}
    if all("patients" in fields for fields in parts.values()):
        for prefix, fields in parts.items():
            _check_column(f"{prefix}patients", fields["patients"], counts[prefix], "iuU", "whole numbers or text")
        names = np.concatenate([fields["patients"].astype(str) for fields in parts.values()])
    elif any(examples[prefix].n > counts[prefix] for prefix in parts):
        names = np.arange(sum(counts.values()))
    else:
        return dict.fromkeys(parts)
    numbers = np.split(np.unique(names, return_inverse=True)[1], np.cumsum(list(counts.values()))[:-1])
    return {prefix: own.repeat(examples[prefix].n // len(own)) for prefix, own in zip(parts, numbers, strict=True)}


def _check_column(name: str, values: np.ndarray, n: int, kinds: str, what: str) -> None:
    if values.shape != (n,) or values.dtype.kind not in kinds:
        found = f"{values.dtype} of shape {values.shape}"
        raise DataError(f"{name}: expected {n}, {what}, one an image or volume, found {found}.")
