"""The training loop: one process, plain torch, resumable at any step. What a step learns from is the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from videolm.training.checkpoint import load_checkpoint, save_checkpoint
from videolm.training.logs import Log
from videolm.training.optim import adamw, warmup_cosine

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Settings:
    """What every training run decides, whatever it trains."""

    num_steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.1
    warmup_share: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products in bfloat16 (autocast), weights and optimiser in float32."""
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
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay ({self.weight_decay}) must be at least 0 and finite")
        if self.shift < 0:
            raise ValueError(f"shift ({self.shift}) must be at least 0 pixels")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share ({self.warmup_share}) must be between 0 and 1")


def train_steps(
    model: Model,
    settings: Settings,
    loss_at: Callable[[int], tuple[Float[Tensor, ""], dict[str, float]]],
    *,
    out: str | Path,
    after_step: Callable[[Model], None] | None = None,
    validate: Callable[[Model], dict[str, float]] | None = None,
    tensorboard: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Trains `model` in place on `loss_at(step)`, a pure function of the step that also gives values to log.

    Only parameters that require a gradient are trained. State goes to `out/checkpoint.pt` every `checkpoint_every`
    steps and at the end; a run that finds one goes on from there and computes, step for step, what it would have
    computed without the stop. One of other settings is a ValueError. `should_stop` is asked after every step and ends
    the call with the state saved. `validate` is called every `validate_every` steps and logged.
    """
    optimizer = adamw(model, lr=settings.lr, weight_decay=settings.weight_decay)
    state = load_checkpoint(out)
    first = 0
    if state is not None:
        _check_same_settings(state["schedule"], settings, out)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log = Log(out, first_step=first, tensorboard=tensorboard)
    last = settings.num_steps
    bar = tqdm(range(first, last), initial=first, total=last, unit="step", disable=None)
    try:
        for step in bar:
            model.train()
            values = _step(model, settings, step, loss_at, optimizer)
            if after_step is not None:
                after_step(model)
            done = step + 1
            stopping = done == last or (should_stop is not None and should_stop())
            if done % 10 == 0 or stopping:
                bar.set_postfix(loss=f"{values['loss']:.3f}")
                log(done, values)
            # before the checkpoint, after which a killed run would not come back to it
            if validate is not None and (done % settings.validate_every == 0 or done == last):
                model.eval()
                with torch.inference_mode():
                    log(done, validate(model))
            if done % settings.checkpoint_every == 0 or stopping:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                save_checkpoint(out, state | {"schedule": asdict(settings)})
            if stopping:
                break
    finally:
        log.close()
    model.eval()


def step_seed(seed: int, step: int) -> int:
    """A seed for one step; torch's CPU generator keeps 32 bits, so seed and step have to share them."""
    return (1_000_003 * seed + step) % 2**32


def _check_same_settings(found: dict[str, Any], settings: Settings, out: str | Path) -> None:
    asked = asdict(settings)
    differing = sorted(key for key in found.keys() | asked.keys() if found.get(key) != asked.get(key))
    if differing:
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(differing)}); choose another folder, or "
            "remove its checkpoint.pt to start again"
        )


def _step(
    model: nn.Module,
    settings: Settings,
    step: int,
    loss_at: Callable[[int], tuple[Float[Tensor, ""], dict[str, float]]],
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """One update of the weights."""
    factor = warmup_cosine(
        step,
        warmup_steps=max(int(settings.warmup_share * settings.num_steps), 1),
        num_steps=settings.num_steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * factor
    # what a module draws by itself (dropout) must not depend on the steps before either
    torch.manual_seed(step_seed(settings.seed, step))
    loss, values = loss_at(step)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"step {step}: the gradient is not finite (loss {float(loss.detach())}); lower lr"
        )
    optimizer.step()
    return {
        "loss": float(loss.detach()),
        "lr": settings.lr * factor,
        "grad_norm": float(norm),
        **values,
    }
