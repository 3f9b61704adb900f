"""The rendered world: whether twins, the same frames in the other order, are told apart, and what can be reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videolm.datasets.synthetic import TwinPair, WorldVideo, query_caption, recall_ceiling
from videolm.metrics.retrieval import pair_accuracy
from videolm.pipeline import VideoLM
from videolm.types import Embeddings


def twin_accuracy(
    model: VideoLM, videos: Embeddings, pairs: Sequence[TwinPair], row: dict[str, int]
) -> dict[str, float]:
    """Percent of sentences that score their own video above its twin, of all and by kind; ties count half."""
    accuracy: dict[str, float] = {}
    kinds = {pair.kind for pair in pairs}
    for kind in ("all", *sorted(kinds)) if pairs else ():
        chosen = [pair for pair in pairs if kind in ("all", pair.kind)]
        a = model.encode_texts([pair.sentence_a for pair in chosen])
        b = model.encode_texts([pair.sentence_b for pair in chosen])
        rows_a, rows_b = ([row[pair.video_a] for pair in chosen], [row[pair.video_b] for pair in chosen])
        score_a, score_b = (model.similarity(texts, videos).numpy() for texts in (a, b))
        line = np.arange(len(chosen))
        own = np.concatenate([score_a[line, rows_a], score_b[line, rows_b]])
        other = np.concatenate([score_a[line, rows_b], score_b[line, rows_a]])
        accuracy[kind] = pair_accuracy(own, other)
    return accuracy


def world_ceiling(videos: Sequence[WorldVideo]) -> float:
    """Expected R@1, in percent, on these test videos of a reader that knows which of them a sentence is true of."""
    scenes = [video.scene for video in videos]
    return 100.0 * recall_ceiling(scenes, [query_caption(scene) for scene in scenes])
