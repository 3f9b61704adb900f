"""Follows the pickle inside a file of torch without running anything in it.

A machine for the opcodes that torch writes, and for no others. It knows the few names of which tensors are made;
everything else becomes an empty stand-in, or is refused. Nothing is imported, and every opcode takes a bounded
amount of work and memory.
"""

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

# Far more than weights need; a step costs at most some hundred bytes and what it reads.
_MAX_STEPS = 1_000_000
_MAX_UNKNOWN = 10_000
_MAX_DIMENSIONS = 8
_MAX_NAME = 200

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
    """The bytes that tensors are views of, which are still in the file."""

    dtype: torch.dtype
    key: str
    num_stored: int


class Record(NamedTuple):
    """A tensor that is still in the file."""

    dtype: torch.dtype
    key: str
    num_stored: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False, repr=False, slots=True)
class StandIn:
    """An object of a class that is not made: it takes whatever is done to it and keeps its attributes only."""

    attributes: object = None


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Record:
    """torch._utils._rebuild_tensor_v2, as a note of what would be rebuilt."""
    storage, offset, shape, stride = arguments[:4]
    if not (isinstance(storage, _Storage) and type(offset) is int and _is_flat(shape) and _is_flat(stride)):
        raise pickle.UnpicklingError("what it calls a tensor is no tensor")
    return Record(*storage, offset, shape, stride)


def _is_flat(numbers: object) -> bool:
    return (
        type(numbers) is tuple
        and len(numbers) <= _MAX_DIMENSIONS
        and all(type(number) is int for number in numbers)
    )


def _first_argument(arguments: tuple[Any, ...]) -> object:
    return arguments[0]


def _new_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    # What Python 3 writes is filled afterwards, step by step.
    if arguments:
        raise pickle.UnpicklingError("an OrderedDict must begin empty")
    return {}


def _stand_in(_: tuple[Any, ...]) -> StandIn:
    return StandIn()


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...]], object]] = {
    "collections.OrderedDict": _new_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch.jit._pickle.restore_type_tag": _first_argument,
    **{
        f"torch.jit._pickle.build_{kind}list": _first_argument for kind in ("int", "double", "bool", "tensor")
    },
}

# What protocols 2 to 5 write of tensors and plain values, by what is done.
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
_STRINGS = {pickle.BINUNICODE: "<I", pickle.SHORT_BINUNICODE: "<B"}
_BYTES = {pickle.BINBYTES: "<I", pickle.SHORT_BINBYTES: "<B"}
_GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_PUTS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


class Unpickler:
    """Collects the `storages` that it met by key, and the names of the `unknown` classes, which it did not make."""

    def __init__(self, stream: io.BytesIO, *, allow_objects: bool) -> None:
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        self.unknown: set[str] = set()
        self._allow_objects = allow_objects
        self._stream = stream
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next pickle of the stream, made of plain values, records and stand-ins."""
        for _ in range(_MAX_STEPS):
            opcode = self._take(1)
            if opcode == pickle.STOP:
                return self._stack.pop()
            if not (self._value(opcode) or self._change(opcode)):
                raise pickle.UnpicklingError(f"opcode {opcode!r} of its pickle is none that torch writes")
        raise pickle.UnpicklingError(f"its pickle has more than the {_MAX_STEPS:,} steps allowed")

    def _value(self, opcode: bytes) -> bool:
        """Puts a value on the stack, if that is what the opcode does."""
        value: object
        if opcode in _CONSTANTS:
            value = _CONSTANTS[opcode]
        elif opcode in _NUMBERS:
            value = self._number(_NUMBERS[opcode])
        elif opcode == pickle.LONG1:
            value = pickle.decode_long(self._take(self._number("<B")))
        elif opcode in _STRINGS:
            value = self._take(self._number(_STRINGS[opcode])).decode("utf-8", "surrogatepass")
        elif opcode in _BYTES:
            value = self._take(self._number(_BYTES[opcode]))
        elif opcode in _GETS:
            value = self._memo[self._number(_GETS[opcode])]
        elif opcode == pickle.EMPTY_LIST:
            value = []
        elif opcode == pickle.EMPTY_DICT:
            value = {}
        elif opcode == pickle.GLOBAL:
            value = self._find(*(self._stream.readline()[:-1].decode() for _ in range(2)))
        else:
            return False
        self._stack.append(value)
        return True

    def _change(self, opcode: bytes) -> bool:
        """Does to the stack or the memo what the opcode says, if it is known."""
        stack = self._stack
        if opcode in (pickle.PROTO, pickle.FRAME):
            self._take(1 if opcode == pickle.PROTO else 8)
        elif opcode == pickle.MARK:
            self._marks.append(len(stack))
        elif opcode in _PUTS:
            self._memo[self._number(_PUTS[opcode])] = stack[-1]
        elif opcode == pickle.MEMOIZE:
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in _TUPLES:
            stack.append(tuple(self._pop_from(len(stack) - _TUPLES[opcode])))
        elif opcode == pickle.TUPLE:
            stack.append(tuple(self._pop_from(self._marks.pop())))
        elif opcode == pickle.STACK_GLOBAL:
            stack.append(self._find(*self._pop_from(len(stack) - 2)))
        elif opcode == pickle.BINPERSID:
            stack.append(self._find_storage(stack.pop()))
        elif opcode in (pickle.REDUCE, pickle.NEWOBJ):
            function, arguments = self._pop_from(len(stack) - 2)
            if type(arguments) is not tuple:
                raise pickle.UnpicklingError("a call without arguments")
            stack.append(function(arguments))
        elif opcode == pickle.BUILD:
            _set_attributes(stack[-2], stack.pop())
        elif opcode in (pickle.APPEND, pickle.APPENDS):
            _extend(*self._target_and_items(opcode == pickle.APPENDS, num_items=1))
        elif opcode in (pickle.SETITEM, pickle.SETITEMS):
            _set_items(*self._target_and_items(opcode == pickle.SETITEMS, num_items=2))
        else:
            return False
        return True

    def _take(self, num_bytes: int) -> bytes:
        content = self._stream.read(num_bytes)
        if len(content) != num_bytes:
            raise pickle.UnpicklingError("its pickle ends too early")
        return content

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _pop_from(self, start: int) -> list[Any]:
        if start < 0:
            raise pickle.UnpicklingError("its pickle takes more values than it made")
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _target_and_items(self, are_marked: bool, *, num_items: int) -> tuple[Any, list[Any]]:
        items = self._pop_from(self._marks.pop() if are_marked else len(self._stack) - num_items)
        return self._stack[-1], items

    def _find(self, module: Any, name: Any) -> object:
        if type(module) is not str or type(name) is not str:
            raise pickle.UnpicklingError("the name of a class must be a string")
        path = f"{module}.{name}"[:_MAX_NAME]
        if path in _FUNCTIONS:
            return _FUNCTIONS[path]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if not self._allow_objects and not path.startswith("__torch__."):
            raise pickle.UnpicklingError(
                f"it holds an object of {path}, which is more than tensors; tools/convert_weights.py can leave "
                "such objects out"
            )
        self.unknown.add(path)
        if len(self.unknown) > _MAX_UNKNOWN:
            raise pickle.UnpicklingError(f"it names more than the {_MAX_UNKNOWN:,} classes allowed")
        return _stand_in

    def _find_storage(self, pid: Any) -> _Storage:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("what it refers to is no storage of a tensor")
        _, dtype, key, _, num_stored, *view = pid
        is_named = type(key) is str and len(key) <= _MAX_NAME
        if not (is_named and isinstance(dtype, torch.dtype) and type(num_stored) is int):
            raise pickle.UnpicklingError("a storage must have a type, a name and a number of values")
        if any(view):
            raise pickle.UnpicklingError(f"storage {key!r} is a part of another")
        self.storages[key] = dtype, num_stored
        return _Storage(dtype, key, num_stored)


def _set_attributes(target: object, state: object) -> None:
    if isinstance(target, StandIn):
        target.attributes = state
    # A dictionary of torch has some too, of no use here.
    elif not isinstance(target, dict):
        raise pickle.UnpicklingError(f"a {type(target).__name__} has no attributes")


def _extend(target: object, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, StandIn):
        raise pickle.UnpicklingError(f"a {type(target).__name__} has no end to append to")


def _set_items(target: object, items: list[Any]) -> None:
    if isinstance(target, dict):
        target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
    elif not isinstance(target, StandIn):
        raise pickle.UnpicklingError(f"a {type(target).__name__} has no entries")


def _key(key: object) -> object:
    # The hash of a tuple of tuples, or a heap of numbers that were made to have the same one, takes hours.
    is_plain = key is None or type(key) in (str, bool, float) or (type(key) is int and key.bit_length() < 64)
    return key if is_plain or isinstance(key, StandIn) else StandIn()
