"""The class that holds a model and all that it needs to take files and sentences."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
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
from tqdm import tqdm

from videolm.encoders.presets import CLIPShape
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import weights_sha256
from videolm.heads.retrieval import similarity
from videolm.pipeline.decoding import Decoder, Frames, Video, ahead, read_frames
from videolm.search.extraction import EncodedVideo, Extraction, extract, hidden
from videolm.search.index import Index, build_index, read_index
from videolm.search.shards import sync, write_json
from videolm.text.tokenizer import Tokenizer
from videolm.types import Clip, Embeddings, Failure, ModelInfo
from videolm.video.readers import available_decoders
from videolm.video.readers.guard import VideoError
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess, pad_frames

FORMAT_VERSION = 1


class VideoLM:
    """A video-language model ready for use: the network, and all that makes files and sentences its inputs.

    `model` is taken over: in float32, it is put into evaluation mode and moved to `device` and `dtype`.
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
        device: str | torch.device = "auto",
        dtype: torch.dtype | Literal["auto"] = "auto",
        allow_untrained: bool = False,
    ) -> None:
        if preprocess.image_size != shape.image_size:
            raise ValueError(
                f"{name}: preprocessing gives pictures of {preprocess.image_size} pixels, the tower takes "
                f"{shape.image_size}"
            )
        if sampler.kind == "segment_random":
            raise ValueError(
                f"{name}: sampler segment_random is for training; a vector must not depend on chance"
            )
        self.device = pick_device(device)
        self.dtype = torch.float32 if dtype == "auto" else dtype
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
        self.model = model.eval().to(self.device, self.dtype)

    @property
    def trained(self) -> bool:
        """False: random weights; nothing that comes out of it means anything."""
        return self.info.trained

    def __repr__(self) -> str:
        trained = "" if self.trained else ", trained=False"
        return f"VideoLM({self.info.name!r}, device={str(self.device)!r}, dtype={self.dtype}{trained})"

    def identity(self) -> dict[str, Any]:
        """All that decides which vector a text or a picture gets, as plain values: equal for the same model only."""
        return {
            "weights_sha256": self.info.weights_sha256,
            "shape": asdict(self.shape),
            "preprocessing": self.info.preprocessing,
            "vocabulary_sha256": self.tokenizer.vocabulary_sha256() if self.tokenizer else None,
        }

    def encode_videos(
        self,
        videos: Video | Iterable[Video],
        *,
        num_frames: int | None = None,
        batch_size: int = 8,
        convert_to_tensor: bool = False,
        show_progress_bar: bool | None = None,
        workers: int = 2,
        decoder: Decoder = "auto",
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Embeddings:
        """A vector of unit length for each video, in their order.

        A Clip is taken as it is, all of its frames; a file is sampled as the model was trained, with
        `num_frames` if given. Files are decoded ahead in `workers` threads. A video that cannot be used
        raises, or with `on_error="skip"` is named in `failures` and has no row. `show_progress_bar=None`
        shows a bar where the error stream is a terminal.
        """
        if isinstance(videos, str | os.PathLike | Clip):
            videos = [videos]
        names: list[str] = []
        encoded: list[EncodedVideo] = []
        failures: list[Failure] = []
        total = len(videos) if isinstance(videos, Sequence) else None
        results = self._encode(
            videos,
            sampler=self._sampler(num_frames),
            batch_size=batch_size,
            workers=workers,
            decoder=decoder,
            on_error=on_error,
        )
        with closing(results), tqdm(total=total, unit="video", disable=hidden(show_progress_bar)) as bar:
            for name, result in results:
                if isinstance(result, Failure):
                    failures.append(result)
                    bar.set_postfix(failed=len(failures), refresh=False)
                else:
                    names.append(name)
                    encoded.append(result)
                bar.update()
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
        _check_at_least_one("batch_size", batch_size)
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
        batch_size: int = 8,
        workers: int = 2,
        decoder: Decoder = "auto",
        retry_failed: bool = False,
        overwrite: bool = False,
        show_progress_bar: bool | None = None,
    ) -> Index:
        """Encode the videos of a folder (or one video, or the paths in a .txt) and make them searchable.

        The result is in `out`, by default `<folder>.index`. Run again, only new and changed files are encoded
        and deleted ones leave; `retry_failed` also tries again what failed. Videos that cannot be read are in
        `Index.failures` with the reason. `overwrite` replaces an index made with another model or settings.
        """
        folder = Path(folder)
        out = folder.with_name(folder.name + ".index") if out is None else Path(out)
        self.extract(
            folder,
            out,
            num_frames=num_frames,
            batch_size=batch_size,
            workers=workers,
            decoder=decoder,
            retry_failed=retry_failed,
            overwrite=overwrite,
            show_progress_bar=show_progress_bar,
        )
        build_index(out)
        return read_index(out, encode_text=self.encode_text)

    def extract(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        num_frames: int | None = None,
        batch_size: int = 8,
        workers: int = 2,
        decoder: Decoder = "auto",
        retry_failed: bool = False,
        overwrite: bool = False,
        show_progress_bar: bool | None = None,
    ) -> Extraction:
        """The first half of `index`: vectors in parquet shards under `out`, not yet searchable."""
        if not self.trained and not self.allow_untrained:
            raise ValueError(
                f"{self.info.name} has untrained weights, its vectors mean nothing; train it, load another "
                "model, or say allow_untrained=True (--allow-untrained) where this is a test"
            )
        sampler = self._sampler(num_frames)

        def encode(paths: Sequence[Path]) -> Iterator[EncodedVideo | Failure]:
            results = self._encode(
                paths,
                sampler=sampler,
                batch_size=batch_size,
                workers=workers,
                decoder=decoder,
                on_error="skip",
            )
            with closing(results):
                for _, result in results:
                    yield result

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
            settings={
                **self.identity(),
                "sampler": asdict(sampler),
                "decoder": decoder,
                "dtype": str(self.dtype),
            },
            environment=describe_environment(self.device),
            retry_failed=retry_failed,
            overwrite=overwrite,
            show_progress_bar=show_progress_bar,
        )

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, tokenizer and `videolm.json`, from which `load` makes the same model again.

        `dtype=torch.float16` halves the file; the weights are rounded to it, so their hash is another. Each
        file appears whole, `videolm.json` last.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: tensor.detach().cpu().to(dtype).contiguous()
            for name, tensor in self.model.state_dict().items()
        }
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            save_file(state, Path(temporary) / "model.safetensors", metadata={"format": "pt"})
            if self.tokenizer is not None:
                self.tokenizer.save(temporary)
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
        }
        write_json(folder / "videolm.json", card)

    def _sampler(self, num_frames: int | None) -> Sampler:
        return self.sampler if num_frames is None else replace(self.sampler, num_frames=num_frames)

    def _encode(
        self,
        videos: Iterable[Video],
        *,
        sampler: Sampler,
        batch_size: int,
        workers: int,
        decoder: Decoder,
        on_error: Literal["raise", "skip"],
    ) -> Generator[tuple[str, EncodedVideo | Failure], None, None]:
        """Name and result of each video, in their order; full batches go to the model."""
        _check_at_least_one("batch_size", batch_size)
        _check_at_least_one("workers", workers)
        waiting: list[tuple[str, Frames | Failure]] = []
        num_clips = 0

        def read(video: Video) -> tuple[str, Frames | VideoError]:
            return read_frames(video, sampler=sampler, preprocess=self.preprocess, decoder=decoder)

        with closing(ahead(videos, read, workers=workers, most=workers + batch_size)) as results:
            for name, result in results:
                if isinstance(result, VideoError):
                    if on_error == "raise":
                        raise result
                    failure = Failure(name, result.stage, result.reason, result.decoder)
                    # in order: behind the clips of a batch that is not full yet
                    if waiting:
                        waiting.append((name, failure))
                    else:
                        yield name, failure
                    continue
                waiting.append((name, result))
                num_clips += 1
                if num_clips == batch_size:
                    yield from self._encode_batch(waiting, on_error=on_error)
                    waiting, num_clips = [], 0
        yield from self._encode_batch(waiting, on_error=on_error)

    def _encode_batch(
        self, items: Sequence[tuple[str, Frames | Failure]], *, on_error: Literal["raise", "skip"]
    ) -> Iterator[tuple[str, EncodedVideo | Failure]]:
        clips = [item for _, item in items if isinstance(item, Frames)]
        vectors = iter(self._vectors(clips) if clips else ())
        for name, item in items:
            if isinstance(item, Failure):
                yield name, item
                continue
            vector = next(vectors)
            if np.isfinite(vector).all():
                yield (
                    name,
                    EncodedVideo(vector, item.pts_seconds, item.start, item.end, item.duration_seconds),
                )
            elif on_error == "raise":
                raise ValueError(f"{self.info.name} gave a vector with NaN or infinity for {name}")
            else:
                yield name, Failure(name, "encode", "the model gave a vector with NaN or infinity")

    @torch.inference_mode()
    def _vectors(self, clips: Sequence[Frames]) -> Float[np.ndarray, "clips dim"]:
        frames, lengths = pad_frames([clip.pixels for clip in clips])
        # Without a mask where nothing is padded, which is the faster way.
        is_padded = bool((lengths < frames.shape[1]).any())
        tokens = self.model.encode_video(
            frames.to(self.device, self.dtype), lengths=lengths.to(self.device) if is_padded else None
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


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} ({value}) must be at least 1")
