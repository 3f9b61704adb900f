"""The reader of "auto": the fastest back end that is right for the file, and the next where it contradicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from videolm.types import Clip, VideoInfo
from videolm.video.readers.collect import ProbedReader
from videolm.video.readers.guard import ContradictionError, VideoError
from videolm.video.transforms import Resize


class AutoReader:
    """See VideoReader. `info.decoder` names the back end that gave the last frames."""

    def __init__(self, openers: Sequence[Callable[[], ProbedReader]]) -> None:
        # opened one by one: as long as a back end is right, no other touches the file
        self._reader = openers[0]()
        self._others = iter(openers[1:])

    @property
    def info(self) -> VideoInfo:
        """What the first pass found."""
        return self._reader.info

    @property
    def pts_seconds(self) -> Float[Tensor, " n"]:
        """All times at which a new frame is shown."""
        return self._reader.pts_seconds

    @property
    def key_pts_seconds(self) -> Float[Tensor, " n"]:
        """See VideoReader."""
        return self._reader.key_pts_seconds

    def frames_at(
        self, seconds: Sequence[float] | Float[Tensor, " frames"], *, size: int | Resize | None = None
    ) -> Clip:
        """The frames shown at these moments; see VideoReader. The file stays with the back end that gave them.

        If all contradict, the error of the first is raised: it is the one to look at.
        """
        try:
            return self._reader.frames_at(seconds, size=size)
        except ContradictionError:
            for opener in self._others:
                try:
                    reader = opener()
                # not swallowed: the contradiction that led here is raised below
                except VideoError:
                    continue
                try:
                    clip = reader.frames_at(seconds, size=size)
                except VideoError:
                    reader.close()
                    continue
                self._reader.close()
                self._reader = reader
                return clip
            raise

    def close(self) -> None:
        """Give the file back; a second call does nothing."""
        self._reader.close()

    def __enter__(self) -> AutoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
