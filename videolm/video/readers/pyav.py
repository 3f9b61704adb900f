"""The careful reader, right for every file it does not refuse: PyAV, times checked on what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial

import av
import torch
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from videolm.video.readers.collect import ProbedReader
from videolm.video.readers.guard import GuardedFile, Limits, VideoError, open_guarded, wrap_errors
from videolm.video.readers.probe import (
    Orientation,
    Probe,
    check_shape,
    open_container,
    probe,
    video_stream,
    with_square_pixels,
)
from videolm.video.readers.walks import in_order, needed_only, num_decoded, restarts_need_proof

NAME = "pyav"
# Without them swscale is faster and off by up to 80 of 255 at edges of colour.
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int"
# The filters of each number of quarter turns counter-clockwise.
_TURNS: list[list[str]] = [[], ["transpose=cclock"], ["hflip", "vflip"], ["transpose=clock"]]

Walk = Callable[
    [InputContainer, VideoStream, Probe, Sequence[int], GuardedFile], Iterator[tuple[int, VideoFrame]]
]
"""One way to go through a file: `walks.in_order`, or `walks.needed_only` with its choice made."""


def version() -> str:
    """Of PyAV and of the FFmpeg inside it."""
    return f"{av.__version__} (FFmpeg {av.ffmpeg_version_info})"


def open_reader(path: str, *, limits: Limits, square_pixels: bool) -> ProbedReader:
    """Check the file, walk its packets once, and leave it ready to be asked for frames."""
    file = open_guarded(path, limits=limits, decoder=NAME)
    try:
        with wrap_errors(path, "open", NAME):
            found = probe(file)
        return ProbedReader(
            file, with_square_pixels(found) if square_pixels else found, CarefulPictures(file, found)
        )
    except BaseException:
        file.close()
        raise


class CarefulPictures:
    """The pictures of one file. Goes the short way while that keeps its word, and the whole way after."""

    def __init__(self, file: GuardedFile, found: Probe) -> None:
        self._file = file
        self._probe = found
        # counted frames are only known by their number in the whole file
        self.takes_short_way = found.info.times == "stored"
        self.restarts_proved: bool | None = None if restarts_need_proof(found) else True

    def __call__(self, wanted: Sequence[int]) -> Iterator[tuple[int, UInt8[Tensor, "height width 3"]]]:
        """The decoded pictures of these frames (ascending, each once), turned upright."""
        left = list(wanted)
        if self.takes_short_way:
            restarts = self._restarts(left)
            self._check_length(num_decoded(self._probe, left, restarts=restarts))
            try:
                for index, frame in self._walk(partial(needed_only, restarts=restarts), list(left)):
                    yield index, self._picture(frame, index)
                    left.remove(index)
            except VideoError:
                # not swallowed: the walk in order that follows says what is wrong, if more than the way is
                self.takes_short_way = False
                if self._whole_length(left) > self._file.limits.max_walked_frames:
                    raise
        if left:
            self._check_length(self._whole_length(left))
            for index, frame in self._walk(in_order, left):
                yield index, self._picture(frame, index)

    def _walk(self, walk: Walk, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        with wrap_errors(self._file.path, "decode", NAME), open_container(self._file) as container:
            yield from walk(container, video_stream(container, self._file), self._probe, wanted, self._file)

    def _picture(self, frame: VideoFrame, index: int) -> UInt8[Tensor, "height width 3"]:
        orientation = self._probe.orientation
        check_shape(orientation.apply(frame.height, frame.width), index, self._probe, self._file)
        with wrap_errors(self._file.path, "decode", NAME):
            return to_rgb(frame, orientation)

    def _whole_length(self, wanted: Sequence[int]) -> int:
        return wanted[-1] + 1 + self._probe.num_hidden if wanted else 0

    def _check_length(self, num_frames: int) -> None:
        allowed = self._file.limits.max_walked_frames
        if num_frames > allowed:
            reason = (
                f"{allowed:,} frames may be decoded in one call (max_walked_frames), {num_frames:,} needed"
            )
            raise self._file.refusal(reason, stage="decode")

    def _restarts(self, wanted: Sequence[int]) -> bool:
        """Whether to start from key frames: they are known to be right, or are once that is worth a proof."""
        keys = self._probe.key_indices
        if self.restarts_proved is None and len(keys) > 1 and keys[0] == 0:
            by_keys, from_start = (num_decoded(self._probe, wanted, restarts=r) for r in (True, False))
            if keys[1] + 2 + by_keys < from_start / 2:
                self.restarts_proved = self._prove_restarts()
        return bool(self.restarts_proved)

    def _prove_restarts(self) -> bool:
        """Whether the second key frame is the same picture after a restart as when decoded in order.

        Some files keep what later key frames need only at their start: without it such a file can give a
        picture of the right time in wrong colours.
        """
        key = self._probe.key_indices[1]
        try:
            one, other = (
                to_rgb(frame, Orientation())
                for walk in (in_order, partial(needed_only, restarts=True))
                for _, frame in self._walk(walk, [key])
            )
        except VideoError:
            # not swallowed: the walk from the start that follows says what is wrong
            return False
        return torch.equal(one, other)


def to_rgb(frame: VideoFrame, orientation: Orientation) -> UInt8[Tensor, "height width 3"]:
    """The picture as it is shown: bit for bit what the ffmpeg program gives with the same flags."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    filters = (["hflip"] if orientation.mirrored else []) + _TURNS[orientation.turns]
    # three planes, which become rgb24 below: the same values in half the time
    filters += [f"scale=flags={_SCALE_FLAGS}", "format=gbrp"]
    nodes = [graph.add(name, args or None) for name, _, args in (text.partition("=") for text in filters)]
    graph.link_nodes(source, *nodes, graph.add("buffersink"))
    graph.configure()
    graph.vpush(frame)
    return torch.from_numpy(graph.vpull().to_ndarray())
