"""One pass over the packets of a file: which presentation times exist, and how the picture is to be shown."""

from __future__ import annotations

import bisect
import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import av
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Float
from torch import Tensor

from videolm.types import VideoInfo
from videolm.video.readers.guard import GuardedFile, VideoError

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,gif,flv,ogg"
# An asked time may be the result of a division: a microsecond early is on time.
TOLERANCE_SECONDS = 1e-6


@dataclass(frozen=True)
class Orientation:
    """How a stored picture is turned: mirrored left to right, then by quarter turns counter-clockwise."""

    mirrored: bool = False
    turns: int = 0

    def apply(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the picture as it is shown."""
        return (width, height) if self.turns % 2 else (height, width)


@dataclass(frozen=True)
class Probe:
    """What the packets say. `pts` are the times of all frames that can be shown, ascending."""

    info: VideoInfo
    pts: Sequence[int]
    """In units of time_base. Where times are counted: 0, 1, 2, ..."""
    time_base: Fraction
    key_indices: Sequence[int]
    """Positions in `pts` of the frames from which decoding can start."""
    has_open_groups: bool
    """Frames that are shown before a key frame may follow it in the file, and need what was before it."""
    num_hidden: int
    """Packets whose frames are cut off by an edit list."""
    stored_size: tuple[int, int]
    """(height, width) of the decoded picture, before it is turned."""
    orientation: Orientation
    stream_index: int
    """Of the video stream in the file."""
    end_pts: int
    """End of the last frame, in units of time_base."""

    def seconds(self, index: int) -> float:
        """Presentation time of a frame."""
        return float(self.pts[index] * self.time_base)

    def pts_seconds(self) -> Float[Tensor, " n"]:
        """The presentation times of all frames."""
        return torch.tensor([self.seconds(index) for index in range(len(self.pts))], dtype=torch.float64)

    def key_pts_seconds(self) -> Float[Tensor, " n"]:
        """The presentation times of the frames from which decoding can start; of the first if none is shown."""
        return torch.tensor([self.seconds(index) for index in self.key_indices or [0]], dtype=torch.float64)

    def index_at(self, seconds: float) -> int:
        """The frame that is shown at a moment: the last whose time is not later."""
        end = self.end_pts * self.time_base
        info = self.info
        if not info.start_seconds - TOLERANCE_SECONDS <= seconds <= end + TOLERANCE_SECONDS:
            reason = (
                f"asked for {seconds} s, the video goes from {info.start_seconds:.6f} to {float(end):.6f} s"
            )
            raise VideoError(info.path, "decode", reason, info.decoder)
        latest = math.floor((Fraction(seconds) + Fraction(TOLERANCE_SECONDS)) / self.time_base)
        return max(bisect.bisect_right(self.pts, latest) - 1, 0)


def open_container(file: GuardedFile) -> InputContainer:
    """The file in FFmpeg, which may neither follow it elsewhere nor accept a picture over the limit."""
    options = {
        "format_whitelist": _FORMATS,
        "protocol_whitelist": "file",
        **_decoder_limit(file),
    }
    # a title that is not UTF-8 is no reason to refuse a video
    return av.open(file.source, "r", options=options, metadata_errors="replace")


def video_stream(container: InputContainer, file: GuardedFile) -> VideoStream:
    """The first moving picture of the file, with the pixel limit set in its decoder."""
    if len(container.streams) > file.limits.max_streams:
        raise file.refusal(
            f"{file.limits.max_streams} streams allowed (max_streams), {len(container.streams)} found"
        )
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise file.refusal("there is no video stream in the file")
    stream = streams[0]
    # typed as always there, but missing where FFmpeg knows no decoder
    codec_context: Any = stream.codec_context
    if codec_context is None:
        raise file.refusal("no decoder for the codec of the video stream")
    check_pixels(codec_context.width, codec_context.height, file)
    codec_context.options = _decoder_limit(file)
    # several files are decoded at once by several workers; more threads a file only cost
    codec_context.thread_count = 1
    return stream


def _decoder_limit(file: GuardedFile) -> dict[str, str]:
    # the decoder counts its padding too; check_pixels holds the exact limit
    return {"max_pixels": str(2 * file.limits.max_pixels)}


def check_pixels(width: int, height: int, file: GuardedFile) -> None:
    """Refuse a picture that is larger than the limit."""
    if width * height > file.limits.max_pixels:
        found = f"{width * height / 1e6:.1f} M found ({width}x{height})"
        raise file.refusal(f"{file.limits.max_pixels / 1e6:.1f} M pixels allowed (max_pixels), {found}")


def check_shape(shape: Sequence[int], index: int, found: Probe, file: GuardedFile) -> None:
    """Refuse an upright picture of another (height, width) than the first one of the file."""
    height, width = found.orientation.apply(*found.stored_size)
    if tuple(shape) != (height, width):
        at = found.seconds(index)
        reason = f"the picture is {width}x{height} at first and {shape[1]}x{shape[0]} at {at:.6f} s"
        raise file.refusal(reason, stage="decode")


def packets_from_first_key(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The packets of a stream from its first key frame on, with the empty one at the end."""
    started = False
    for packet in container.demux(stream):
        started = started or packet.is_keyframe
        if started or not packet.size:
            yield packet


def shows_frame(packet: Packet[VideoStream]) -> bool:
    """Whether a packet with data is for a frame that is shown, and not only for others to refer to."""
    # VP8: bit 4 of a frame says so; elsewhere a packet holds a shown frame
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def probe(file: GuardedFile) -> Probe:
    """Walk all packets, decode no more than the first frame, and say what can be shown and when."""
    with open_container(file) as container:
        stream = video_stream(container, file)
        first, shown, num_hidden = _read(container, stream, file)
        times, pts = _times(container, stream, first, shown, file)
        if times == "counted":
            time_base, keys = 1 / _constant_rate(stream, file), [0]
            end_pts = len(pts)
        else:
            assert stream.time_base is not None
            time_base = stream.time_base
            key_pts = {packet.pts for packet in shown if packet.is_keyframe}
            keys = [index for index, value in enumerate(pts) if value in key_pts]
            end_pts = pts[-1] + _last_duration(stream, shown, pts, time_base)
        start, last = float(pts[0] * time_base), float(pts[-1] * time_base)
        duration = float((end_pts - pts[0]) * time_base)
        if duration > file.limits.max_duration_seconds:
            allowed = f"{file.limits.max_duration_seconds:.0f} s allowed (max_duration_seconds)"
            raise file.refusal(f"{allowed}, {duration:.0f} s found")
        check_pixels(first.width, first.height, file)
        orientation = _orientation(first, file)
        height, width = orientation.apply(first.height, first.width)
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        info = VideoInfo(
            path=file.path,
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=width,
            height=height,
            rotation=90 * orientation.turns,
            pixel_aspect=float(aspect) if aspect else 1.0,
            num_frames=len(pts),
            fps=len(pts) / duration,
            start_seconds=start,
            last_seconds=last,
            duration_seconds=duration,
            times=times,
            decoder=file.decoder,
        )
        stored_size = (first.height, first.width)
        index = stream.index
    return Probe(
        info=info,
        pts=pts,
        time_base=time_base,
        key_indices=keys,
        has_open_groups=_has_open_groups(shown),
        num_hidden=num_hidden,
        stored_size=stored_size,
        orientation=orientation,
        stream_index=index,
        end_pts=end_pts,
    )


def with_square_pixels(found: Probe) -> Probe:
    """The same file, shown as wide as its pixel aspect says."""
    aspect = found.info.pixel_aspect
    if found.orientation.turns % 2:
        return replace(found, info=replace(found.info, height=max(1, round(found.info.height * aspect))))
    return replace(found, info=replace(found.info, width=max(1, round(found.info.width * aspect))))


@dataclass(frozen=True)
class _Shown:
    """The part of a packet that is kept."""

    pts: int | None
    duration: int
    is_keyframe: bool


def _read(
    container: InputContainer, stream: VideoStream, file: GuardedFile
) -> tuple[VideoFrame, list[_Shown], int]:
    """The first frame that decodes, the packets that show a frame, and how many are cut off."""
    first: VideoFrame | None = None
    shown: list[_Shown] = []
    num_hidden = 0
    for packet in packets_from_first_key(container, stream):
        if first is None:
            first = next((frame for frame in packet.decode() if not frame.is_corrupt), None)
        if not packet.size:
            continue
        if len(shown) + num_hidden >= file.limits.max_packets:
            raise file.refusal(f"{file.limits.max_packets:,} packets allowed (max_packets), more found")
        if packet.is_discard:
            num_hidden += 1
        elif shows_frame(packet):
            shown.append(_Shown(packet.pts, packet.duration or 0, packet.is_keyframe))
    if first is None or not shown:
        raise file.refusal("no frame of the video stream can be decoded")
    return first, shown, num_hidden


def _times(
    container: InputContainer,
    stream: VideoStream,
    first: VideoFrame,
    shown: list[_Shown],
    file: GuardedFile,
) -> tuple[Literal["stored", "counted"], Sequence[int]]:
    missing = sum(packet.pts is None for packet in shown)
    # AVI stores no presentation times: with B-frames those that FFmpeg makes up are in decoding order
    in_avi = container.format.name == "avi"
    if missing == len(shown) or (in_avi and (missing or stream.codec_context.has_b_frames)):
        return "counted", range(len(shown))
    if missing or first.pts is None:
        raise file.refusal(f"{missing} of {len(shown)} packets have no presentation time")
    # frames before the first one that decodes belong to a group of pictures that is cut off
    counts = Counter(packet.pts for packet in shown if packet.pts is not None and packet.pts >= first.pts)
    if not counts:
        raise file.refusal("the first frame comes later than every packet")
    value, count = max(counts.items(), key=lambda item: item[1])
    if count > 1:
        assert stream.time_base is not None
        raise file.refusal(
            f"presentation times repeat ({float(value * stream.time_base):.6f} s {count} times)"
        )
    return "stored", sorted(counts)


def _has_open_groups(shown: list[_Shown]) -> bool:
    key: int | None = None
    for packet in shown:
        if packet.is_keyframe:
            key = packet.pts
        elif key is not None and packet.pts is not None and packet.pts < key:
            return True
    return False


def _constant_rate(stream: VideoStream, file: GuardedFile) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise file.refusal("the file has neither presentation times nor a frame rate")
    return rate


def _last_duration(stream: VideoStream, shown: list[_Shown], pts: Sequence[int], time_base: Fraction) -> int:
    """How long the last frame is shown; as long as the one before where the file does not say."""
    stored = next((packet.duration for packet in shown if packet.pts == pts[-1]), 0)
    if stored > 0:
        return stored
    if len(pts) > 1:
        return pts[-1] - pts[-2]
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return max(1, round(1 / rate / time_base))


def _orientation(frame: VideoFrame, file: GuardedFile) -> Orientation:
    side_data: Any = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = struct.unpack("5i", bytes(matrix)[:20])
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    degrees = -math.degrees(math.atan2(b, a))
    turns = round(degrees / 90)
    if abs(degrees - 90 * turns) > 1:
        raise file.refusal(
            f"the picture is rotated by {degrees:.0f} degrees; only multiples of 90 can be shown"
        )
    return Orientation(mirrored, turns % 4)
