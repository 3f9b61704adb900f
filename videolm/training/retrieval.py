"""The training loop of the dual encoder: one process, plain torch, resumable at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from videolm.encoders.video_clip import VideoCLIP
from videolm.text.tokenizer import Tokenizer
from videolm.training.batches import TrainingVideo, draw_batch
from videolm.training.checkpoint import load_checkpoint, save_checkpoint
from videolm.training.frames import pick_segment_random
from videolm.training.logs import Log
from videolm.training.losses import clamp_logit_scale_, info_nce
from videolm.training.optim import adamw, warmup_cosine


@dataclass(frozen=True)
class Stage:
    """From this share of the run on, this value."""

    start: float
    value: int


@dataclass(frozen=True)
class Schedule:
    """Everything that decides how a model is trained, but not what it is."""

    num_steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.1
    warmup_share: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products in bfloat16 (autocast), weights and optimiser in float32."""
    twin_share: float = 0.0
    """Share of a batch that consists of twin pairs."""
    num_frames: list[Stage] = field(default_factory=lambda: [Stage(0.0, 8)])
    difficulty: list[Stage] = field(default_factory=lambda: [Stage(0.0, 1)])
    shift: int = 0
    """Pixels by which the pictures of a video are moved at random, together."""
    checkpoint_every: int = 200
    validate_every: int = 500

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "checkpoint_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        for name in ("lr", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} ({getattr(self, name)}) must be above 0 and finite")
        if self.shift < 0:
            raise ValueError(f"shift ({self.shift}) must be at least 0 pixels")
        for name in ("twin_share", "warmup_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be between 0 and 1")
        for name in ("num_frames", "difficulty"):
            starts = [stage.start for stage in getattr(self, name)]
            if not starts or starts[0] != 0 or starts != sorted(set(starts)):
                raise ValueError(f"{name} must have rising starts from 0.0, has {starts}")
            if min(stage.value for stage in getattr(self, name)) < 1:
                raise ValueError(f"{name} must have values of at least 1")


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
    """Trains `model` in place on `videos`, whose pictures are the rows of `frames`.

    State goes to `out/checkpoint.pt` every `checkpoint_every` steps and at the end; a run that finds one goes on
    from there and computes, step for step, what it would have computed without the stop. One of another schedule
    is a ValueError. `should_stop` is asked after every step and ends the call with the state saved. `validate` is
    called every `validate_every` steps and logged.
    """
    if len(videos) != len(frames):
        raise ValueError(f"videos ({len(videos)}) must be as many as rows of frames ({len(frames)})")
    hardest = max(video.difficulty for video in videos)
    if schedule.difficulty[-1].value < hardest:
        raise ValueError(
            f"difficulty ends at {schedule.difficulty[-1].value}, so that videos of {hardest} are never seen"
        )
    device = model.logit_scale.device
    optimizer = adamw(model, lr=schedule.lr, weight_decay=schedule.weight_decay)
    state = load_checkpoint(out)
    first = 0
    if state is not None:
        _check_same_schedule(state["schedule"], schedule, out)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log = Log(out, first_step=first, tensorboard=tensorboard)
    last = schedule.num_steps
    bar = tqdm(range(first, last), initial=first, total=last, unit="step", disable=None)
    try:
        for step in bar:
            model.train()
            values = _step(model, tokenizer, videos, frames, schedule, step, optimizer, preprocess, device)
            done = step + 1
            stopping = done == last or (should_stop is not None and should_stop())
            if done % 10 == 0 or stopping:
                bar.set_postfix(loss=f"{values['loss']:.3f}")
                log(done, values)
            # before the checkpoint, after which a killed run would not come back to it
            if validate is not None and (done % schedule.validate_every == 0 or done == last):
                model.eval()
                with torch.inference_mode():
                    log(done, validate(model))
            if done % schedule.checkpoint_every == 0 or stopping:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                save_checkpoint(out, state | {"schedule": asdict(schedule)})
            if stopping:
                break
    finally:
        log.close()
    model.eval()


def _check_same_schedule(found: dict[str, Any], schedule: Schedule, out: str | Path) -> None:
    asked = asdict(schedule)
    differing = sorted(key for key in found.keys() | asked.keys() if found.get(key) != asked.get(key))
    if differing:
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(differing)}); choose another folder, or "
            "remove its checkpoint.pt to start again"
        )


def _step(
    model: VideoCLIP,
    tokenizer: Tokenizer,
    videos: Sequence[TrainingVideo],
    frames: UInt8[Tensor, "videos cached height width 3"],
    schedule: Schedule,
    step: int,
    optimizer: torch.optim.Optimizer,
    preprocess: Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n 3 height width"]],
    device: torch.device,
) -> dict[str, float]:
    """One update of the weights."""
    batch = draw_batch(
        videos,
        step,
        seed=schedule.seed,
        batch_size=schedule.batch_size,
        num_steps=schedule.num_steps,
        twin_share=schedule.twin_share,
        frames_schedule=[(stage.start, stage.value) for stage in schedule.num_frames],
        difficulty_schedule=[(stage.start, stage.value) for stage in schedule.difficulty],
    )
    picked = pick_segment_random(
        frames.shape[1], num_frames=batch.num_frames, batch=len(batch.rows), generator=batch.generator
    )
    pictures = frames[batch.rows[:, None], picked]
    if schedule.shift:
        pictures = _shifted(pictures, schedule.shift, batch.generator)
    pixels = preprocess(pictures.flatten(0, 1).to(device)).view(*pictures.shape[:2], 3, *pictures.shape[2:4])
    input_ids, mask = (tensor.to(device) for tensor in tokenizer(batch.captions))
    factor = warmup_cosine(
        step,
        warmup_steps=max(int(schedule.warmup_share * schedule.num_steps), 1),
        num_steps=schedule.num_steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * factor
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=schedule.precision == "bfloat16"):
        video = model.encode_video(pixels).embedding
        text = model.encode_text(input_ids, mask).embedding
    loss = info_nce(text, video, logit_scale=model.logit_scale, video_ids=batch.rows.to(device))
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.max_grad_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"step {step}: the gradient is not finite (loss {float(loss.detach())}); lower lr"
        )
    optimizer.step()
    clamp_logit_scale_(model.logit_scale)
    return {
        "loss": float(loss.detach()),
        "lr": schedule.lr * factor,
        "grad_norm": float(norm),
        "logit_scale": float(model.logit_scale.detach().exp()),
        "num_frames": float(batch.num_frames),
    }


def _shifted(
    pictures: UInt8[Tensor, "batch frames height width 3"], most: int, generator: torch.Generator
) -> UInt8[Tensor, "batch frames height width 3"]:
    """Each video moved by up to `most` pixels in both directions, its edge repeated."""
    batch, _, height, width, _ = pictures.shape
    offset = torch.randint(-most, most + 1, (2, batch, 1), generator=generator)
    rows = (torch.arange(height) + offset[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + offset[1]).clamp(0, width - 1)
    index = torch.arange(batch)[:, None, None]
    # advanced indices around the slice of frames come first: (batch, height, width, frames, 3)
    moved = pictures[index, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2, 4)
