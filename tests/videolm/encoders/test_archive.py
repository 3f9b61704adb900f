"""Files of torch from strangers: what is refused, and that nothing in them is run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import os
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videolm.encoders.weights.archive import read_archive
from videolm.encoders.weights.files import read_tensors


def write_members(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return path


class Storage:
    """What a pickle of torch names a storage by."""

    def __init__(self, num_stored: int, *, dtype: str = "FloatStorage") -> None:
        self.pid = ("storage", getattr(torch, dtype), "0", "cpu", num_stored)


class Rebuilt:
    """A tensor that says of itself what it likes."""

    def __init__(self, storage: Storage, offset: Any, shape: Any, stride: Any) -> None:
        self.arguments = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, Storage) else None


def write_pickled(path: Path, content: Any, *, num_bytes: int) -> Path:
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(content)
    return write_members(path, {"data.pkl": stream.getvalue(), "data/0": bytes(num_bytes)})


FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_come_out_as_torch_itself_reads_them(protocol: int, is_zip: bool, tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(2, 3, 4)
    content = {
        "whole": whole,
        "part": whole[1, :, 1:3],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "half": torch.randn(5).half(),
        "short": torch.randn(5).bfloat16(),
        "number": torch.tensor([1, -2]),
        "flag": torch.tensor([True, False]),
    }
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    ours = read_archive(tmp_path / "x.pt").tensors
    # Its own careful way knows protocol 2 alone.
    theirs = torch.load(tmp_path / "x.pt", weights_only=protocol == 2)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor.detach())


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@FORMATS
@pytest.mark.parametrize("place", ["value", "entry", "key"])
def test_an_object_is_named_and_never_made(place: str, is_zip: bool, tmp_path: Path) -> None:
    target, file = tmp_path / "went off", tmp_path / "x.pt"
    weights: dict[Any, Any] = {"w": torch.ones(2)}
    content = {
        "value": weights | {"bomb": Bomb(target)},
        "entry": {"state_dict": weights, "config": Bomb(target)},
        "key": {"state_dict": weights, Bomb(target): 1},
    }[place]
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        ValueError, match=r"x\.pt: cannot be read \(it holds an object of posix\.mkdir, .*convert"
    ):
        read_tensors(file)
    archive = read_tensors(file, allow_objects=True)
    assert not target.exists()
    assert archive.tensors.keys() == {"w"}
    assert "posix.mkdir" in archive.left_out


def test_a_checkpoint_with_its_settings_gives_its_tensors(tmp_path: Path) -> None:
    content = {
        "arch": "FrozenInTime",
        "epoch": 3,
        "state_dict": collections.OrderedDict(w=torch.ones(2), b=torch.zeros(1)),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
        "config": argparse.Namespace(lr=1e-4, nested=argparse.Namespace(path=Path("x"))),
    }
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    with pytest.raises(ValueError, match=r"argparse\.Namespace"):
        read_tensors(tmp_path / "checkpoint.pth.tar")
    archive = read_tensors(tmp_path / "checkpoint.pth.tar", allow_objects=True)
    assert archive.tensors.keys() == {"w", "b"}
    assert archive.left_out[:4] == ["arch", "epoch", "optimizer", "config"]
    assert "argparse.Namespace" in archive.left_out[4:]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    stream = io.BytesIO()
    tensor = Rebuilt(Storage(25_000_000), 0, (25_000_000,), (1,))
    Pickler(stream, protocol=2).dump({"w": tensor})
    file = write_members(
        tmp_path / "x.pt",
        {"data.pkl": stream.getvalue(), "data/0": bytes(100_000_000)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert file.stat().st_size < 200_000
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(ValueError, match="compressed member"):
        read_tensors(file)
    assert time.monotonic() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_members_that_claim_more_than_the_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(1000))
        for i in range(1, 50):
            again = copy.copy(archive.filelist[1])
            again.filename = again.orig_filename = f"archive/data/{i}"
            archive.filelist.append(again)
    with pytest.raises(ValueError, match=r"its members claim more than the .* bytes of the file"):
        read_tensors(file)


def test_tensors_that_share_their_storage_cannot_fill_the_memory(tmp_path: Path) -> None:
    once = torch.ones(100_000)
    torch.save({f"w{i}": once for i in range(9)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"more than twice the .* bytes of the file"):
        read_tensors(tmp_path / "x.pt")
    torch.save({f"w{i}": once for i in range(9)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"more than twice the .* bytes of the file"):
        read_tensors(tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Rebuilt(Storage(4), 0, (10**9,), (0,)), "does not fit into its storage of 4 values"),
        (Rebuilt(Storage(4), 0, (2, 2), (3, 1)), "does not fit into its storage"),
        (Rebuilt(Storage(4), 2, (3,), (1,)), "does not fit into its storage"),
        (Rebuilt(Storage(4), -1, (2,), (1,)), "is no tensor"),
        (Rebuilt(Storage(4), 0, (2,), (1, 1)), "is no tensor"),
        (Rebuilt(Storage(4), 0, ("two",), (1,)), "is no tensor|damaged file of torch"),
        (Rebuilt(Storage(4), "none", (2,), (1,)), "is no tensor|damaged file of torch"),
        (Rebuilt(Storage(5), 0, (5,), (1,)), r"archive/data/0 must be there with 20 bytes"),
        (Rebuilt(Storage(10**12), 0, (10**12,), (1,)), "would fill more than twice"),
        (Rebuilt(Storage(4, dtype="QInt8Storage"), 0, (4,), (1,)), "an object of torch.QInt8Storage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tensor_that_lies_about_its_place_is_refused(tensor: Rebuilt, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_tensors(write_pickled(tmp_path / "x.pt", {"w": tensor}, num_bytes=16))


def test_a_storage_of_two_types_is_refused(tmp_path: Path) -> None:
    content = {
        "w": Rebuilt(Storage(4), 0, (4,), (1,)),
        "v": Rebuilt(Storage(4, dtype="IntStorage"), 0, (4,), (1,)),
    }
    with pytest.raises(ValueError, match="v: its storage is described in two ways"):
        read_tensors(write_pickled(tmp_path / "x.pt", content, num_bytes=16))


def doubling_modules(depth: int) -> bytes:
    """A module that holds the one before it twice, `depth` times: 2^depth ways to the innermost."""
    module = b"c__torch__.M\nM\n)\x81"
    content = b"\x80\x02" + module + b"q\x00"
    for i in range(depth):
        content += module + b"}(X\x01\x00\x00\x00ah" + bytes([i]) + b"X\x01\x00\x00\x00bh" + bytes([i]) + b"u"
        content += b"bq" + bytes([i + 1])
    return content + b"."


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "no archive of torch"),
        ({"data.pkl": b""}, "ends too early"),
        ({"data.pkl": b"\x80\x02K\x01\x86."}, "takes more values than it made"),
        ({"data.pkl": b"\x80\x02h\x01."}, "damaged file of torch"),
        ({"data.pkl": b"no pickle"}, "cannot be read"),
        ({"data.pkl": pickle.dumps([1, 2], 2)}, "expected a dictionary of tensors"),
        ({"data.pkl": pickle.dumps({"w": 1}, 2)}, "expected a dictionary of tensors"),
        ({"data.pkl": b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b"."}, "expected a dictionary"),
        ({"data.pkl": bytes(16 * 2**20 + 1)}, "is larger than the 16,777,216 bytes allowed"),
        ({"data.pkl": pickle.dumps({}, 2), "byteorder": b"big"}, "byte order is not that of this machine"),
        ({"data.pkl": doubling_modules(60), "constants.pkl": b""}, "more than 50,000 values in the module"),
        ({"data.pkl": b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."}, "has no attributes"),
    ],
    ids=[
        "empty", "empty pickle", "empty stack", "empty memo", "text", "list", "no tensors",
        "index of 2^31 into the memo", "large pickle", "byte order", "doubling modules", "a class that is changed",
    ],
)  # fmt: skip
def test_a_pickle_that_is_none_of_torch_is_refused(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        read_tensors(write_members(tmp_path / "x.pt", members))
    assert time.monotonic() - start < 5


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for _ in range(2):
            archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(ValueError, match="two members have the same name"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"\x96" + struct.pack("<Q", 2**40),
        b"\x8a\x01\x01\x8f",
        b"(\x91",
        b"(ios\nmkdir\n",
        b"\x82\x01",
        b"I1\n",
        b"N2",
        b"N0",
    ],
    ids=["BYTEARRAY8", "EMPTY_SET", "FROZENSET", "INST", "EXT1", "INT", "DUP", "POP"],
)
def test_an_opcode_that_torch_does_not_write_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"opcode b'.*' of its pickle is none that torch writes"):
        read_tensors(write_members(tmp_path / "x.pt", {"data.pkl": b"\x80\x05" + content + b"."}))


# The empty tuple put into a pair with itself, and so on: 2^200 values of which a repr or a hash would see each.
PAIRS = b")" + b"q\x00h\x00\x86" * 200


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pickled_tensor(
    *, kind: bytes = text("storage"), key: bytes = text("0"), count: bytes = b"K\x04", offset: bytes = b"K\x00",
    shape: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85",
) -> bytes:  # fmt: skip
    storage = b"(" + kind + b"ctorch\nFloatStorage\n" + key + text("cpu") + count + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + stride + b"\x89}tR"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled_tensor(kind=PAIRS), "no storage of a tensor"),
        (pickled_tensor(key=PAIRS), "must have a type, a name and a number"),
        (pickled_tensor(key=text("k" * 201)), "must have a type, a name and a number"),
        (pickled_tensor(count=PAIRS), "must have a type, a name and a number"),
        (pickled_tensor(offset=PAIRS), "is no tensor"),
        (pickled_tensor(shape=PAIRS), "is no tensor"),
        (pickled_tensor(shape=PAIRS + b"\x85"), "is no tensor"),
        (pickled_tensor(stride=PAIRS + b"\x85"), "is no tensor"),
        (pickled_tensor(shape=b"(" + b"K\x01" * 9 + b"t", stride=b"(" + b"K\x01" * 9 + b"t"), "is no tensor"),
        (b"N" + PAIRS + b"\x93", "the name of a class must be a string"),
        (PAIRS + b"Q", "no storage of a tensor"),
        (b"}" + PAIRS + b"b", "expected a dictionary"),
        (PAIRS + PAIRS + b"b", "a tuple has no attributes"),
        (PAIRS + b"Na", "a tuple has no end to append to"),
        (PAIRS + b"NNs", "a tuple has no entries"),
        (PAIRS + b"NR", "a call without arguments"),
    ],
)
def test_values_within_values_are_never_shown_nor_compared(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = write_members(tmp_path / "x.pt", {"data.pkl": b"\x80\x02" + content + b".", "data/0": bytes(16)})
    with pytest.raises(ValueError, match=message) as raised:
        read_tensors(file)
    assert len(str(raised.value)) < 1000


def test_a_key_that_could_take_hours_to_find_is_left_out(tmp_path: Path) -> None:
    # Large numbers may all have the same hash: they are no keys either.
    number = b"\x8a\x09" + (2**70).to_bytes(9, "little")
    entries = text("w") + pickled_tensor() + PAIRS + b"N" + number + b"NK\x07N"
    content = b"\x80\x02}(" + entries + b"u" + PAIRS + b"Ns."
    archive = read_archive(write_members(tmp_path / "x.pt", {"data.pkl": content, "data/0": bytes(16)}))
    assert archive.tensors.keys() == {"w"}
    # Each of them, and none in the place of another: the pairs, the number, 7 and the pairs again.
    assert archive.left_out == ["an entry without a name"] * 4


ORDERED_DICT = b"ccollections\nOrderedDict\n"
BEFORE = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ORDERED_DICT * 10_000, "more than the 10,000 steps allowed"),
        (ORDERED_DICT + b"q\x00" + b"h\x00)R" * 10_000, "more than the 10,000 steps allowed"),
        (b"(" * 10_000, "more than the 10,000 steps allowed"),
        (b"".join(b"cx\n%x\n" % i for i in range(101)), "names more than the 100 classes allowed"),
        (b"X" + struct.pack("<I", 2**32 - 1) + bytes(100), "ends too early"),
    ],
    ids=["mentions", "OrderedDicts", "marks", "classes", "length"],
)
def test_a_pickle_takes_a_bounded_amount_of_memory(
    content: bytes, message: str, is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hundredth of the true limits, which are reached in a second.
    monkeypatch.setattr("videolm.encoders.weights.unpickle._MAX_STEPS", 10_000)
    monkeypatch.setattr("videolm.encoders.weights.unpickle._MAX_UNKNOWN", 100)
    content = b"\x80\x02" + content + b"."
    file = write_members(tmp_path / "x.pt", {"data.pkl": content})
    if not is_zip:
        file.write_bytes(b"".join(pickle.dumps(value, 2) for value in BEFORE) + content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read_tensors(file, allow_objects=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_a_stream_of_before_1_6_is_read_no_further_than_an_archive(tmp_path: Path) -> None:
    magic = pickle.dumps(BEFORE[0], 2)
    (tmp_path / "x.pt").write_bytes(magic + b"\x80\x02X" + struct.pack("<I", 2**24) + bytes(2**24) + b".")
    with pytest.raises(ValueError, match="ends too early"):
        read_tensors(tmp_path / "x.pt")


def test_names_of_modules_within_modules_stay_short(tmp_path: Path) -> None:
    module = b"c__torch__\nM\n)\x81"
    content = module
    for _ in range(3):
        content = module + b"}" + text("a" * 400) + content + b"sb"
    members = {"data.pkl": b"\x80\x02" + content + b".", "constants.pkl": b""}
    with pytest.raises(ValueError, match="must have names of at most 1,000 letters"):
        read_archive(write_members(tmp_path / "x.pt", members))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a git-lfs pointer; fetch the",
        ),
        (b"", "no file of weights: it begins neither"),
        (b"\0\0\0\x18ftypmp42 a video", "no file of weights: it begins neither"),
        (b"PK\x03\x04 the beginning of an archive", "its end is missing"),
    ],
    ids=["git-lfs", "empty", "video", "half an archive"],
)
def test_a_file_of_something_else_is_called_so(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin: cannot be read \(.*{message}"):
        read_tensors(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "shard.safetensors"])
def test_a_git_lfs_pointer_of_safetensors_is_called_so(name: str, tmp_path: Path) -> None:
    index = '{"weight_map": {"w": "shard.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    asked = "model.safetensors.index.json" if name.startswith("shard") else name
    with pytest.raises(ValueError, match=rf"\({name} is a git-lfs pointer"):
        read_tensors(tmp_path / asked)


@FORMATS
def test_entries_with_other_tensors_are_told_apart(is_zip: bool, tmp_path: Path) -> None:
    weights = {"w": torch.ones(2)}
    content = {
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "state_dict": weights,
        "state_dict_ema": {"w": torch.zeros(2)},
        "queue": torch.zeros(2),
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    archive = read_archive(tmp_path / "x.pt")
    assert archive.left_out == ["epoch", "optimizer", "state_dict_ema", "queue"]
    assert archive.left_out_tensors == ["state_dict_ema", "queue"]
    assert torch.equal(archive.tensors["w"], torch.ones(2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A checkpoint in today's format and in that of before 1.6."""
    file = tmp_path_factory.mktemp("archive") / "x.pt"
    content = {"state_dict": {"w": torch.randn(3, 4), "b": torch.nn.Parameter(torch.randn(3))}}
    torch.save(content, file)
    today = file.read_bytes()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return today, file.read_bytes()


def damage(data: st.DataObject, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    return bytes(damaged)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), place=st.sampled_from(["zip", "pickle in a zip", "before 1.6"]))
def test_a_damaged_file_is_a_value_error_or_read(
    data: st.DataObject, place: str, saved: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("damaged") / "x.pt"
    if place == "pickle in a zip":
        with zipfile.ZipFile(io.BytesIO(saved[0])) as archive:
            members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
        write_members(file, members | {"data.pkl": damage(data, members["data.pkl"])})
    else:
        file.write_bytes(damage(data, saved[place == "before 1.6"]))
    tensors = {}
    with contextlib.suppress(ValueError):
        tensors = read_tensors(file, allow_objects=True).tensors
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
