"""From the records of a pickle to tensors, once all that they claim is checked."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from videolm.encoders.weights.unpickle import Record


class Entries(NamedTuple):
    """The records of a checkpoint, and the names of what stands beside them."""

    records: dict[str, Record]
    beside: list[str]
    tensors_beside: list[str]
    """Those of `beside` that are tensors, or a dictionary with some directly in it."""


def records_of(content: object) -> Entries:
    """What a pickle holds: a dictionary of tensors, or one with such a dictionary under `state_dict`."""
    beside: list[tuple[object, object]] = []
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        beside = [(key, value) for key, value in content.items() if key != "state_dict"]
        content = content["state_dict"]
    records: dict[str, Record] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(key, str) and isinstance(value, Record):
            records[key] = value
        else:
            beside.append((key, value))
    if not records:
        raise ValueError("expected a dictionary of tensors, or one under 'state_dict'")
    return Entries(
        records,
        [_entry(key) for key, _ in beside],
        [_entry(key) for key, value in beside if _holds_tensors(value)],
    )


def _entry(key: object) -> str:
    return key if isinstance(key, str) else "an entry without a name"


def _holds_tensors(value: object) -> bool:
    values = value.values() if isinstance(value, dict) else [value]
    return any(isinstance(value, Record) for value in values)


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
    if len(record.shape) != len(record.stride) or min(numbers) < 0:
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
