"""Masks of volumes: which file is whose, and the classes of voxels, cut as the slices of their volume are."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vaejax.config import DataConfig
from vaejax.datasets import isolation
from vaejax.datasets.image import check_mask, decode_segmentation, to_classes
from vaejax.datasets.stacks import Stack, Volume, is_nifti, named_in, of_nifti
from vaejax.errors import DataError

_APART = 0.1
"""Voxels by which a corner of a mask may lie beside that of its volume."""


def masks_in(folder: Path, root: Path) -> dict[str, Path]:
    """Every file in a folder of masks by its relative path without suffix."""
    if not folder.is_dir():
        raise DataError(f"data.masks={str(folder)!r}: expected a folder, found none. Check it.")
    if folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"data.masks={str(folder)!r}: lies in data.path, so that its files count as images. Put it elsewhere.")
    masks: dict[str, Path] = {}
    for name, path in named_in(folder):
        other = masks.setdefault(stem(name), path)
        if other != path:
            raise DataError(f"data.masks: {other.name} and {path.name} are masks of one volume. Remove one of them.")
    return masks


def stem(name: str) -> str:
    """A relative path without its suffix, or both of `.nii.gz`."""
    return str(Path(name.removesuffix(".gz") if is_nifti(name) else name).with_suffix("").as_posix())


def mask_of(volume: Volume, stack: Stack, masks: dict[str, Path], config: DataConfig) -> UInt8[np.ndarray, "n h w"]:
    """The mask of a volume, cut as its slices are."""
    from vaejax.datasets import nifti

    path = masks.get(volume.paths[0])
    if path is None:
        raise DataError("no mask of this relative path in data.masks")
    try:
        if not isinstance(stack.source, nifti.Volume):
            return _mask_of_frame(path, stack, config)
        mask = of_nifti(path, config)
    except DataError as error:
        raise DataError(f"its mask: {error}") from None
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * stack.source.voxels.shape[:3]
    apart = (mask.source.affine - stack.source.affine) @ np.c_[corners, np.ones(8)].T
    if mask.source.voxels.shape[:3] != stack.source.voxels.shape[:3]:
        raise DataError(f"its mask has {mask.source.voxels.shape[:3]} voxels; expected {stack.source.voxels.shape[:3]}")
    if np.linalg.norm(apart, axis=0).max() > _APART * min(stack.source.spacing):
        raise DataError("its mask lies elsewhere (another affine). Resample it to the grid of the image.")
    if mask.voxels.shape[-1] != 1:
        raise DataError("its mask is in colour")
    return to_classes(mask.voxels[..., 0])


def _mask_of_frame(path: Path, stack: Stack, config: DataConfig) -> UInt8[np.ndarray, "1 h w"]:
    """The mask, an image file, of a DICOM file of one frame: pixel on pixel."""
    if len(stack.voxels) != 1 or is_nifti(path.name):
        raise DataError("of a DICOM series, or no image file; only a single frame has one. Convert both to NIfTI.")
    mask = isolation.reader(decode_segmentation, config)(path)
    check_mask(mask, stack.voxels.shape[1:3])
    return mask[None]
