"""A model on a benchmark of captioning: one caption a video against all of its references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, cast

from videolm.datasets.annotations import check_split
from videolm.datasets.caption_catalog import find_caption_benchmark
from videolm.datasets.protocol import CaptionProtocol
from videolm.datasets.synthetic import attribute_scores, read_scenes
from videolm.datasets.synthetic.scene import Scene
from videolm.evaluation.caption_report import CaptionReport
from videolm.evaluation.conditions import (
    Run,
    decoder_notes,
    describe_benchmark,
    is_world,
    written_conditions,
)
from videolm.evaluation.speaking import (
    ask_each,
    describe_head,
    unknown_words_notes,
    without_word_warnings,
)
from videolm.evaluation.videos import find_files
from videolm.metrics.captioning import evaluate
from videolm.metrics.meteor import Meteor
from videolm.pipeline import VideoLM
from videolm.pipeline.video_lm import describe_environment
from videolm.types import Caption, Failure


def evaluate_captions(model: VideoLM, protocol: CaptionProtocol, run: Run) -> CaptionReport:
    """Captions every video of a split once and scores what was said; in a rendered world also claim by claim."""
    if "captioning" not in model.heads:
        raise ValueError(f"{model.info.name} has no captioning head, so there are no captions to measure")
    benchmark = find_caption_benchmark(protocol.benchmark)
    check_split(protocol.split, benchmark.splits)
    listed = benchmark.read(run.folder, protocol.split)
    limited = listed[: run.limit]
    scenes = _scenes(run.folder, protocol.split)
    paths = find_files(run.videos, [video.id for video in limited], allow_missing=run.allow_missing)
    speaker = model.heads["captioning"]
    prompt = speaker.shape.caption_prompt if protocol.prompt is None else protocol.prompt
    # METEOR may fail at once, and the videos may take hours
    with Meteor() if protocol.meteor else nullcontext() as meteor:
        hypotheses, failures = _captions(model, protocol, run, paths)
        references = {video.id: video.captions for video in limited if video.id in hypotheses}
        scores = evaluate(hypotheses, references, meteor=meteor or False)
    return CaptionReport(
        model=model.info,
        benchmark=describe_benchmark(benchmark.title, run.folder, protocol.split),
        protocol=written_conditions(model, protocol, run)
        | {"prompt": prompt}
        | describe_head(model, "captioning", protocol),
        num_listed=len(listed),
        num_read=len(hypotheses),
        missing=[video.id for video in limited if video.id not in paths],
        failures=failures,
        environment=describe_environment(model.device)
        | {"tokeniser": scores.tokenizer, "scorer": scores.scorer},
        notes=[
            *scores.notes,
            *_split_notes(benchmark.notes, run.folder, protocol.split),
            *unknown_words_notes([prompt], speaker.tokenizer, of="prompts"),
            *decoder_notes(protocol),
        ],
        captions=scores,
        attributes=attribute_scores(hypotheses, scenes) if scenes else None,
        hypotheses=hypotheses,
        references=references,
    )


def _captions(
    model: VideoLM, protocol: CaptionProtocol, run: Run, paths: Mapping[str, Path]
) -> tuple[dict[str, str], list[Failure]]:
    def ask(ids: Sequence[str]) -> list[Caption | Failure]:
        said: list[Caption | Failure] = model.caption(
            [paths[video_id] for video_id in ids],
            prompt=protocol.prompt,
            num_beams=protocol.num_beams,
            max_new_tokens=protocol.max_new_tokens,
            num_frames=protocol.num_frames,
            sampler=protocol.sampler,
            budget=protocol.budget,
            batch_size=run.batch_size,
            decoder=protocol.decoder,
            on_error="skip",
        )
        return said

    with without_word_warnings():
        captions, failures = ask_each(paths, ask, show_progress_bar=run.show_progress_bar)
    return {video_id: caption.text for video_id, caption in captions.items()}, failures


def _scenes(folder: Path, split: str) -> dict[str, Scene]:
    """What the videos show, of a rendered world; else nothing."""
    if not is_world(folder):
        return {}
    check_split(split, ("test", "val", "train"))
    return read_scenes(folder, cast(Literal["test", "val", "train"], split))


def _split_notes(notes: Mapping[str, str], folder: Path, split: str) -> list[str]:
    return [notes[split]] if split in notes and not is_world(folder) else []
