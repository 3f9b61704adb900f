"""Decoded and resized frames on disk, for the next model that looks at the same moments of the same files."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from videolm.files import replace_file
from videolm.search.sources import stamp_of
from videolm.types import Clip
from videolm.video.readers import available_decoders
from videolm.video.worker import ClipRequest

_FORMAT = 1


class FrameCache:
    """One file a clip below `folder`, named by all that decides its frames.

    That is: the video's path, size and time of change, the sampler, the resize, the decoder and its version.
    Nothing is ever removed. An entry that is damaged is none. Programs may share a folder.
    """

    def __init__(self, folder: str | os.PathLike[str], request: ClipRequest) -> None:
        self._folder = Path(folder)
        size = request.size
        self._facts = {
            "format": _FORMAT,
            "sampler": asdict(request.sampler),
            "size": size if size is None or isinstance(size, int) else asdict(size),
            "decoder": request.decoder,
            "decoders": available_decoders(),
        }

    def entry(self, video: str) -> Path:
        """Where the clip of the file, as it is now, belongs."""
        facts = {**self._facts, "path": os.path.abspath(video), "stamp": stamp_of(Path(video))}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def read(self, entry: Path, video: str) -> Clip | None:
        """The clip, under the name of `video`; None where there is none or it is damaged."""
        try:
            with safe_open(entry, framework="pt") as file:
                facts = file.metadata()
                frames, pts_seconds = file.get_tensor("frames"), file.get_tensor("pts_seconds")
            if int(facts["crc32"]) != zlib.crc32(frames.numpy().data):
                return None
            return Clip(frames, pts_seconds, float(facts["duration"]), video, float(facts["start"]))
        # whatever is wrong with an entry: the video is decoded and the entry written anew
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def write(self, entry: Path, clip: Clip) -> None:
        """Keep a clip; an OSError names the entry that cannot be written."""
        facts = {
            "crc32": str(zlib.crc32(clip.frames.numpy().data)),
            "duration": repr(clip.duration_seconds),
            "start": repr(clip.start_seconds),
        }
        tensors = {"frames": clip.frames, "pts_seconds": clip.pts_seconds}
        entry.parent.mkdir(parents=True, exist_ok=True)
        replace_file(entry, lambda temporary: save_file(tensors, temporary, metadata=facts))
