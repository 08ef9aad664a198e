"""Layer file: a layered edit (source, layers, transforms) as one zip that reopens exactly as it was.

Inside are `manifest.json`, `source.png` and `layers/01.png`, `02.png`, ...: RGBA, with the layer's mask as alpha.
The pictures open in any program. What 8 bits cannot hold exactly (a soft mask, a picture of 16 bits) is in a float32
`.npy` beside the PNG, which is then only a preview. Nothing is ever unpacked to disk.
"""

import io
import json
import math
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .layers import LARGEST_SCALE, SMALLEST_SCALE, Layer

SUFFIX = ".layers.zip"
FORMAT, VERSION = "latent-layers", 1
SAVE, LOAD = "Save Layers", "Load Layers"

# What a file may ask for, so that a small harmful one cannot fill the memory; save keeps to it as well.
MAX_PIXELS = 2**26  # of one picture: 8192 x 8192
MAX_VALUES = 2**30  # of all pictures and masks together: 4 GiB of float32
MAX_MANIFEST = 2**24  # bytes

MANIFEST = "manifest.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content makes the same bytes, whenever it is saved
_AGAIN = "copy it again, or save the edit again"
_FOREIGN = f"not a layer file; choose one that {SAVE} has written"

# What zipfile, zlib, numpy, Pillow and unexpected contents of the manifest raise.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    Image.DecompressionBombError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

Planes = NDArray[np.float32]  # (H, W, C)
Entries = dict[str, NDArray[Any]]  # of the zip: uint8 becomes a PNG, float32 an .npy


class _Unusable(Exception):
    """What is wrong with an edit or with a file; save and load add which one."""


def save(path: str | os.PathLike[str], source: Tensor, layers: Sequence[Layer]) -> None:
    """Write a layered edit to `path`, all or nothing: after any failure what was there before is unchanged.

    `source` is an IMAGE (1, H, W, 3); a layer's masks need not have the size of its picture. Values are kept exactly,
    as float32; an alpha channel of source or image, which no edit reads, is left out. The same edit makes the same
    bytes. Raises ValueError for batches, other shapes, numbers that are not finite and edits beyond the limits above,
    OSError where the file cannot be written.
    """
    path = Path(path)
    try:
        manifest, entries = _described(source, layers)
    except _Unusable as error:
        raise ValueError(f"{SAVE}: {path.name}: {error}") from None

    unfinished = path.with_name(f".{secrets.token_hex(8)}.tmp")  # the same folder: replacing works within one disk
    try:
        with open(unfinished, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                _write(archive, MANIFEST, manifest)
                for name, planes in entries.items():
                    _write(archive, name, _png(planes) if planes.dtype == np.uint8 else _npy(planes))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> tuple[Tensor, list[Layer]]:
    """Source IMAGE (1, H, W, 3) and layers of a layer file, float32 on the CPU, equal to what was saved.

    Raises FileNotFoundError where there is no file, ValueError for what is no layer file, or one that is damaged,
    incomplete, of a newer version or beyond the limits above.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{LOAD}: {path.name}: there is no such file; choose a file that {SAVE} has written")
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            if start and start != b"PK":
                raise _Unusable(_FOREIGN)
            with zipfile.ZipFile(file) as archive:
                manifest = _checked(_manifest(archive))
                source = _picture(archive, manifest["source"])
                return source, [_layer(archive, entry) for entry in manifest["layers"]]
    except _Unusable as error:
        raise ValueError(f"{LOAD}: {path.name}: {error}") from None
    except _DAMAGE as error:
        raise ValueError(f"{LOAD}: {path.name}: damaged or incomplete ({error}); {_AGAIN}") from error


# --- what is saved ----------------------------------------------------------------------------------------------------


def _described(source: Tensor, layers: Sequence[Layer]) -> tuple[bytes, Entries]:
    """The manifest, as text, and the entries that it names."""
    canvas = _planes(source, "the source", 3)
    entries: Entries = {}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "source": _kept(canvas, "source", entries),
        "layers": [_described_layer(layer, number, canvas, entries) for number, layer in enumerate(layers, start=1)],
    }
    text = json.dumps(_checked(manifest), indent=2).encode("ascii")
    if len(text) > MAX_MANIFEST:
        raise _Unusable(f"{MANIFEST} would have {len(text)} bytes, the limit is {MAX_MANIFEST}; use fewer moves")
    return text, entries


def _described_layer(layer: Layer, number: int, canvas: Planes, entries: Entries) -> dict[str, Any]:
    """A layer's part of the manifest; adds its pictures to the entries."""
    who, stem = f"layer {number} ({layer.name})", f"layers/{number:02}"
    mask = _planes(layer.mask, f"mask of {who}", 1)
    own = None if layer.image is None else _planes(layer.image, f"image of {who}", 3)
    hiding = None if layer.occluder is None else _planes(layer.occluder, f"occluder of {who}", 1)
    cutout, picture = None, canvas if own is None else own
    if mask.shape[:2] == picture.shape[:2]:
        cutout = f"{stem}.png"
        # Of the source only what the mask lets through: the source itself is saved once.
        colours = _in_8_bits(picture) * (mask > 0) if own is None else _in_8_bits(own)
        entries[cutout] = np.concatenate([colours, _in_8_bits(mask)], axis=2)
    return {
        "name": layer.name,
        "mask": _kept(mask, f"{stem}.mask", entries, cutout),
        "image": None if own is None else _kept(own, f"{stem}.image", entries, cutout),
        "occluder": None if hiding is None else _kept(hiding, f"{stem}.occluder", entries),
        "scale_x": float(layer.scale_x),
        "scale_y": float(layer.scale_y),
        "rotation": float(layer.rotation),
        "flip_x": bool(layer.flip_x),
        "flip_y": bool(layer.flip_y),
        "moves": [[float(right), float(down)] for right, down in layer.moves],
        "order": int(layer.order),
    }


def _kept(planes: Planes, stem: str, entries: Entries, shown: str | None = None) -> dict[str, Any]:
    """Which entry holds the planes exactly: a PNG (`shown`, if there is one already), else an .npy beside it."""
    levels = _in_8_bits(planes)
    if shown is None:
        shown = f"{stem}.png"
        entries[shown] = levels
    if not np.array_equal(_from_8_bits(levels), planes):
        shown = f"{stem}.npy"
        entries[shown] = planes
    return {"file": shown, "width": planes.shape[1], "height": planes.shape[0]}


def _planes(tensor: Tensor, who: str, channels: int) -> Planes:
    """IMAGE (1, H, W, 3 or more) or MASK (1, H, W), also (H, W) or (1, 1, H, W), as (H, W, channels)."""
    pixels = tensor.detach().to(device="cpu", dtype=torch.float32)
    if channels == 3:
        right = pixels.ndim == 4 and len(pixels) == 1 and pixels.shape[3] >= 3
        form, remedy = "one IMAGE is (1, height, width, 3)", "choose one with Get Image from Batch"
        pixels = pixels[..., :3]
    else:
        right = pixels.ndim >= 2 and math.prod(pixels.shape[:-2]) == 1
        form, remedy = "one MASK is (1, height, width)", "choose one of the batch"
    if not right:
        raise _Unusable(f"{who} has shape {tuple(tensor.shape)}, but {form}; {remedy}")
    height, width = pixels.shape[1:3] if channels == 3 else pixels.shape[-2:]
    planes = pixels.numpy().reshape(height, width, channels)
    if not np.isfinite(planes).all():
        raise _Unusable(f"{who} has values that are not finite numbers; repair the node that makes it")
    return planes


def _in_8_bits(planes: Planes) -> NDArray[np.uint8]:
    return np.rint(planes.clip(0, 1) * 255).astype(np.uint8)


def _from_8_bits(levels: NDArray[np.uint8]) -> Planes:
    return np.divide(levels, 255, dtype=np.float32)  # as Load Image does


def _png(levels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(file, "PNG")
    return file.getvalue()


def _npy(planes: Planes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(planes, dtype="<f4"), allow_pickle=False)
    return file.getvalue()


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # on every system
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)


# --- what both keep to ------------------------------------------------------------------------------------------------


def _checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, if it describes an edit within the limits, told from its text alone."""
    values = 3 * _area(manifest["source"], "the source")
    for number, layer in enumerate(manifest["layers"], start=1):
        who = f"layer {number} ({layer['name']})"
        values += _area(layer["mask"], f"mask of {who}")
        if layer["image"] is not None:
            values += 3 * _area(layer["image"], f"image of {who}")
        if layer["occluder"] is not None:
            values += _area(layer["occluder"], f"occluder of {who}")
        for name in ("scale_x", "scale_y"):
            if not SMALLEST_SCALE <= _number(layer[name], f"{name} of {who}") <= LARGEST_SCALE:
                raise _Unusable(f"{name} of {who} is {layer[name]}; choose {SMALLEST_SCALE:g} to {LARGEST_SCALE:g}")
        _number(layer["rotation"], f"rotation of {who}")
        for right, down in layer["moves"]:
            _number(right, f"a move of {who}")
            _number(down, f"a move of {who}")
        kinds = {"name": str, "flip_x": bool, "flip_y": bool, "order": int}
        for name, kind in kinds.items():
            if type(layer[name]) is not kind:
                raise _Unusable(f"{name} of {who} is {layer[name]!r}, not {kind.__name__}; {_AGAIN}")
    if values > MAX_VALUES:
        raise _Unusable(
            f"the pictures and masks have {values} values, the limit is {MAX_VALUES}; use fewer layers or smaller "
            "pictures"
        )
    return manifest


def _area(kept: dict[str, Any], who: str) -> int:
    width, height = kept["width"], kept["height"]
    if type(height) is not int or type(width) is not int or height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise _Unusable(f"{who} is {width}x{height}; use a picture of 1 to {MAX_PIXELS} pixels")
    return height * width


def _number(value: Any, who: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _Unusable(f"{who} is {value!r}; give a finite number")
    return float(value)


# --- what is loaded ---------------------------------------------------------------------------------------------------


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise _Unusable(_FOREIGN)
    manifest = json.loads(_entry(archive, MANIFEST, MAX_MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _Unusable(_FOREIGN)
    version = manifest["version"]
    if type(version) is not int or version < 1:
        raise _Unusable(f"its version is {version!r}, not a number from 1; {_AGAIN}")
    if version > VERSION:
        raise _Unusable(f"made by a newer version ({version}, this is {VERSION}) of Latent Layers; update the pack")
    return manifest


def _layer(archive: zipfile.ZipFile, entry: dict[str, Any]) -> Layer:
    return Layer(
        name=entry["name"],
        mask=_mask(archive, entry["mask"]),
        image=None if entry["image"] is None else _picture(archive, entry["image"]),
        scale_x=float(entry["scale_x"]),
        scale_y=float(entry["scale_y"]),
        rotation=float(entry["rotation"]),
        flip_x=entry["flip_x"],
        flip_y=entry["flip_y"],
        moves=tuple((float(right), float(down)) for right, down in entry["moves"]),
        order=entry["order"],
        occluder=None if entry["occluder"] is None else _mask(archive, entry["occluder"]),
    )


def _picture(archive: zipfile.ZipFile, kept: dict[str, Any]) -> Tensor:
    """IMAGE (1, H, W, 3): colours of an RGB or RGBA PNG, or an .npy (H, W, 3)."""
    return torch.from_numpy(_read(archive, kept, ("RGB", "RGBA"), slice(0, 3)))[None]


def _mask(archive: zipfile.ZipFile, kept: dict[str, Any]) -> Tensor:
    """MASK (1, H, W): a grey PNG or the alpha of an RGBA one, or an .npy (H, W, 1)."""
    return torch.from_numpy(_read(archive, kept, ("L", "RGBA"), slice(-1, None)))[None, ..., 0]


def _read(archive: zipfile.ZipFile, kept: dict[str, Any], modes: tuple[str, ...], channels: slice) -> Planes:
    """Planes (H, W, C) of an entry. Its size is compared with the manifest's before a pixel is decoded."""
    name, size = kept["file"], (kept["height"], kept["width"])
    # The largest .npy has 12 bytes per pixel and a header; a PNG takes less.
    data = _entry(archive, name, 2**16 + 16 * size[0] * size[1])
    if not name.endswith(".npy"):
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            _check_entry(name, (image.height, image.width), size)
            if image.mode not in modes:
                raise _Unusable(f"{name} is {image.mode}, not {' or '.join(modes)} of 8 bits; {_AGAIN}")
            levels = np.asarray(image)
        return np.ascontiguousarray(_from_8_bits(levels.reshape(*size, -1)[..., channels]))

    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise _Unusable(f"{name} is of an unknown version of .npy; {_AGAIN}")
    shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    _check_entry(name, shape[:2], size)
    if kind != np.dtype("<f4") or fortran:
        raise _Unusable(f"{name} is not in float32, row by row; {_AGAIN}")
    planes = np.frombuffer(data, "<f4", offset=file.tell()).reshape(*size, 3 if channels.start == 0 else 1)
    if not np.isfinite(planes).all():
        raise _Unusable(f"{name} has values that are not finite numbers; {_AGAIN}")
    return planes.astype(np.float32)


def _check_entry(name: str, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if found != size:
        shown = "x".join(map(str, reversed(found)))
        raise _Unusable(f"{name} is {shown}, but {MANIFEST} says {size[1]}x{size[0]}; {_AGAIN}")


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """What an entry holds; no more than the size that it states is unpacked, and that is at most `limit` bytes."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise _Unusable(f"{name} is missing in it; {_AGAIN}") from None
    if entry.file_size > limit:
        raise _Unusable(f"{name} has {entry.file_size} bytes, the limit is {limit}; {_AGAIN}")
    # What others are unpacked to has no limit.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Unusable(f"{name} is compressed by another method than deflate; {_AGAIN}")
    with archive.open(entry) as file:
        return file.read(entry.file_size)
