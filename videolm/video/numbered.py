"""Small video files of many kinds in which every frame carries its number as a bar code.

Whoever reads such a file sees which frame it got. The kinds are those that decoders are known to differ on.
"""

from __future__ import annotations

import itertools
import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

HEIGHT, WIDTH, FRAMES, FPS = 64, 96, 48, 24
GOP = 12
_BAR = 16
_CLOSED = {"preset": "ultrafast", "g": str(GOP)}
_B_FRAMES = {"preset": "veryfast", "g": str(GOP), "bf": "3"}
# a step of every length, in units of 1/900 s
_UNEVEN = [0, *itertools.accumulate(itertools.islice(itertools.cycle([30, 45, 11, 90, 300]), FRAMES - 1))]
# the matrix of a track header that shows the picture mirrored left to right
_MIRROR = [-65536, 0, 0, 0, 65536]


def numbered(
    num_frames: int = FRAMES, *, height: int = HEIGHT, width: int = WIDTH, first: int = 0
) -> Iterator[NDArray[np.uint8]]:
    """Frames with a moving pattern and, in the top rows, 8 blocks of which block k is bright for bit k."""
    rows, columns = np.mgrid[:height, :width]
    block = columns[0] * 8 // width
    for number in range(first, first + num_frames):
        wave = 128 + 100 * np.sin((columns + 3 * number) / 9) * np.cos((rows - 2 * number) / 7)
        frame = np.stack([wave, wave[::-1], 255 - wave], axis=-1).astype(np.uint8)
        frame[: height * _BAR // HEIGHT] = np.where(number >> block & 1, 235, 16)[None, :, None]
        yield frame


def read_number(frame: Tensor) -> int:
    """The number in the bar code of an upright (height, width, 3) frame of any size, modulo 256."""
    height, width = frame.shape[:2]
    rows = frame[1 : max(2, height * _BAR // HEIGHT // 2), :, 1].float()
    bits = [rows[:, (2 * k + 1) * width // 16].mean() > 126 for k in range(8)]
    return sum(1 << k for k, bit in enumerate(bits) if bit)


def encode(
    path: Path,
    codec: str,
    *,
    pts: Sequence[int] | None = None,
    rate: Fraction | int = FPS,
    time_base: Fraction | None = None,
    num_frames: int = FRAMES,
    first: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    store: Callable[[Any], Any] = lambda array: array,
    options: Mapping[str, str] | None = None,
    muxer_options: Mapping[str, str] | None = None,
) -> Path:
    """Write numbered frames with any encoder; `pts` are in units of `time_base` (by default 1 / rate).

    `store` makes the stored picture from the upright one, `rotation` is what the file says about it (degrees
    counter-clockwise).
    """
    options = {"threads": "1", **(options or {})}
    with av.open(str(path), "w", options=dict(muxer_options or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = store(np.zeros(size)).shape
        stream.pix_fmt = pix_fmt
        base = time_base or 1 / Fraction(rate)
        stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        for index, array in enumerate(numbered(num_frames, height=size[0], width=size[1], first=first)):
            stored = np.ascontiguousarray(store(array))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format=pix_fmt)
            frame.pts = first + index if pts is None else pts[index]
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def patched(path: Path, out: Path, tag: bytes, offset: int, values: Sequence[int]) -> Path:
    """A copy of an mp4 with big-endian 32-bit values written `offset` bytes after the name of a box."""
    data = bytearray(path.read_bytes())
    at = data.index(tag) + len(tag) + offset
    struct.pack_into(f">{len(values)}i", data, at, *values)
    out.write_bytes(data)
    return out


def _patch(out: Path, tag: bytes, offset: int, values: Sequence[int], **encoding: Any) -> None:
    whole = encode(out.with_name(f"whole_{out.name}"), "libx264", **encoding)
    patched(whole, out, tag, offset, values)
    whole.unlink()


def _without_first_packets(out: Path, *, num_packets: int) -> None:
    whole = encode(out.with_name(f"whole_{out.name}"), "libx264", options=_B_FRAMES)
    with av.open(str(whole)) as source, av.open(str(out), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in itertools.islice(source.demux(video=0), num_packets, None):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    whole.unlink()


def _two_sizes(out: Path) -> None:
    half = FRAMES // 2
    one = encode(out.with_name(f"one_{out.name}"), "libx264", num_frames=half, options=_CLOSED)
    size = (2 * HEIGHT, 2 * WIDTH)
    other = encode(
        out.with_name(f"other_{out.name}"), "libx264", num_frames=half, first=half, size=size, options=_CLOSED
    )
    out.write_bytes(one.read_bytes() + other.read_bytes())
    one.unlink()
    other.unlink()


def _sound(out: Path) -> None:
    with av.open(str(out), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _av1(out: Path) -> None:
    # the encoder writes a page on the error stream unless this variable tells it not to
    before = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = "0"
    try:
        encode(out, "libsvtav1", options={"preset": "10", "svtav1-params": f"keyint={GOP}:lp=1"})
    finally:
        del os.environ["SVT_LOG"]
        if before is not None:
            os.environ["SVT_LOG"] = before


@dataclass(frozen=True)
class Kind:
    """One kind of file: how to make it, and which frame is to be seen when."""

    name: str
    file: str
    make: Callable[[Path], object]
    numbers: Sequence[int] = range(FRAMES)
    """Of the frames that are shown, in the order of showing."""
    seconds: Sequence[float] = field(default_factory=lambda: [k / FPS for k in range(FRAMES)])
    """When each is shown, counted from the first, to a millisecond."""
    readable: bool = True
    """False: a reader that gives all of these frames does not exist, so it must refuse."""

    def number_at(self, seconds: float) -> int:
        """The number that is shown so many seconds after the first frame."""
        return self.numbers[max(bisect_right(self.seconds, seconds), 1) - 1]


def _kind(name: str, file: str, codec: str, *, rate: int = FPS, **encoding: Any) -> Kind:
    make = partial(encode, codec=codec, rate=rate, **encoding)
    return Kind(name, file, make, seconds=[k / rate for k in range(FRAMES)])


def _h264(name: str, file: str, options: Mapping[str, str] = _B_FRAMES, **encoding: Any) -> Kind:
    return _kind(name, file, "libx264", options=options, **encoding)


def _cut(name: str, file: str, *, num_hidden: int) -> Kind:
    # 512 units are a frame, and the first one is shown at 1024: two frames wait for their references
    begin = 1024 + 512 * num_hidden
    return Kind(
        name,
        file,
        lambda out: _patch(out, b"elst", 12, [begin], options=_B_FRAMES),
        range(num_hidden, FRAMES),
        [k / FPS for k in range(FRAMES - num_hidden)],
    )


def kinds() -> list[Kind]:
    """All kinds, from the plain ones to those that only exist to be refused."""
    x265 = "log-level=none:pools=1:frame-threads=1:bframes=3"
    vpx = {"deadline": "realtime", "cpu-used": "8", "g": str(GOP)}
    hidden = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5", "g": "24"}
    return [
        _h264("H.264", "constant.mp4", _CLOSED),
        _h264("H.264, B-frames", "b_frames.mp4"),
        _h264("H.264, B-frames, one key frame", "one_key.mp4", {**_B_FRAMES, "g": "250"}),
        _h264("H.264, open groups", "open_gop.mp4", {**_B_FRAMES, "x264-params": "open-gop=1"}),
        _h264("H.264, intra refresh", "refresh.mkv", {**_CLOSED, "x264-params": "intra-refresh=1"}),
        Kind(
            "H.264, variable rate",
            "uneven.mp4",
            partial(encode, codec="libx264", pts=_UNEVEN, time_base=Fraction(1, 900), options=_B_FRAMES),
            seconds=[pts / 900 for pts in _UNEVEN],
        ),
        _h264("H.264, 10 bits", "ten_bit.mp4", _CLOSED, pix_fmt="yuv420p10le"),
        _h264("H.264, matroska, starts late", "late.mkv", pts=[k + 50 for k in range(FRAMES)]),
        _h264("H.264, MPEG-TS", "transport.ts"),
        _h264("H.264, AVI (no times)", "h264.avi"),
        _h264("rotated by 90", "rotated90.mov", _CLOSED, rotation=90, store=lambda a: np.rot90(a, -1)),
        _h264("rotated by 180", "rotated180.mp4", _CLOSED, rotation=180, store=lambda a: np.rot90(a, 2)),
        _h264("rotated by 270", "rotated270.mp4", _CLOSED, rotation=270, store=lambda a: np.rot90(a, 1)),
        Kind(
            "mirrored",
            "mirrored.mp4",
            lambda out: _patch(out, b"tkhd", 40, _MIRROR, store=lambda a: a[:, ::-1], options=_CLOSED),
        ),
        _cut("edit list", "edit_list.mp4", num_hidden=17),
        _cut("edit list, a key frame cut off", "edit_list_late.mp4", num_hidden=33),
        Kind(
            "half the frames before time 0",
            "before_zero.mp4",
            partial(
                encode,
                codec="mpeg4",
                pts=[k - FRAMES // 2 for k in range(FRAMES)],
                options={"g": str(GOP), "qscale": "3"},
                muxer_options={"avoid_negative_ts": "disabled"},
            ),
            range(FRAMES // 2, FRAMES),
            [k / FPS for k in range(FRAMES // 2)],
        ),
        Kind(
            "no key frame at the start",
            "no_first_key.ts",
            partial(_without_first_packets, num_packets=5),
            range(GOP, FRAMES),
            [k / FPS for k in range(FRAMES - GOP)],
        ),
        Kind(
            "one frame",
            "one_frame.mp4",
            partial(encode, codec="libx264", num_frames=1, options=_CLOSED),
            [0],
            [0.0],
        ),
        _kind("odd sides", "odd.mkv", "ffv1", size=(61, 93), pix_fmt="yuv444p"),
        _kind(
            "HEVC, open groups",
            "open_gop_hevc.mp4",
            "libx265",
            options={"preset": "ultrafast", "x265-params": f"{x265}:keyint={GOP}:open-gop=1"},
        ),
        _kind(
            "HEVC, closed groups",
            "hevc.mkv",
            "libx265",
            options={"preset": "ultrafast", "x265-params": f"{x265}:keyint={GOP}:open-gop=0"},
        ),
        Kind("AV1", "av1.mkv", _av1),
        _kind("VP9, webm", "vp9.webm", "libvpx-vp9", options=vpx),
        _kind("VP9, mp4", "vp9.mp4", "libvpx-vp9", options=vpx),
        _kind("VP8, hidden frames", "vp8.webm", "libvpx", options=hidden),
        _kind("MPEG-4", "mpeg4.mp4", "mpeg4", options={"g": str(GOP), "bf": "2"}),
        _kind("MPEG-4, AVI", "mpeg4.avi", "mpeg4", options={"g": str(GOP), "qscale": "3"}),
        _kind("MPEG-4, AVI (no times)", "mpeg4_b.avi", "mpeg4", options={"g": str(GOP), "bf": "2"}),
        _kind("MPEG-2, MPEG-PS", "program.mpg", "mpeg2video", rate=25, options={"g": str(GOP), "bf": "2"}),
        _kind("MJPEG, AVI", "mjpeg.avi", "mjpeg", pix_fmt="yuvj420p"),
        _kind("MJPEG, mov", "mjpeg.mov", "mjpeg", pix_fmt="yuvj420p"),
        _kind("Flash video", "flash.flv", "flv", options={"g": str(GOP)}),
        _kind("GIF", "animated.gif", "gif", rate=25, pix_fmt="rgb8"),
        Kind("size change in mid-stream", "two_sizes.ts", _two_sizes, readable=False),
        Kind("sound only", "sound.mp4", _sound, (), (), readable=False),
    ]
