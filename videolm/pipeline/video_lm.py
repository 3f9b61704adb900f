"""The class that holds a model and all that it needs to take files and sentences."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from videolm.encoders.blocks import MLP
from videolm.encoders.presets import CLIPShape
from videolm.encoders.reduction_plans import parse_plan
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import weights_sha256
from videolm.files import sync, write_json
from videolm.heads.retrieval import similarity
from videolm.pipeline.decoding import Decoder, Video, num_ahead, read_videos
from videolm.pipeline.encoding import encode_clips
from videolm.pipeline.head_files import remove_left_heads, write_heads
from videolm.pipeline.precision import auto_dtype
from videolm.pipeline.settings import as_written
from videolm.pipeline.speaking import HeadName, Speaker
from videolm.pipeline.tokens import Eyes
from videolm.pipeline.verbs import SpeakingVerbs, check_at_least_one, check_on_error
from videolm.search.extraction import EncodedVideo, Extraction, extract
from videolm.search.index import Index, build_index, read_index
from videolm.search.parts import Shard
from videolm.search.progress import Progress
from videolm.search.sources import Source
from videolm.text.tokenizer import Tokenizer
from videolm.types import Clip, Embeddings, Failure, ModelInfo
from videolm.video.readers import DEFAULT_LIMITS, available_decoders
from videolm.video.samplers import Kind, Sampler
from videolm.video.transforms import Preprocess, pad_frames, without_repeats
from videolm.video.worker import ClipRequest

FORMAT_VERSION = 1


class VideoLM(SpeakingVerbs):
    """A video-language model ready for use: the network, and all that makes files and sentences its inputs.

    `model` is taken over: in float32, it is put into evaluation mode and moved to `device` and `dtype`, and with
    a `dtype` shorter than float32 made ready for inference only (see `auto_dtype` for "auto"). So are the `heads`,
    by which it captions ("captioning") and answers ("videoqa").
    `source` is what `load` finds the model by again, None for one that was not loaded.
    """

    def __init__(
        self,
        model: VideoCLIP,
        *,
        shape: CLIPShape,
        tokenizer: Tokenizer | None,
        preprocess: Preprocess,
        sampler: Sampler,
        name: str,
        trained: bool,
        licence: str = "unknown",
        recipe: dict[str, Any] | None = None,
        scores: dict[str, Any] | None = None,
        source: str | None = None,
        heads: Mapping[HeadName, Speaker] | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | Literal["auto"] = "auto",
        allow_untrained: bool = False,
    ) -> None:
        if preprocess.image_size != shape.image_size:
            raise ValueError(
                f"{name}: preprocessing gives pictures of {preprocess.image_size} pixels, the tower takes "
                f"{shape.image_size}"
            )
        _check_not_random(sampler.kind, name)
        self.device = pick_device(device)
        if dtype == "auto":
            num_parameters = sum(parameter.numel() for parameter in model.parameters())
            dtype = auto_dtype(self.device, num_parameters=num_parameters)
        self.dtype = dtype
        self.shape = shape
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.sampler = sampler
        self.source = source
        self.allow_untrained = allow_untrained
        self.info = ModelInfo(
            name=name,
            trained=trained,
            weights_sha256=weights_sha256(model.state_dict()),
            licence=licence,
            recipe=recipe or {},
            preprocessing=asdict(preprocess),
            sampler=asdict(sampler),
            scores=scores or {},
        )
        if self.is_rounded:
            for module in model.modules():
                if isinstance(module, MLP):
                    module.fold_quick_gelu()
        red, green, blue = preprocess.std
        model.pixel_std = (red, green, blue)
        self.model = model.eval().to(self.device, self.dtype)
        self.heads: dict[HeadName, Speaker] = {}
        for head, speaker in (heads or {}).items():
            self.add_head(head, speaker)
        self._eyes = Eyes(self.model, shape, preprocess, sampler.num_frames or sampler.max_frames or 1)

    @property
    def trained(self) -> bool:
        """False: random weights; nothing that comes out of it means anything."""
        return self.info.trained

    @property
    def is_rounded(self) -> bool:
        """Whether the weights are held in less than float32, and so cannot be written any more."""
        return torch.finfo(self.dtype).bits < 32

    def state(self) -> dict[str, Tensor]:
        """The weights on the CPU, in float32 or longer; ValueError where only rounded ones are left."""
        if self.is_rounded:
            raise ValueError(
                f"{self.info.name} computes in {self.dtype}, its weights are rounded to that; load it with "
                "dtype=torch.float32 to write them"
            )
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}

    def __repr__(self) -> str:
        trained = "" if self.trained else ", trained=False"
        reduce = f", reduce={self.shape.reduce!r}" if self.shape.reduce else ""
        return (
            f"VideoLM({self.info.name!r}, device={str(self.device)!r}, dtype={self.dtype}{reduce}{trained})"
        )

    def identity(self) -> dict[str, Any]:
        """All that decides which vector a text or a picture gets, as plain values: equal for the same model only.

        A plan that changes no vector, as drop_repeats, which is for heads that take tokens, is not in it.
        """
        plan = parse_plan(self.shape.reduce, depth=self.shape.vision_depth)
        shape = self.shape if plan.changes_tower else replace(self.shape, reduce="")
        return {
            "weights_sha256": self.info.weights_sha256,
            "shape": asdict(shape),
            "preprocessing": self.info.preprocessing,
            "vocabulary_sha256": self.tokenizer.vocabulary_sha256() if self.tokenizer else None,
        }

    def encode_videos(
        self,
        videos: Video | Iterable[Video],
        *,
        num_frames: int | None = None,
        sampler: Kind | None = None,
        batch_size: int = 8,
        convert_to_tensor: bool = False,
        show_progress_bar: bool | None = None,
        workers: int = 2,
        decoder: Decoder = "auto",
        timeout: float = 60.0,
        frame_cache: str | os.PathLike[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Embeddings:
        """A vector of unit length for each video, in their order.

        A Clip is taken as it is, all of its frames; a file is sampled as the model was trained, with
        `num_frames` or another `sampler` if given ("keyframes" reads long groups of pictures many times faster).
        `videos` may be a generator, which is read only a little ahead of the model.

        Files are decoded in `workers` processes, so that one which crashes, or takes longer than `timeout`
        seconds, harms no other. The first call of a program takes a second more, to start their server;
        `workers=0` decodes in this process, without that protection. `frame_cache` is a folder that keeps the
        decoded frames for the next model with the same preprocessing.

        A video that cannot be used raises, or with `on_error="skip"` is named in `failures` and has no row.
        `show_progress_bar=None` shows a bar where the error stream is a terminal, elsewhere a line now and then.
        """
        check_on_error(on_error)
        if isinstance(videos, str | os.PathLike | Clip):
            videos = [videos]
        names: list[str] = []
        encoded: list[EncodedVideo] = []
        failures: list[Failure] = []
        total = len(videos) if isinstance(videos, Sequence) else None
        with (
            Progress(total, show=show_progress_bar) as progress,
            closing(
                self._encode(
                    videos,
                    self._request(num_frames, sampler, decoder=decoder, timeout=timeout),
                    progress=progress,
                    batch_size=batch_size,
                    workers=workers,
                    frame_cache=frame_cache,
                    on_error=on_error,
                )
            ) as results,
        ):
            for name, result in results:
                progress.advance(failed=isinstance(result, Failure))
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    names.append(name)
                    encoded.append(result)
        vectors = np.zeros((0, self.shape.joint_dim), dtype=np.float32)
        if encoded:
            vectors = np.stack([video.vector for video in encoded])
        return Embeddings(
            vectors=torch.from_numpy(vectors).to(self.device) if convert_to_tensor else vectors,
            ids=names,
            model=self.info,
            start=np.array([video.start for video in encoded], dtype=np.float64),
            end=np.array([video.end for video in encoded], dtype=np.float64),
            pts_seconds=[video.pts_seconds for video in encoded],
            failures=failures,
        )

    def encode_texts(
        self, texts: str | Sequence[str], *, batch_size: int = 64, convert_to_tensor: bool = False
    ) -> Embeddings:
        """A vector of unit length for each sentence, in their order."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_at_least_one("batch_size", batch_size)
        if not self.shape.has_text:
            raise ValueError(
                f"{self.info.name} has no text tower: it captions and answers, but sentences have no vectors in it; "
                "load a CLIP or SigLIP to search"
            )
        if self.tokenizer is None:
            raise ValueError(
                f"{self.info.name} cannot encode texts without a tokenizer: lay tokenizer.json (or "
                f"vocab.json and merges.txt) into {self.source or 'its folder'}"
            )
        batches = [torch.zeros(0, self.shape.joint_dim)]
        with torch.inference_mode():
            for first in range(0, len(texts), batch_size):
                input_ids, mask = self.tokenizer(texts[first : first + batch_size])
                tokens = self.model.encode_text(input_ids.to(self.device), mask.to(self.device))
                batches.append(tokens.embedding.float().cpu())
        vectors = torch.cat(batches)
        if not vectors.isfinite().all():
            bad = int((~vectors.isfinite().all(dim=1)).int().argmax())
            raise ValueError(f"{self.info.name} gave a vector with NaN or infinity for {texts[bad]!r}")
        return Embeddings(
            vectors=vectors.to(self.device) if convert_to_tensor else vectors.numpy(),
            ids=texts,
            model=self.info,
        )

    def encode_text(self, text: str) -> Float[np.ndarray, " dim"]:
        """The vector of a query: a sentence of which the model knows a word at least; warns of those it does not."""
        if not text.strip():
            raise ValueError("the query is empty; say what the video shows")
        if self.tokenizer is not None and (unknown := self.tokenizer.unknown_words(text)):
            if not set(re.findall(r"\w+", text)) - set(unknown):
                raise ValueError(
                    f"{self.info.name} knows no word of the query {text!r}; ask in the words that it was trained "
                    "on, or use a model with a larger vocabulary"
                )
            warnings.warn(f"{self.info.name} does not know: {' '.join(unknown)}", stacklevel=2)
        vectors = self.encode_texts(text).vectors
        return np.asarray(vectors[0], dtype=np.float32)

    def similarity(self, texts: Embeddings, videos: Embeddings) -> Float[Tensor, "texts videos"]:
        """The head's score of every text with every video: their cosine, on the CPU."""
        for embeddings in (texts, videos):
            if embeddings.model.weights_sha256 != self.info.weights_sha256:
                raise ValueError(
                    f"{embeddings!r} was made by {embeddings.model.name!r} (weights "
                    f"{embeddings.model.weights_sha256[:12]}), this is {self.info.name!r} (weights "
                    f"{self.info.weights_sha256[:12]})"
                )
        return similarity(torch.as_tensor(texts.vectors).cpu(), torch.as_tensor(videos.vectors).cpu())

    def index(
        self,
        folder: str | os.PathLike[str],
        out: str | os.PathLike[str] | None = None,
        *,
        num_frames: int | None = None,
        sampler: Kind | None = None,
        batch_size: int = 8,
        workers: int = 2,
        decoder: Decoder = "auto",
        timeout: float = 60.0,
        frame_cache: str | os.PathLike[str] | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
        max_failures: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> Index:
        """Encode the videos of a folder (or one video, or the paths in a .txt) and make them searchable.

        The result is in `out`, by default `<folder>.index`. Run again, only new and changed files are encoded
        and deleted ones leave; `retry_failed` then also tries again what failed. Videos that cannot be read are
        in `Index.failures` with the reason; more than `max_failures` of them, or 20 new ones in a row, end the
        run with TooManyFailuresError. What was made with another model or settings is refused; `overwrite` starts
        again from nothing. The other arguments are those of `encode_videos`.
        """
        out = Path(os.path.abspath(folder) + ".index" if out is None else out)
        self._extract(
            folder,
            out,
            self._request(num_frames, sampler, decoder=decoder, timeout=timeout),
            batch_size=batch_size,
            workers=workers,
            frame_cache=frame_cache,
            retry_failed=retry_failed,
            overwrite=overwrite,
            max_failures=max_failures,
            show_progress_bar=show_progress_bar,
            finish=build_index,
        )
        return read_index(out, encode_text=self.encode_text)

    def extract(
        self,
        source: str | os.PathLike[str] | Source,
        out: str | os.PathLike[str],
        *,
        num_frames: int | None = None,
        sampler: Kind | None = None,
        batch_size: int = 8,
        workers: int = 2,
        decoder: Decoder = "auto",
        timeout: float = 60.0,
        frame_cache: str | os.PathLike[str] | None = None,
        shard: Shard | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
        max_failures: int | None = None,
        show_progress_bar: bool | None = None,
        finish: Callable[[Path], None] | None = None,
    ) -> Extraction:
        """The first half of `index`: vectors in parquet shards under `out`, not yet searchable.

        `source` may also be a `Source`: files that are listed somewhere else, as by a benchmark. `finish` is called
        at the end with the folder of the shards, while it is still held against other processes.

        With `shard=(i, n)` only the i-th (from 0) of n parts of the videos, for n jobs that may run at the same
        time with the same `out`; `index`, or `extract` without `shard`, then gathers what they have made.
        """
        return self._extract(
            source,
            out,
            self._request(num_frames, sampler, decoder=decoder, timeout=timeout),
            batch_size=batch_size,
            workers=workers,
            frame_cache=frame_cache,
            shard=shard,
            retry_failed=retry_failed,
            overwrite=overwrite,
            max_failures=max_failures,
            show_progress_bar=show_progress_bar,
            finish=finish,
        )

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, heads, tokenizer and `videolm.json`, from which `load` makes the same model again.

        `dtype=torch.float16` halves the file; the weights are rounded to it, so their hash is another. Each
        file appears whole, `videolm.json` last; then the files of heads that an earlier save has left there go. A
        model that was loaded to compute in less than float32 cannot be saved (see `state`).
        """
        state = {name: tensor.to(dtype).contiguous() for name, tensor in self.state().items()}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            save_file(state, Path(temporary) / "model.safetensors", metadata={"format": "pt"})
            if self.tokenizer is not None:
                self.tokenizer.save(temporary)
            heads = write_heads(Path(temporary), self.heads, dtype=dtype)
            for path in sorted(Path(temporary).iterdir()):
                # safetensors makes its file for the owner alone
                path.chmod(0o644)
                sync(path)
                path.replace(folder / path.name)
        card = {
            "format": FORMAT_VERSION,
            **asdict(self.info),
            "weights_sha256": weights_sha256(to_float32(state)),
            "shape": asdict(self.shape),
            **({"heads": heads} if heads else {}),
        }
        write_json(folder / "videolm.json", card)
        remove_left_heads(folder, heads)

    def _sampler(self, num_frames: int | None, kind: Kind | None) -> Sampler:
        if kind is None or kind == self.sampler.kind:
            return self.sampler if num_frames is None else replace(self.sampler, num_frames=num_frames)
        _check_not_random(kind, self.info.name)
        return Sampler(kind, num_frames=self.sampler.num_frames if num_frames is None else num_frames)

    def _request(
        self, num_frames: int | None, sampler: Kind | None, *, decoder: Decoder, timeout: float
    ) -> ClipRequest:
        limits = replace(DEFAULT_LIMITS, timeout_seconds=timeout)
        # Resized in the worker, so that a long video in high resolution costs little memory here.
        return ClipRequest(self._sampler(num_frames, sampler), self.preprocess.resize, decoder, limits)

    def _extract(
        self,
        source: str | os.PathLike[str] | Source,
        out: str | os.PathLike[str],
        request: ClipRequest,
        *,
        batch_size: int,
        workers: int,
        frame_cache: str | os.PathLike[str] | None,
        retry_failed: bool,
        overwrite: bool,
        max_failures: int | None,
        show_progress_bar: bool | None,
        shard: Shard | None = None,
        finish: Callable[[Path], None] | None = None,
    ) -> Extraction:
        if not self.trained and not self.allow_untrained:
            raise ValueError(
                f"{self.info.name} has untrained weights, its vectors mean nothing; train it, load another "
                "model, or say allow_untrained=True (--allow-untrained) where this is a test"
            )

        def encode(
            paths: Sequence[Path], progress: Progress
        ) -> Generator[EncodedVideo | Failure, None, None]:
            results = self._encode(
                paths,
                request,
                progress=progress,
                batch_size=batch_size,
                workers=workers,
                frame_cache=frame_cache,
                on_error="skip",
            )
            with closing(results):
                for _, result in results:
                    yield result

        settings = {
            **self.identity(),
            "sampler": asdict(request.sampler),
            "decoder": request.decoder,
            "dtype": str(self.dtype),
        }
        return extract(
            source,
            out,
            encode=encode,
            model={
                "name": self.info.name,
                "source": self.source,
                "weights_sha256": self.info.weights_sha256,
                "trained": self.trained,
            },
            settings=settings if overwrite else as_written(settings, Path(out)),
            environment=describe_environment(self.device),
            shard=shard,
            retry_failed=retry_failed,
            overwrite=overwrite,
            max_failures=max_failures,
            show_progress_bar=show_progress_bar,
            finish=finish,
        )

    def _encode(
        self,
        videos: Iterable[Video],
        request: ClipRequest,
        *,
        progress: Progress,
        batch_size: int,
        workers: int,
        frame_cache: str | os.PathLike[str] | None,
        on_error: Literal["raise", "skip"],
    ) -> Generator[tuple[str, EncodedVideo | Failure], None, None]:
        check_at_least_one("batch_size", batch_size)
        ahead = num_ahead(workers=workers, batch_size=batch_size)
        with closing(
            read_videos(videos, request, workers=workers, ahead=ahead, frame_cache=frame_cache)
        ) as clips:
            yield from encode_clips(
                progress.timed(clips), self._vectors, batch_size=batch_size, on_error=on_error
            )

    @torch.inference_mode()
    def _vectors(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clips dim"]:
        repeats: Tensor | None = None
        if self.model.sees_frames_alone:
            # key frames may be few, and a short video is asked for the same frame again and again
            distinct = [without_repeats(clip.frames) for clip in clips]
            frames, lengths = pad_frames([self.preprocess(pictures) for pictures, _ in distinct])
            repeats = pad_frames([counts for _, counts in distinct])[0].to(self.device)
        else:
            frames, lengths = pad_frames([self.preprocess(clip.frames) for clip in clips])
        # Without a mask where nothing is padded, which is the faster way.
        is_padded = bool((lengths < frames.shape[1]).any())
        tokens = self.model.encode_video(
            frames.to(self.device, self.dtype),
            lengths=lengths.to(self.device) if is_padded else None,
            repeats=repeats,
        )
        return np.asarray(tokens.embedding.float().cpu())


def to_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are computed with and hashed, whatever they are stored in."""
    return {name: tensor.float() for name, tensor in state.items()}


def pick_device(device: str | torch.device) -> torch.device:
    """The device that was asked for; for "auto" cuda where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Device and versions of what has a part in a vector."""
    libraries = ("torch", "transformers", "numpy", "pyarrow")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "decoders": available_decoders(),
        **{name: version(name) for name in libraries},
    }


def _check_not_random(kind: Kind, name: str) -> None:
    if kind == "segment_random":
        raise ValueError(
            f"{name}: sampler segment_random is for training; a vector must not depend on chance"
        )
