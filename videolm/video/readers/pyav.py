"""The careful reader, right for every file it does not refuse: PyAV, times checked on what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import torch
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from torch import Tensor

from videolm.types import Clip, VideoInfo
from videolm.video.readers.collect import collect
from videolm.video.readers.guard import GuardedFile, Limits, VideoError, open_guarded, wrap_errors
from videolm.video.readers.probe import (
    Orientation,
    Probe,
    open_container,
    packets_from_first_key,
    probe,
    video_stream,
    with_square_pixels,
)

NAME = "pyav"
# Without them swscale is faster and off by up to 80 of 255 at edges of colour.
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int"
# The filters of each number of quarter turns counter-clockwise.
_TURNS: list[list[str]] = [[], ["transpose=cclock"], ["hflip", "vflip"], ["transpose=clock"]]
# A shorter walk is decoded in order: that cannot go wrong, and a seek saves little.
_MIN_WALK_TO_SEEK = 500
# Containers with an index of their key frames.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


def version() -> str:
    """Of PyAV and of the FFmpeg inside it."""
    return f"{av.__version__} (FFmpeg {av.ffmpeg_version_info})"


def open_reader(path: str, *, limits: Limits, square_pixels: bool) -> PyAVReader:
    """Check the file, walk its packets once, and leave it ready to be asked for frames."""
    file = open_guarded(path, limits=limits, decoder=NAME)
    try:
        with wrap_errors(path, "open", NAME):
            found = probe(file)
        return PyAVReader(file, with_square_pixels(found) if square_pixels else found)
    except BaseException:
        file.close()
        raise


class PyAVReader:
    """See VideoReader. Decodes in order, or from key frames where that is shorter and proved to be right."""

    def __init__(self, file: GuardedFile, found: Probe) -> None:
        self._file = file
        self._probe = found
        self._is_open = True

    @property
    def info(self) -> VideoInfo:
        """What the first pass found."""
        return self._probe.info

    @property
    def pts_seconds(self) -> Float[Tensor, " n"]:
        """All times at which a new frame is shown."""
        return self._probe.pts_seconds()

    def frames_at(
        self, seconds: Sequence[float] | Float[Tensor, " frames"], *, size: int | None = None
    ) -> Clip:
        """The frames shown at these moments; see VideoReader."""
        return collect(self._probe, seconds, size=size, limits=self._file.limits, pictures=self._pictures)

    def close(self) -> None:
        """Give the file back; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._file.close()

    def __enter__(self) -> PyAVReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pictures(self, wanted: Sequence[int]) -> Iterator[tuple[int, UInt8[Tensor, "height width 3"]]]:
        """The decoded pictures of these frames (ascending, each once), turned upright."""
        if not self._is_open:
            raise ValueError(f"{self.info.path}: the reader is closed")
        with (
            wrap_errors(self.info.path, "decode", NAME),
            open_container(self._file) as container,
        ):
            stream = video_stream(container, self._file)
            seeking = self._seeks_pay(wanted) and self._seeks_are_right()
            walk = self._walk_by_keys if seeking else self._walk_in_order
            for index, frame in walk(container, stream, wanted):
                if frame.is_corrupt:
                    reason = f"the frame at {self._probe.seconds(index):.6f} s is damaged"
                    raise self._file.refusal(reason, stage="decode")
                yield index, to_rgb(frame, self._probe.orientation)

    def _walk_in_order(
        self, container: InputContainer, stream: VideoStream, wanted: Sequence[int]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """From the start of the file."""
        counted = self.info.times == "counted"
        self._check_walk(self.info.num_frames if counted else wanted[-1] + 1)
        yield from self._pick(self._decode(container, stream), wanted)

    def _walk_by_keys(
        self, container: InputContainer, stream: VideoStream, wanted: Sequence[int]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """From the last key frame before each group of wanted frames."""
        self._check_walk(self._walk_length_by_keys(wanted))
        for key, group in self._by_key(wanted):
            container.seek(self._probe.pts[key], stream=stream)
            yield from self._pick(self._decode(container, stream, after_seek_to=key), group)

    def _check_walk(self, num_frames: int) -> None:
        allowed = self._file.limits.max_walked_frames
        if num_frames > allowed:
            reason = (
                f"{allowed:,} frames may be decoded in one call (max_walked_frames), {num_frames:,} needed"
            )
            raise self._file.refusal(reason, stage="decode")

    def _decode(
        self, container: InputContainer, stream: VideoStream, *, after_seek_to: int | None = None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """(time in units of the probe, frame) of everything from here on, ascending."""
        counted = self.info.times == "counted"
        before: int | None = None
        for number, frame in enumerate(
            frame for packet in packets_from_first_key(container, stream) for frame in packet.decode()
        ):
            pts = number if counted else frame.pts
            if pts is None:
                raise self._file.refusal("a decoded frame has no presentation time", stage="decode")
            if before is None and after_seek_to is not None and pts > self._probe.pts[after_seek_to]:
                reason = f"a seek to {self._probe.seconds(after_seek_to):.6f} s went too far"
                raise self._file.refusal(reason, stage="decode")
            if before is not None and pts <= before:
                at = float(pts * self._probe.time_base)
                reason = f"presentation times do not ascend: {at:.6f} s comes back too late"
                raise self._file.refusal(reason, stage="decode")
            before = pts
            if (frame.height, frame.width) != self._probe.stored_size:
                height, width = self._probe.stored_size
                at = float(pts * self._probe.time_base)
                reason = (
                    f"the picture is {width}x{height} at first and {frame.width}x{frame.height} at {at:.6f} s"
                )
                raise self._file.refusal(reason, stage="decode")
            yield pts, frame

    def _pick(
        self, decoded: Iterator[tuple[int, VideoFrame]], wanted: Sequence[int]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Of the decoded frames the wanted ones, each with exactly its time; an error if one is missing."""
        missing = {self._probe.pts[index]: index for index in wanted}
        # counted frames are only known by their number if none of the whole file is lost
        last = self._probe.pts[-1 if self.info.times == "counted" else wanted[-1]]
        pts = -1
        for pts, frame in decoded:
            if pts in missing:
                yield missing.pop(pts), frame
            if pts >= last:
                break
        if self.info.times == "counted" and pts != last:
            reason = (
                f"{pts + 1} frames come out of {last + 1} packets that have no times: which is which is lost"
            )
            raise self._file.refusal(reason, stage="decode")
        if missing:
            at = self._probe.seconds(min(missing.values()))
            reason = f"the frame at {at:.6f} s does not come out of the decoder"
            raise self._file.refusal(reason, stage="decode")

    def _by_key(self, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Wanted frames grouped by the key frame that decoding has to start from."""
        groups: dict[int, list[int]] = {}
        keys = self._probe.key_indices
        position = 0
        for index in wanted:
            while position + 1 < len(keys) and keys[position + 1] <= index:
                position += 1
            groups.setdefault(keys[position], []).append(index)
        return list(groups.items())

    def _walk_length_by_keys(self, wanted: Sequence[int]) -> int:
        return sum(group[-1] - key + 1 for key, group in self._by_key(wanted))

    def _seeks_pay(self, wanted: Sequence[int]) -> bool:
        keys = self._probe.key_indices
        can_seek = self.info.container in _SEEKABLE and len(keys) > 1 and keys[0] == 0
        if not can_seek or wanted[-1] < _MIN_WALK_TO_SEEK:
            return False
        proof = keys[1] + 1
        return proof + self._walk_length_by_keys(wanted) < wanted[-1] / 2

    def _seeks_are_right(self) -> bool:
        """Whether the second key frame is the same picture after a seek as when decoded in order.

        Some files keep what later key frames need only at their start: after a seek such a file can give a
        picture of the right time in wrong colours.
        """
        key = self._probe.key_indices[1]
        pictures = []
        try:
            for walk in (self._walk_in_order, self._walk_by_keys):
                with wrap_errors(self.info.path, "decode", NAME), open_container(self._file) as container:
                    stream = video_stream(container, self._file)
                    pictures += [to_rgb(frame, Orientation()) for _, frame in walk(container, stream, [key])]
        except VideoError:
            # not swallowed: the walk in order that follows says what is wrong, if more than the seek is
            return False
        return torch.equal(*pictures)


def to_rgb(frame: VideoFrame, orientation: Orientation) -> UInt8[Tensor, "height width 3"]:
    """The picture as it is shown: bit for bit what the ffmpeg program gives with the same flags."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    filters = (["hflip"] if orientation.mirrored else []) + _TURNS[orientation.turns]
    filters += [f"scale=flags={_SCALE_FLAGS}", "format=rgb24"]
    nodes = [graph.add(name, args or None) for name, _, args in (text.partition("=") for text in filters)]
    graph.link_nodes(source, *nodes, graph.add("buffersink"))
    graph.configure()
    graph.vpush(frame)
    return torch.from_numpy(graph.vpull().to_ndarray())
