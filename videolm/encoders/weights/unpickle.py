"""Follows the pickle inside a file of torch without running anything in it.

The unpickler knows the few names of which tensors are made. Everything else becomes an empty stand-in, or is
refused; nothing is imported, and no torch object exists before all sizes are checked.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Storage(NamedTuple):
    """A storage's type, which the pickle names before it asks for the storage itself."""

    dtype: torch.dtype


class Record(NamedTuple):
    """A tensor that is still in the file."""

    dtype: torch.dtype
    key: str
    num_stored: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class StandIn:
    """An object of a class that is not made: it takes whatever is done to it and keeps its attributes only."""

    attributes: object = None

    def __new__(cls, *args: object, **kwargs: object) -> "StandIn":
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.attributes = state

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


class _RebuildTensor:
    """torch._utils._rebuild_tensor_v2, as a note of what would be rebuilt."""

    __slots__ = ()

    def __call__(
        self,
        storage: tuple[torch.dtype, str, int],
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        *_: object,
    ) -> Record:
        return Record(*storage, offset, tuple(shape), tuple(stride))


class _FirstArgument:
    """A function of which only the first argument matters here."""

    __slots__ = ()

    def __call__(self, value: object, *_: object) -> object:
        return value


_FIRST_ARGUMENT = {
    "torch._utils._rebuild_parameter",
    "torch.jit._pickle.restore_type_tag",
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
}


# The one in Python: a crafted index into the memo makes the one in C take any amount of memory.
class Unpickler(pickle._Unpickler):
    """Collects the `storages` that it met by key, and the `unknown` classes, which it did not make."""

    def __init__(self, file: io.BufferedIOBase, *, allow_objects: bool) -> None:
        super().__init__(file)
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        self.unknown: dict[str, type] = {}
        self._allow_objects = allow_objects

    def find_class(self, module: str, name: str) -> Any:
        # Each answer is made for this one pickle, which could change it.
        path = f"{module}.{name}"
        if path == "torch._utils._rebuild_tensor_v2":
            return _RebuildTensor()
        if path in _FIRST_ARGUMENT:
            return _FirstArgument()
        if path == "collections.OrderedDict":
            return type("OrderedDict", (dict,), {})
        if module == "torch" and name in _DTYPES:
            return _Storage(_DTYPES[name])
        if not self._allow_objects and not module.startswith("__torch__."):
            raise pickle.UnpicklingError(
                f"it holds an object of {path}, which is more than tensors; tools/convert_weights.py can leave "
                "such objects out"
            )
        return self.unknown.setdefault(path, type("Object", (StandIn,), {}))

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str, int]:
        kind, storage, key, _, num_stored, *view = pid
        if any(view):
            raise pickle.UnpicklingError(f"storage {key!r} is a part of another")
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"{kind!r} is no storage of a tensor")
        self.storages[str(key)] = storage.dtype, int(num_stored)
        return storage.dtype, str(key), int(num_stored)


def records_of(content: object) -> tuple[dict[str, Record], list[str]]:
    """The tensors of a checkpoint, and the names of what stands beside them."""
    beside: list[str] = []
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        beside = [_entry(key) for key in content if key != "state_dict"]
        content = content["state_dict"]
    records: dict[str, Record] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(key, str) and isinstance(value, Record):
            records[key] = value
        else:
            beside.append(_entry(key))
    if not records:
        raise ValueError("expected a dictionary of tensors, or one under 'state_dict'")
    return records, beside


def _entry(key: object) -> str:
    return key if isinstance(key, str) else f"an entry under a {type(key).__name__}"


def tensors_of(
    records: Mapping[str, Record], read_storage: Callable[[Record], Tensor], *, num_bytes: int
) -> dict[str, Tensor]:
    """The tensors that were noted, as views of their storages; `read_storage` gives a whole one, flat.

    Some may share a storage; but a file of `num_bytes` that would fill more than twice as many is refused.
    """
    storages: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    num_filled = 0
    for name, record in records.items():
        num_filled += _check_record(name, record) * record.dtype.itemsize
        if num_filled > 2 * num_bytes:
            raise ValueError(f"its tensors would fill more than twice the {num_bytes:,} bytes of the file")
        if record.key not in storages:
            storages[record.key] = read_storage(record)
        storage = storages[record.key]
        if storage.dtype != record.dtype or len(storage) != record.num_stored:
            raise ValueError(f"{name}: its storage is described in two ways")
        tensors[name] = storage.as_strided(record.shape, record.stride, record.offset)
    return tensors


def _check_record(name: str, record: Record) -> int:
    """Number of values, if they lie inside the storage."""
    numbers = (*record.shape, *record.stride, record.offset, record.num_stored)
    if len(record.shape) != len(record.stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"{name}: shape {record.shape} with stride {record.stride} is no tensor")
    num_values, last = 1, record.offset
    for size, stride in zip(record.shape, record.stride, strict=True):
        num_values *= size
        last += (size - 1) * stride
    if num_values > record.num_stored or (num_values and last >= record.num_stored):
        raise ValueError(
            f"{name}: {record.shape} does not fit into its storage of {record.num_stored:,} values"
        )
    return num_values


def flat_tensor(content: bytes, dtype: torch.dtype) -> Tensor:
    """A storage's bytes as a tensor of its own."""
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
