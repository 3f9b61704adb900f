"""Reads the files of torch.save and torch.jit.save, of today and of before 1.6, and runs nothing in them."""

import io
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from videolm.encoders.weights.records import flat_tensor, records_of, tensors_of
from videolm.encoders.weights.unpickle import Record, StandIn, Unpickler

_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_VALUES = 50_000
_MAX_NAME = 1_000
# The two numbers with which a file of before 1.6 begins.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Archive:
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)
    """Entries beside the tensors, and names of the classes that were not made."""
    left_out_tensors: list[str] = field(default_factory=list)
    """The entries among them that hold tensors too: the state of an average, a queue of vectors."""


def read_archive(file: Path, *, allow_objects: bool = False) -> Archive:
    """The tensors of a file of torch.

    They are the dictionary in the file, or its entry `state_dict`, or the parameters and buffers of the
    TorchScript module. Objects of other classes are an error; with `allow_objects` they stay unmade. ValueError
    says what is wrong: another kind of file, compressed or doubled members, sizes that lie, a pickle that is none.
    """
    num_bytes = file.stat().st_size
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return _read_zip(archive, num_bytes, allow_objects=allow_objects)
        with file.open("rb") as stream:
            first = stream.read(4)
            if first == b"PK\x03\x04":
                raise ValueError("its end is missing; it was not copied or downloaded as a whole")
            if first[:1] != pickle.PROTO:
                raise ValueError(
                    "no file of weights: it begins neither as safetensors, nor as zip, nor as pickle"
                )
            stream.seek(0)
            return _read_stream(stream, num_bytes, allow_objects=allow_objects)
    except (ValueError, pickle.UnpicklingError):
        raise
    # Whatever else zipfile and pickle raise about a file that was made to do harm.
    except Exception as error:
        raise ValueError(f"damaged file of torch ({type(error).__name__}: {error})") from error


def _read_zip(archive: zipfile.ZipFile, num_bytes: int, *, allow_objects: bool) -> Archive:
    root, is_torchscript = _check_members(archive, num_bytes)
    unpickler = Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), allow_objects=allow_objects)
    content = unpickler.load()

    def read(record: Record) -> Tensor:
        return _storage(archive, root, record)

    if is_torchscript:
        return Archive(tensors_of(dict(_of_module(content)), read, num_bytes=num_bytes))
    records, beside, tensors_beside = records_of(content)
    tensors = tensors_of(records, read, num_bytes=num_bytes)
    return Archive(tensors, [*beside, *sorted(unpickler.unknown)], tensors_beside)


def _check_members(archive: zipfile.ZipFile, num_bytes: int) -> tuple[str, bool]:
    """Folder of the members inside the archive, and whether it is a TorchScript's."""
    # TorchScript compresses its code, which is never read.
    members = [member for member in archive.infolist() if member.filename.split("/")[1:2] != ["code"]]
    names = [member.filename for member in members]
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"compressed member {member.filename!r}; torch stores its members as they are")
    if len(set(names)) != len(names):
        raise ValueError("two members have the same name")
    if sum(member.file_size for member in members) > num_bytes:
        raise ValueError(f"its members claim more than the {num_bytes:,} bytes of the file")
    roots = [name.removesuffix("data.pkl") for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError("no archive of torch: it must hold one folder with data.pkl")
    root = roots[0]
    if archive.getinfo(f"{root}data.pkl").file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"{root}data.pkl is larger than the {_MAX_PICKLE_BYTES:,} bytes allowed")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != sys.byteorder.encode():
        raise ValueError(f"its byte order is not that of this machine ({sys.byteorder} endian)")
    return root, f"{root}constants.pkl" in names


def _of_module(module: object) -> Iterator[tuple[str, Record]]:
    """Every tensor that is an attribute of the module or of one inside it, by its dotted name."""
    waiting = [("", module)]
    num_values = 0
    while waiting:
        prefix, module = waiting.pop()
        attributes = module.attributes if isinstance(module, StandIn) else None
        for name, value in attributes.items() if isinstance(attributes, Mapping) else ():
            num_values += 1
            if num_values > _MAX_VALUES:
                raise ValueError(f"more than {_MAX_VALUES:,} values in the module")
            if not isinstance(name, str) or len(prefix) + len(name) > _MAX_NAME:
                raise ValueError(f"attributes of a module must have names of at most {_MAX_NAME:,} letters")
            if isinstance(value, Record):
                yield f"{prefix}{name}", value
            elif isinstance(value, StandIn):
                waiting.append((f"{prefix}{name}.", value))


def _storage(archive: zipfile.ZipFile, root: str, record: Record) -> Tensor:
    """The whole storage as a flat tensor."""
    member = f"{root}data/{record.key}"
    num_bytes = record.num_stored * record.dtype.itemsize
    if member not in archive.NameToInfo or archive.getinfo(member).file_size != num_bytes:
        raise ValueError(f"{member} must be there with {num_bytes:,} bytes")
    return flat_tensor(archive.read(member), record.dtype)


def _read_stream(stream: io.BufferedIOBase, num_bytes: int, *, allow_objects: bool) -> Archive:
    """Five pickles one after the other (two numbers, the machine, content, keys of storages), then the storages."""
    pickles = io.BytesIO(stream.read(min(num_bytes, _MAX_PICKLE_BYTES)))
    magic, protocol, machine = (Unpickler(pickles, allow_objects=False).load() for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL or not machine["little_endian"]:
        raise ValueError("no file of torch")
    unpickler = Unpickler(pickles, allow_objects=allow_objects)
    records, beside, tensors_beside = records_of(unpickler.load())
    keys = Unpickler(pickles, allow_objects=False).load()
    stream.seek(pickles.tell())
    storages: dict[str, Tensor] = {}
    for key in keys:
        if type(key) is not str or key not in unpickler.storages:
            raise ValueError("its list of storages names one that no tensor has")
        dtype, num_stored = unpickler.storages[key]
        if int.from_bytes(stream.read(8), "little") != num_stored:
            raise ValueError(f"storage {key!r} has not the {num_stored:,} values that were announced")
        if num_stored * dtype.itemsize > num_bytes:
            raise ValueError(f"storage {key!r} claims more than the {num_bytes:,} bytes of the file")
        storages[key] = flat_tensor(stream.read(num_stored * dtype.itemsize), dtype)
    tensors = tensors_of(records, lambda record: storages[record.key], num_bytes=num_bytes)
    return Archive(tensors, [*beside, *sorted(unpickler.unknown)], tensors_beside)
