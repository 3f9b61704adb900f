"""How a model of another project wants its pictures, from the settings beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videolm.encoders.presets import CLIPShape
from videolm.files import read_json, write_json
from videolm.video.transforms import Interpolation, Preprocess

# As Pillow numbers them.
_RESAMPLE: dict[object, Interpolation] = {2: "bilinear", 3: "bicubic"}


def read_preprocess(folder: Path, shape: CLIPShape) -> Preprocess:
    """The settings of the folder's processor (transformers' or open_clip's); without one the family's own."""
    if (path := folder / "preprocessor_config.json").exists():
        return _of_transformers(read_json(path), path, shape)
    if (path := folder / "processor_config.json").exists():
        return _of_transformers(read_json(path).get("image_processor", {}), path, shape)
    if (path := folder / "open_clip_config.json").exists():
        return _of_open_clip(read_json(path).get("preprocess_cfg", {}), path, shape)
    return _default(shape)


def write_preprocess(folder: Path, preprocess: Preprocess) -> None:
    """The settings as transformers' preprocessor_config.json."""
    side = preprocess.image_size
    is_square = preprocess.resize_mode == "square"
    settings = {
        "image_processor_type": "SiglipImageProcessor" if is_square else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side} if is_square else {"shortest_edge": side},
        "resample": next(number for number, name in _RESAMPLE.items() if name == preprocess.interpolation),
        "do_center_crop": not is_square,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
    }
    write_json(folder / "preprocessor_config.json", settings)


def _default(shape: CLIPShape) -> Preprocess:
    if shape.family == "siglip":
        return Preprocess(shape.image_size, [0.5] * 3, [0.5] * 3, resize_mode="square")
    return Preprocess(shape.image_size, resize_mode="square" if shape.family == "blip2" else "short_side")


def _of_transformers(settings: dict[str, Any], path: Path, shape: CLIPShape) -> Preprocess:
    default = _default(shape)
    size = settings.get("size", {})
    is_square = "height" in size if size and isinstance(size, dict) else default.resize_mode == "square"
    # A square has the size already that a crop would give it.
    needed = ("do_resize", "do_rescale", "do_normalize", *(() if is_square else ("do_center_crop",)))
    for key in needed:
        if settings.get(key) is False:
            raise ValueError(
                f"{path}: {key} is false, but this tower is fed resized, cropped and normalised frames"
            )
    if abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError(f"{path}: rescale_factor is {settings['rescale_factor']}, only 1/255 can be done")
    resample = settings.get("resample", 3)
    if resample not in _RESAMPLE:
        raise ValueError(f"{path}: resample is {resample}, only 2 (bilinear) and 3 (bicubic) can be done")
    for key in ("size", "crop_size"):
        sides = settings.get(key, {})
        sides = set(sides.values()) if isinstance(sides, dict) else {sides}
        if sides - {shape.image_size}:
            raise ValueError(f"{path}: {key} is {settings[key]}, the tower takes {shape.image_size} pixels")
    return Preprocess(
        shape.image_size,
        settings.get("image_mean", default.mean),
        settings.get("image_std", default.std),
        resize_mode="square" if is_square else "short_side",
        interpolation=_RESAMPLE[resample],
    )


def _of_open_clip(settings: dict[str, Any], path: Path, shape: CLIPShape) -> Preprocess:
    default = _default(shape)
    mode, interpolation = settings.get("resize_mode", "shortest"), settings.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash"):
        raise ValueError(f"{path}: resize_mode is {mode!r}, only 'shortest' and 'squash' can be done")
    if interpolation not in _RESAMPLE.values():
        raise ValueError(
            f"{path}: interpolation is {interpolation!r}, only 'bicubic' and 'bilinear' can be done"
        )
    return Preprocess(
        shape.image_size,
        settings.get("mean", default.mean),
        settings.get("std", default.std),
        resize_mode="square" if mode == "squash" else "short_side",
        interpolation=interpolation,
    )
