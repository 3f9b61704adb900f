"""What a benchmark's files tell beside its split: leaks, captions, twins, other sentences. Read before any video is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from videolm.datasets.annotations import CaptionedVideo, exists, queries_of, videos_of_sentences
from videolm.datasets.catalog import find_benchmark
from videolm.datasets.msrvtt import ANNOTATION, Split, read_captions, read_leak
from videolm.datasets.protocol import RetrievalProtocol
from videolm.datasets.synthetic import TwinPair, WorldVideo, read_twins, read_world
from videolm.evaluation.conditions import is_world
from videolm.evaluation.twins import world_ceiling


@dataclass(frozen=True)
class Background:
    """What is known of a split beside its queries."""

    leaks: dict[str, frozenset[str]]
    """Test videos that the training has seen something of, by what it has seen."""
    captions: list[CaptionedVideo] | None
    """The listed videos with every caption that is known of them; None where the file with them is not there."""
    bank: list[str]
    """Sentences of the training split, for QB-Norm."""
    world: list[WorldVideo]
    """The test videos of a rendered world; empty for other benchmarks."""
    twins: list[TwinPair]
    notes: list[str]

    def ceiling(self, ranked: Sequence[CaptionedVideo]) -> tuple[float | None, int | None]:
        """Expected R@1, in percent, of a reader that knows the captions, and how many queries leave it to guess."""
        ids = {video.id for video in ranked}
        if self.world:
            return world_ceiling([video for video in self.world if video.id in ids]), None
        if self.captions is None:
            return None, None
        known = [video for video in self.captions if video.id in ids]
        fitting = videos_of_sentences(queries_of(ranked), known)
        return 100 * float(np.mean([1 / len(videos) for videos in fitting])), sum(len(v) > 1 for v in fitting)


def read_background(
    folder: Path, protocol: RetrievalProtocol, listed: Sequence[CaptionedVideo]
) -> Background:
    """All of it, strictly: a damaged file is an error here, and not after hours of encoding."""
    bank = _bank(folder, protocol) if protocol.qb_norm else []
    if protocol.split == "test" and is_world(folder):
        world = [video for video in read_world(folder) if video.split == "test"]
        return Background({}, None, bank, world, read_twins(folder, split="test"), [])
    leaks, leak_note = _leaks(folder, protocol)
    captions, caption_note = _captions(folder, protocol, listed)
    return Background(leaks, captions, bank, [], [], [*leak_note, *caption_note])


def _leaks(folder: Path, protocol: RetrievalProtocol) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Of MSR-VTT 1k-A, what 9k training has seen of the test."""
    if (protocol.benchmark, protocol.split) != ("msrvtt", "test"):
        return {}, []
    try:
        leak = read_leak(folder)
    except FileNotFoundError as error:
        return {}, [f"1k-A clean needs {Path(error.filename).name}, which is not there"]
    leaks = {
        "whose footage 9k training shows": frozenset(leak.overlap_seconds),
        "from a source of 9k training": leak.same_source,
    }
    note = (
        "1k-A clean leaves out the queries of videos that are cut from a YouTube video of the 9k training, and "
        "ranks the others among all videos, so that the rows compare; it matters for models trained on that list"
    )
    return leaks, [note]


def _captions(
    folder: Path, protocol: RetrievalProtocol, listed: Sequence[CaptionedVideo]
) -> tuple[list[CaptionedVideo] | None, list[str]]:
    if protocol.benchmark != "msrvtt":
        return list(listed), []
    # a query of 1k-A or 1k-B is one caption of 20, and the others tell what else it fits
    if not exists(folder / ANNOTATION):
        return None, [f"the ceiling needs {ANNOTATION}, which is not there"]
    return read_captions(folder, split=cast(Split, protocol.split)), []


def _bank(folder: Path, protocol: RetrievalProtocol) -> list[str]:
    """Sentences of the training split that goes with a test split, drawn without replacement."""
    benchmark = find_benchmark(protocol.benchmark)
    training = benchmark.splits[protocol.split].training
    if training is None:
        raise ValueError(
            f"qb_norm needs a split to measure on, and {protocol.split} of {protocol.benchmark} is for training"
        )
    sentences = [query.sentence for query in queries_of(benchmark.read(folder, training))]
    chosen = np.random.default_rng(protocol.seed).permutation(len(sentences))[: protocol.qb_norm_bank]
    return [sentences[i] for i in sorted(chosen)]
