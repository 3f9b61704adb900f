"""Files made by hand: healthy but awkward ones, files that lie about themselves, and bombs."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.pictures import NUM_FRAMES, encode, ffmpeg, raw_video

X264 = "-c:v libx264 -preset veryfast -g 25 -pix_fmt yuv420p"
ALL = tuple(range(NUM_FRAMES))
# how the matrix of a track header says "turn it a quarter clockwise", as telephones write it
_QUARTER_CLOCKWISE = (0, 65536, 0, -65536, 0)


def awkward(folder: Path, *, mp4: Path, avi: Path) -> Iterator[Case]:
    """Healthy files that readers are known to get wrong, and healthy files of odd names."""
    raw = raw_video(ALL)

    def made(name: str, codes: tuple[int, ...] | None = ALL, *, turns: int = 0) -> Case:
        return Case(folder / name, "awkward", "frames", codes, turns=turns)

    kept = tuple(n for n in ALL if n < 30 or n % 10 == 0)
    encode(folder / "vfr.mp4", f"-vf select='lt(n,30)+not(mod(n,10))' -vsync vfr {X264}", raw)
    yield made("vfr.mp4", kept)
    encode(folder / "ten_bit.mp4", X264.replace("yuv420p", "yuv420p10le"), raw)
    yield made("ten_bit.mp4")
    turned = folder / "rotated.mp4"
    encode(turned, X264, raw_video(ALL, turns=1), size=(120, 160))
    turned.write_bytes(patched(turned.read_bytes(), b"tkhd", 44, _QUARTER_CLOCKWISE))
    yield made("rotated.mp4", turns=1)
    # the key frame is at 1 s: 8 frames are decoded and not shown
    ffmpeg("-c copy", folder / "edit_list.mp4", source=mp4, before="-ss 1.3")
    yield made("edit_list.mp4", ALL[33:])
    ffmpeg(
        "-c copy -avoid_negative_ts disabled",
        folder / "negative_pts.mp4",
        source=avi,
        before="-itsoffset -2",
    )
    yield made("negative_pts.mp4", ALL[50:])
    encode(folder / "one_frame.mp4", X264, raw_video([0]))
    yield made("one_frame.mp4", (0,))
    encode(folder / "two_by_two.mp4", X264, raw_video([None] * 50, height=2, width=2), size=(2, 2))
    yield made("two_by_two.mp4", None)
    encode(folder / "odd_size.mkv", "-c:v ffv1", raw_video(ALL, height=121, width=161), size=(161, 121))
    yield made("odd_size.mkv")
    for name in (
        "name \N{RIGHT-TO-LEFT OVERRIDE}4pm.mp4",
        "name\nline.mp4",
        "-i.mp4",
        "caf\u00e9 \u89c6\u9891 \U0001f3ac.mp4",
        "http:name.mp4",
    ):
        (folder / name).write_bytes(mp4.read_bytes())
        yield made(name)


def bad(folder: Path, *, mp4: Path, ts: Path) -> Iterator[Case]:
    """Files that lie about themselves, and files that are something else."""
    raw = raw_video(ALL)
    encode(
        folder / "million_fps.mp4",
        f"-vf settb=1/1000000,setpts=N {X264} -r 1000000 -video_track_timescale 1000000",
        raw,
    )
    yield Case(folder / "million_fps.mp4", "bad", "either")
    ffmpeg("-f lavfi -i sine=d=3 -c:a aac", folder / "audio_only.mp4")
    yield Case(folder / "audio_only.mp4", "bad", "refuse")
    lies, others = _lies(folder, mp4=mp4.read_bytes(), ts=ts.read_bytes()), _others()
    for name, data in lies.items():
        (folder / name).write_bytes(data)
        yield Case(folder / name, "bad", "either")
    for name, data in {**others, "no_moov.mp4": _before_moov(mp4.read_bytes())}.items():
        (folder / name).write_bytes(data)
        yield Case(folder / name, "bad", "refuse")


def bombs(folder: Path) -> Iterator[Case]:
    """Small files that ask for gigabytes or minutes, and that take seconds to make."""
    black = "-f lavfi -i color=black:s={}:r={} -frames:v {} -c:v libx264 -preset ultrafast -pix_fmt yuv420p"
    ffmpeg(black.format("8192x8192", 25, 2), folder / "huge_h264.mp4")
    yield Case(folder / "huge_h264.mp4", "bomb", "refuse")
    # one key frame at the start, and far from it the frames that are asked for
    ffmpeg(black.format("32x32", 1000, 200_000) + " -g 9999999 -bf 0", folder / "long_black.mp4")
    yield Case(folder / "long_black.mp4", "bomb", "either")
    (folder / "png_bomb.mp4").write_bytes(png(30_000, 30_000))
    yield Case(folder / "png_bomb.mp4", "bomb", "refuse")


def patched(data: bytes, tag: bytes, offset: int, values: tuple[int, ...], form: str = "i") -> bytes:
    """A copy with big-endian numbers written so many bytes after the begin of the first such box name."""
    out = bytearray(data)
    struct.pack_into(f">{len(values)}{form}", out, data.index(tag) + offset, *values)
    return bytes(out)


def png(width: int, height: int) -> bytes:
    """A black PNG of any size: a kilobyte for a megabyte of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    # a byte that names the filter before each row
    body = _deflated_zeros(height * (1 + 3 * width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _deflated_zeros(count: int) -> bytes:
    """What zlib makes of so many zeros, without walking through them: one block, again and again."""
    whole, rest = divmod(count, 1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = packer.compress(bytes(rest)) + packer.flush()
    # Adler-32 of zeros: the first sum stays 1, the second counts the bytes
    return b"\x78\xda" + block * whole + tail + struct.pack(">HH", count % 65521, 1)


def _lies(folder: Path, *, mp4: bytes, ts: bytes) -> dict[str, bytes]:
    larger = folder / "larger.ts"
    encode(larger, f"{X264} -f mpegts", raw_video(ALL, height=240, width=320), size=(320, 240))
    size_changes = ts + larger.read_bytes()
    larger.unlink()
    ten_days = patched(mp4, b"mvhd", 20, (864_000_000,))
    return {
        "no_key_at_start.ts": ts[len(ts) // 3 // 188 * 188 :],
        "size_changes.ts": size_changes,
        "twice.ts": ts + ts,
        "declared_65535.mp4": patched(mp4, b"avc1", 28, (65535, 65535), "H"),
        "ten_days.mp4": patched(ten_days, b"mdhd", 20, (864_000 * 12800 % 2**32,), "I"),
        "stts_lies.mp4": patched(mp4, b"stts", 12, (431,)),
        # FFmpeg finds the index in there
        "moov_in_free.mp4": mp4.replace(b"moov", b"free"),
    }


def _others() -> dict[str, bytes]:
    return {
        # a sample table of a few bytes that claims 2^30 pictures
        "index_bomb.mov": _quicktime(b"raw ", 24, bytes(16 * 16 * 3), num_samples=1 << 30),
        # the picture is a thousand times as large as the header says
        "png_inside.mov": _quicktime(b"png ", 24, png(16_000, 16_000), num_samples=1),
        "png_bomb.png": png(16_000, 16_000),
        "gif_bomb.gif": _gif_bomb(),
        "empty.mp4": b"",
        "text.mp4": b"this is not a video\n" * 200,
        "page.mp4": b"<html><body>404 Not Found</body></html>" * 20,
        "zeros.mp4": bytes(1 << 20),
        "random.mp4": random.Random(7).randbytes(1 << 18),
    }


def _before_moov(mp4: bytes) -> bytes:
    return mp4[: mp4.index(b"moov") - 4]


def _quicktime(codec: bytes, depth: int, sample: bytes, *, num_samples: int) -> bytes:
    """A track of 16 x 16 pixels at 25 Hz, all of whose samples are said to be of this one's size."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I", 8 + len(body)) + kind + body

    def full(kind: bytes, *numbers: int) -> bytes:
        return box(kind, struct.pack(f">{1 + len(numbers)}I", 0, *numbers))

    begin = box(b"ftyp", b"qt  ", bytes(4), b"qt  ")
    entry = bytes(6) + struct.pack(">H16xHHIIIH", 1, 16, 16, 72 << 16, 72 << 16, 0, 1)
    entry += bytes(32) + struct.pack(">Hh", depth, -1)
    table = box(
        b"stbl",
        box(b"stsd", struct.pack(">II", 0, 1), box(codec, entry)),
        full(b"stts", 1, num_samples, 1),
        full(b"stsc", 1, 1, num_samples, 1),
        full(b"stsz", len(sample), num_samples),
        full(b"stco", 1, len(begin) + 8),
    )
    media = box(
        b"mdia",
        full(b"mdhd", 0, 0, 25, num_samples, 0),
        box(b"hdlr", bytes(4), b"mhlrvide", bytes(13)),
        box(b"minf", full(b"vmhd", 0, 0), table),
    )
    track = box(b"trak", full(b"tkhd", 0, 0, 1, 0, *[0] * 15), media)
    movie = full(b"mvhd", 0, 0, 25, num_samples, 1 << 16, *[0] * 20)
    return begin + box(b"mdat", sample) + box(b"moov", movie, track)


def _gif_bomb() -> bytes:
    """Some bytes that ask for a screen of 65535 x 65535."""
    screen = struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    image = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + bytes([2, 2, 0x4C, 1, 0])
    return b"GIF89a" + screen + image + b";"
