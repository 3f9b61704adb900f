"""Training of the dual encoder: videos and their captions, by InfoNCE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from videolm.encoders.video_clip import VideoCLIP
from videolm.text.tokenizer import Tokenizer
from videolm.training.batches import Stage, TrainingVideo, check_stages, draw_batch
from videolm.training.frames import draw_pictures
from videolm.training.loop import Settings, train_steps
from videolm.training.losses import clamp_logit_scale_, info_nce


@dataclass(frozen=True)
class Schedule(Settings):
    """Everything that decides how a dual encoder is trained, but not what it is."""

    twin_share: float = 0.0
    """Share of a batch that consists of twin pairs."""
    num_frames: list[Stage] = field(default_factory=lambda: [Stage(0.0, 8)])
    difficulty: list[Stage] = field(default_factory=lambda: [Stage(0.0, 1)])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.twin_share <= 1:
            raise ValueError(f"twin_share ({self.twin_share}) must be between 0 and 1")
        check_stages("num_frames", self.num_frames)
        check_stages("difficulty", self.difficulty)


def train(
    model: VideoCLIP,
    tokenizer: Tokenizer,
    videos: Sequence[TrainingVideo],
    frames: UInt8[Tensor, "videos cached height width 3"],
    schedule: Schedule,
    *,
    preprocess: Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n 3 height width"]],
    out: str | Path,
    validate: Callable[[VideoCLIP], dict[str, float]] | None = None,
    tensorboard: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Trains `model` in place on `videos`, whose pictures are the rows of `frames`; see `train_steps`."""
    if len(videos) != len(frames):
        raise ValueError(f"videos ({len(videos)}) must be as many as rows of frames ({len(frames)})")
    hardest = max(video.difficulty for video in videos)
    if schedule.difficulty[-1].value < hardest:
        raise ValueError(
            f"difficulty ends at {schedule.difficulty[-1].value}, so that videos of {hardest} are never seen"
        )
    device = model.scale.device

    def loss_at(step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        batch = draw_batch(
            videos,
            step,
            seed=schedule.seed,
            batch_size=schedule.batch_size,
            num_steps=schedule.num_steps,
            twin_share=schedule.twin_share,
            num_frames=schedule.num_frames,
            difficulty=schedule.difficulty,
        )
        pictures, _ = draw_pictures(
            frames,
            batch.rows,
            num_frames=batch.num_frames,
            shift=schedule.shift,
            generator=batch.generator,
        )
        pixels = preprocess(pictures.flatten(0, 1).to(device))
        pixels = pixels.view(*pictures.shape[:2], *pixels.shape[1:])
        input_ids, mask = (tensor.to(device) for tensor in tokenizer(batch.captions))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=schedule.precision == "bfloat16"):
            video = model.encode_video(pixels).embedding
            text = model.encode_text(input_ids, mask).embedding
        loss = info_nce(text, video, logit_scale=model.scale, video_ids=batch.rows.to(device))
        scale = float(model.scale.detach().exp())
        return loss, {"logit_scale": scale, "num_frames": float(batch.num_frames)}

    train_steps(
        model,
        schedule,
        loss_at,
        out=out,
        after_step=lambda trained: clamp_logit_scale_(trained.scale),
        validate=validate,
        tensorboard=tensorboard,
        should_stop=should_stop,
    )
