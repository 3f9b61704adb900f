"""Damaged copies of healthy files: what disks, networks and editors do, and what an attacker tries first."""

from __future__ import annotations

import random
import struct

KINDS = ("truncate", "truncate", "flip", "flip", "head", "noise", "zero", "cut", "double", "box")
"""Drawn from with equal chances: what happens often stands here twice."""

# Names in mov, AVI and Matroska beside which lengths and counts are stored.
_WORDS = (
    *(b"moov", b"trak", b"mdia", b"stbl", b"stsd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss"),
    *(b"elst", b"mdhd", b"mvhd", b"tkhd", b"avcC", b"hvcC", b"mdat", b"idx1", b"movi", b"LIST", b"strh"),
    *(b"strf", b"\x1aE\xdf\xa3", b"\x16T\xaek"),
)
_EXTREMES = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000000)


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One damaged copy, and of which kind the damage is."""
    kind = rng.choice(KINDS)
    if kind == "truncate":
        return kind, _truncate(data, rng)
    if kind in ("flip", "head"):
        return kind, _flip(data, rng, only_ends=kind == "head")
    if kind == "box":
        return kind, _lie_beside_a_name(data, rng)
    begin = rng.randrange(len(data))
    end = min(begin + rng.choice([16, 256, 4096, max(len(data) // 10, 1)]), len(data))
    middle = {
        "noise": rng.randbytes(end - begin),
        "zero": bytes(end - begin),
        "cut": b"",
        "double": data[begin:end] * 2,
    }[kind]
    return kind, data[:begin] + middle + data[end:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    size = len(data)
    near_start, anywhere = rng.randrange(1, min(size, 4096)), rng.randrange(1, size)
    return data[: rng.choice([near_start, anywhere, size - rng.randrange(1, 64)])]


def _flip(data: bytes, rng: random.Random, *, only_ends: bool) -> bytes:
    """Single bits; `only_ends` hits the first and the last two thousand bytes, where the tables are."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 4, 16, 64, 256])):
        spot = rng.randrange(len(out))
        if only_ends:
            distance = rng.randrange(min(len(out), 2048))
            spot = rng.choice([distance, len(out) - 1 - distance])
        out[spot] ^= 1 << rng.randrange(8)
    return bytes(out)


def _lie_beside_a_name(data: bytes, rng: random.Random) -> bytes:
    """Lengths and counts beside the name of a box take extreme values."""
    out = bytearray(data)
    spots = [data.find(word) for word in _WORDS if word in data] or [rng.randrange(len(data))]
    for _ in range(rng.choice([1, 2, 3])):
        spot = rng.choice(spots) + rng.choice([-4, 4, 8, 12, 16, 20, 24, 28])
        value = rng.choice([*_EXTREMES, rng.getrandbits(32)])
        struct.pack_into(">I", out, min(max(spot, 0), len(out) - 4), value)
    return bytes(out)
