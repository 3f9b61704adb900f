"""From packets to the wanted frames: all frames in order, or only what the wanted ones need.

Both say (index, frame) of each wanted frame once, ascending, whole, with exactly the time of the probe, or raise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal

from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from videolm.video.readers.guard import ContradictionError, GuardedFile, VideoError, wrap_errors
from videolm.video.readers.probe import (
    Probe,
    open_container,
    packets_from_first_key,
    shows_frame,
    video_stream,
)

# Codecs whose key frames need nothing of what was before them.
_SELF_CONTAINED = ("h264", "vp8", "vp9", "av1", "mjpeg")
# With H.264 that holds only for the pictures: parameters of the stream may stand in any packet. Its decoder
# reads them from packets that it is told to skip, at 3 microseconds each. HEVC's decoder does not.
_PARSED_WHEN_SKIPPED = ("h264",)
# Codecs that say which frames no other refers to. HEVC says it within a temporal layer only, so a frame of a
# higher layer may refer to one that is called unreferenced.
_SAY_UNREFERENCED = ("h264", "mpeg2video")


def restarts_need_proof(found: Probe) -> bool:
    """Whether a key frame of this codec may need what stood at the start of the file."""
    return found.info.codec not in _SELF_CONTAINED


def num_decoded(found: Probe, wanted: Sequence[int], *, restarts: bool) -> int:
    """How many frames `needed_only` goes through, at most."""
    groups = _groups(found, wanted, restarts=restarts)
    return sum(group[-1] + 1 - (-found.num_hidden if key is None else key) for key, group in groups.items())


def needed_only(
    container: InputContainer,
    stream: VideoStream,
    found: Probe,
    wanted: Sequence[int],
    file: GuardedFile,
    *,
    restarts: bool,
) -> Iterator[tuple[int, VideoFrame]]:
    """From the last key frame before each wanted frame, without the frames on the way that no other refers to.

    Every packet is read in order and goes, by what it is for, to the decoder, to its parser or nowhere: there
    is no seek that could miss. Without `restarts` decoding starts once, at the start of the file. For files
    with stored times. A frame that does not come out as the packets promise is an error: `in_order` then
    finds out.
    """
    groups = _groups(found, wanted, restarts=restarts)
    missing = {found.pts[index]: index for index in wanted}
    # wanted frames of which the packet has not been sent, within the groups that have been started
    pending = {found.pts[index] for index in groups.pop(None, ())}
    starts = {
        found.pts[key]: {found.pts[i] for i in group} for key, group in groups.items() if key is not None
    }
    decoder = stream.codec_context
    skippable: Literal["NONREF", "DEFAULT"] = "NONREF" if found.info.codec in _SAY_UNREFERENCED else "DEFAULT"
    parses = found.info.codec in _PARSED_WHEN_SKIPPED
    # time of the key frame that has to come out first after a restart; time of the frame before
    start: int | None = None
    before: int | None = None
    is_torn = False
    for packet in packets_from_first_key(container, stream):
        if packet.is_keyframe and packet.pts in starts and shows_frame(packet):
            if not pending:
                decoder.flush_buffers()
                start = packet.pts
            pending |= starts.pop(packet.pts)
        if not pending:
            if parses and packet.size:
                decoder.skip_frame = "ALL"
                packet.decode()
            continue
        is_wanted = packet.pts is not None and packet.pts in pending and shows_frame(packet)
        decoder.skip_frame = "DEFAULT" if is_wanted else skippable
        frames = packet.decode()
        if is_wanted:
            pending -= {packet.pts}
            if not pending:
                # all that the wanted frames need has been sent: nothing is waited for
                frames += decoder.decode(None)
                decoder.flush_buffers()
        for frame in frames:
            pts = _time(frame, file)
            if start is not None and pts >= start:
                _check_start(frame, start, found, file)
                start = None
            # after a restart frames may come that were shown before it, and are broken
            if start is None:
                _check_ascending(pts, before, found, file)
                before = pts
                is_torn = _is_torn(frame, pts, found, after_torn=is_torn)
                if pts in missing:
                    _check_whole(missing[pts], found, file, is_torn=is_torn)
                    yield missing.pop(pts), frame
        if not pending and not starts:
            break
    if missing:
        raise _not_decoded(min(missing.values()), found, file)


def key_frames_hold(found: Probe, file: GuardedFile) -> bool:
    """Whether decoding can start at the second key frame, as its packet says; True where there is but one."""
    if len(found.key_indices) < 2:
        return True
    try:
        with wrap_errors(file.path, "decode", file.decoder), open_container(file) as container:
            stream = video_stream(container, file)
            wanted = found.key_indices[1:2]
            list(needed_only(container, stream, found, wanted, file, restarts=True))
    except VideoError:
        # not swallowed: it is the answer
        return False
    return True


def in_order(
    container: InputContainer, stream: VideoStream, found: Probe, wanted: Sequence[int], file: GuardedFile
) -> Iterator[tuple[int, VideoFrame]]:
    """From the start of the file, every frame of it."""
    counted = found.info.times == "counted"
    missing = {found.pts[index]: index for index in wanted}
    # counted frames are only known by their number if none of the whole file is lost
    last = found.pts[-1 if counted else wanted[-1]]
    pts = -1
    is_torn = False
    for pts, frame in _decode_all(container, stream, found, file):
        is_torn = _is_torn(frame, pts, found, after_torn=is_torn)
        if pts in missing:
            _check_whole(missing[pts], found, file, is_torn=is_torn)
            yield missing.pop(pts), frame
        if pts >= last:
            break
    if counted and pts != last:
        reason = f"{pts + 1} frames come out of {last + 1} packets that have no times: which is which is lost"
        raise file.refusal(reason, stage="decode")
    if missing:
        raise _not_decoded(min(missing.values()), found, file)


def _groups(found: Probe, wanted: Sequence[int], *, restarts: bool) -> dict[int | None, list[int]]:
    """Wanted frames by the key frame that decoding starts from; None is the start of the file.

    The first frames that are shown may belong to a key frame that is not.
    """
    keys = found.key_indices if restarts else ()
    groups: dict[int | None, list[int]] = {}
    for index in wanted:
        position = bisect_right(keys, index)
        groups.setdefault(keys[position - 1] if position else None, []).append(index)
    return groups


def _check_start(frame: VideoFrame, start: int, found: Probe, file: GuardedFile) -> None:
    """Hold the file to its word that decoding can start at this frame."""
    if frame.pts != start or not frame.key_frame or frame.pict_type != PictureType.I:
        at = float(start * found.time_base)
        raise file.refusal(f"decoding cannot start at {at:.6f} s, a key frame by its packet", stage="decode")


def _decode_all(
    container: InputContainer, stream: VideoStream, found: Probe, file: GuardedFile
) -> Iterator[tuple[int, VideoFrame]]:
    """(time in units of the probe, frame) of every frame, ascending."""
    counted = found.info.times == "counted"
    before: int | None = None
    for number, frame in enumerate(
        frame for packet in packets_from_first_key(container, stream) for frame in packet.decode()
    ):
        pts = number if counted else _time(frame, file)
        _check_ascending(pts, before, found, file)
        before = pts
        yield pts, frame


def _time(frame: VideoFrame, file: GuardedFile) -> int:
    if frame.pts is None:
        reason = "a decoded frame has no presentation time"
        raise ContradictionError(file.path, "decode", reason, file.decoder)
    return frame.pts


def _check_ascending(pts: int, before: int | None, found: Probe, file: GuardedFile) -> None:
    if before is not None and pts <= before:
        at = float(pts * found.time_base)
        reason = f"presentation times do not ascend: {at:.6f} s comes back too late"
        raise ContradictionError(file.path, "decode", reason, file.decoder)


def _is_torn(frame: VideoFrame, pts: int, found: Probe, *, after_torn: bool) -> bool:
    """Whether a frame is damaged, or may be made of one that is: only a key frame ends that.

    Before the first frame that is shown nothing counts: a file may begin where frames refer to what was cut off.
    """
    return pts >= found.pts[0] and (frame.is_corrupt or (after_torn and not frame.key_frame))


def _check_whole(index: int, found: Probe, file: GuardedFile, *, is_torn: bool) -> None:
    if is_torn:
        reason = f"the frame at {found.seconds(index):.6f} s is damaged, or made of one that is"
        raise file.refusal(reason, stage="decode")


def _not_decoded(index: int, found: Probe, file: GuardedFile) -> VideoError:
    reason = f"the frame at {found.seconds(index):.6f} s does not come out of the decoder"
    return file.refusal(reason, stage="decode")
