"""Finds the file that holds the weights and reads its tensors, whatever format it has."""

import pickle
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videolm.encoders.weights.archive import Archive, read_archive
from videolm.files import read_json

# In the order in which they are taken.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PATTERNS = ("*.safetensors", "*.pt", "*.pth", "*.pth.tar", "*.bin", "*.bin.*")


def find_weights(folder: Path) -> Path:
    """The weights of a folder: those of a usual name, else the only file that could be any."""
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    candidates = sorted({path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()})
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise ValueError(f"{folder} has several files that could be the weights ({names}); name one of them")
    if not candidates:
        raise FileNotFoundError(f"{folder} has no weights; looked for {', '.join((*_NAMES, *_PATTERNS))}")
    return candidates[0]


def read_tensors(file: Path, *, allow_objects: bool = False) -> Archive:
    """The tensors of a safetensors file, the index of its shards, or a file of torch.

    Its content says what it is. `module.`, which training on several devices puts before every name, is taken
    off. ValueError names the file and what is wrong with it; see `read_archive` for `allow_objects`.
    """
    try:
        refuse_pointer(file)
        if file.name.endswith(".index.json"):
            archive = Archive(_read_shards(file))
        elif _is_safetensors(file):
            archive = Archive(load_file(file))
        else:
            archive = read_archive(file, allow_objects=allow_objects)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    if all(key.startswith("module.") for key in archive.tensors):
        tensors = {key.removeprefix("module."): tensor for key, tensor in archive.tensors.items()}
        archive = replace(archive, tensors=tensors)
    return archive


def refuse_pointer(file: Path) -> None:
    """A ValueError where a clone of a repository has only the name of the file's content."""
    pointer = b"version https://git-lfs"
    with file.open("rb") as stream:
        if stream.read(len(pointer)) == pointer:
            raise ValueError(f"{file.name} is a git-lfs pointer; fetch the file itself (git lfs pull)")


def _is_safetensors(file: Path) -> bool:
    """Eight bytes of length, then JSON."""
    with file.open("rb") as stream:
        return file.suffix == ".safetensors" or stream.read(9)[8:] == b"{"


def _read_shards(index: Path) -> dict[str, Tensor]:
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        # The index comes from outside: a shard is a file beside it, not a path.
        if Path(shard).name != shard:
            raise ValueError(f"shard {shard!r} must be the name of a file in the same folder")
        refuse_pointer(index.parent / shard)
        tensors.update(load_file(index.parent / shard))
    return tensors
