"""Clips become the tokens that a head reads: in chunks that the tower was made for, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from videolm.encoders.blocks import MLP
from videolm.encoders.cost import layer_costs
from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.reduction_plans import parse_plan
from videolm.encoders.video_clip import VideoCLIP
from videolm.types import Clip, VideoTokens
from videolm.video.transforms import Preprocess, without_repeats


class UnusableClipError(ValueError):
    """What is wrong with one clip for this model; others of the same call may be well."""


@dataclass(frozen=True, eq=False)
class Eyes:
    """A vision tower and what it needs to take clips; with a budget, one for each plan, around the same weights."""

    tower: VideoCLIP
    shape: CLIPShape
    preprocess: Preprocess
    chunk_frames: int
    """Frames that the tower reads at once: those it was trained with. A longer clip is read in several chunks."""
    _towers: dict[str, VideoCLIP] = field(default_factory=dict)
    """By plan."""
    _plans: dict[tuple[int, int], str] = field(default_factory=dict)
    """By number of frames and budget."""

    def tokens(self, clips: Sequence[Clip], *, budget: int | None = None) -> tuple[VideoTokens, list[str]]:
        """The tokens of each clip, as many as `budget` at most, and the plan by which they became so few.

        A clip of more than `chunk_frames` goes through the tower in chunks of equal size, at most that; frames of
        two chunks see each other only in the head. Chunks of one size go together, so that nothing in the tower is
        padding, and no clip's tokens depend on its neighbours'. Raises UnusableClipError where no plan keeps the
        budget.
        """
        plans = [self.shape.reduce] * len(clips)
        if budget is not None:
            plans = [
                self.shape.reduce if count <= budget else self._plan(len(clip.frames), budget)
                for clip, count in zip(clips, self._count_tokens(clips), strict=True)
            ]
        return self._read_by(plans, clips), plans

    def _count_tokens(self, clips: Sequence[Clip]) -> list[int]:
        """Of each clip behind the tower as it is."""
        if parse_plan(self.shape.reduce, depth=self.shape.vision_depth).drop_repeats is None:
            return [self.num_tokens(self.shape, len(clip.frames)) for clip in clips]
        # how many repeats it drops is known when they are seen
        read = self._read_by([self.shape.reduce] * len(clips), clips)
        counts: list[int] = read.mask.sum(dim=1).tolist()
        return counts

    def _read_by(self, plans: Sequence[str], clips: Sequence[Clip]) -> VideoTokens:
        num_chunks = [self._num_chunks(len(clip.frames)) for clip in clips]
        # a chunk is its clip, and its frames in it
        chunks = [
            (i, frames)
            for i, clip in enumerate(clips)
            for frames in torch.arange(len(clip.frames)).tensor_split(num_chunks[i])
        ]
        groups: dict[tuple[str, int], list[int]] = {}
        for number, (i, frames) in enumerate(chunks):
            groups.setdefault((plans[i], len(frames)), []).append(number)
        parts: dict[int, VideoTokens] = {}
        for (plan, _), numbers in groups.items():
            for first in range(0, len(numbers), len(clips)):
                some = numbers[first : first + len(clips)]
                chosen = [(clips[chunks[n][0]], chunks[n][1]) for n in some]
                read = self._read(self._tower(plan), chosen)
                parts |= {n: _row(read, row) for row, n in enumerate(some)}
        joined = [
            _join([parts[n] for n, (i, _) in enumerate(chunks) if i == clip]) for clip in range(len(clips))
        ]
        return _stack(joined)

    def frame_embeddings(self, clip: Clip, *, batch_size: int = 32) -> Float[Tensor, "frames dim"]:
        """The embedding of each frame by itself, on the CPU."""
        single = [(clip, torch.tensor([frame])) for frame in range(len(clip.frames))]
        read = [
            self._read(self.tower, single[first : first + batch_size]).embedding.float().cpu()
            for first in range(0, len(single), batch_size)
        ]
        return torch.cat(read)

    def _num_chunks(self, num_frames: int) -> int:
        return -(-num_frames // self.chunk_frames)

    def _read(self, tower: VideoCLIP, chosen: Sequence[tuple[Clip, Tensor]]) -> VideoTokens:
        weight = tower.vision.position
        frames = torch.stack([self.preprocess(clip.frames[frames]) for clip, frames in chosen])
        seconds = torch.stack([from_first(moments(clip))[frames] for clip, frames in chosen])
        with torch.inference_mode():
            return tower.encode_video(
                frames.to(weight.device, weight.dtype), pts_seconds=seconds.float().to(weight.device)
            )

    def _plan(self, num_frames: int, budget: int) -> str:
        """The first tome:r=... that leaves no more than the budget."""
        if (num_frames, budget) not in self._plans:
            self._plans[num_frames, budget] = self._first_plan(num_frames, budget)
        return self._plans[num_frames, budget]

    def _first_plan(self, num_frames: int, budget: int) -> str:
        whole = replace(self.shape, reduce="")
        # no layer merges more than half of its tokens
        most = layer_costs(whole, num_frames=min(num_frames, self.chunk_frames))[0].num_tokens // 2
        for num_merged in range(1, most + 1):
            shape = self._with_plan(f"tome:r={num_merged}", budget)
            num_left = self.num_tokens(shape, num_frames)
            if num_left <= budget:
                return shape.reduce
        raise UnusableClipError(
            f"budget ({budget}) is too small: of {num_frames} frames tome:r={most} leaves {num_left} tokens, and no "
            "plan fewer; allow that many, or take fewer frames (num_frames=)"
        )

    def _with_plan(self, plan: str, budget: int) -> CLIPShape:
        try:
            return replace(self.shape, reduce=plan)
        except ValueError as error:
            raise ValueError(
                f"budget ({budget}) cannot be kept, for this tower takes no {plan}: {error}"
            ) from error

    def num_tokens(self, shape: CLIPShape, num_frames: int) -> int:
        """Tokens of a clip behind the tower; at most so many with a plan that goes by what is seen."""
        num_chunks = self._num_chunks(num_frames)
        sizes = [len(part) for part in torch.arange(num_frames).tensor_split(num_chunks)]
        last = {size: layer_costs(shape, num_frames=size)[-1] for size in set(sizes)}
        return sum(last[size].num_frames * last[size].num_tokens_after for size in sizes)

    def _tower(self, plan: str) -> VideoCLIP:
        if plan == self.shape.reduce:
            return self.tower
        if plan not in self._towers:
            self._towers[plan] = with_same_weights(self.tower, replace(self.shape, reduce=plan))
        return self._towers[plan]


def moments(clip: Clip) -> Float[Tensor, " frames"]:
    """A time for each place in the clip, float64, no two alike where the clip goes forward.

    A short video is asked for the same frame again and again; that one is on show until the next begins, and its
    repetitions get equally distant times in between. A head that counts frames, or tells earlier from later, then
    reads as many as the tower did.
    """
    rows, counts = without_repeats(clip.pts_seconds.unsqueeze(1))
    distinct = rows.squeeze(1)
    gaps = distinct.diff()
    # how long the last one is on show the clip of a span does not know
    last = gaps.median() if len(gaps) else distinct.new_tensor(1.0)
    gaps = torch.cat([gaps, last[None]]).clamp(min=1e-3)
    repetition = torch.cat([torch.arange(count) / count for count in counts.tolist()])
    return distinct.repeat_interleave(counts) + repetition * gaps.repeat_interleave(counts)


def from_first(seconds: Float[Tensor, " frames"]) -> Float[Tensor, " frames"]:
    """Times counted from the earliest: float32 tells a thirtieth of a second there, and no more a day from zero."""
    return seconds - seconds.min()


def with_same_weights(tower: VideoCLIP, shape: CLIPShape) -> VideoCLIP:
    """A tower of another plan around the same tensors, which take no memory again."""
    with torch.device("meta"):
        other = build_video_clip(shape)
    other.load_state_dict(tower.state_dict(), strict=True, assign=True)
    other.pixel_std = tower.pixel_std
    for mine, theirs in zip(_mlps(other), _mlps(tower), strict=True):
        # it goes with the weights, see fold_quick_gelu
        mine.activation = theirs.activation
    return other.eval()


def _mlps(module: nn.Module) -> list[MLP]:
    return [part for part in module.modules() if isinstance(part, MLP)]


def _row(video: VideoTokens, row: int) -> VideoTokens:
    """One clip of a batch, without the rows that others needed."""
    real = video.mask[row]
    return VideoTokens(
        tokens=video.tokens[row, real][None],
        mask=real[real][None],
        sizes=video.sizes[row, real][None],
        pts_seconds=video.pts_seconds[row, real][None],
        embedding=video.embedding[row : row + 1],
    )


def _join(parts: Sequence[VideoTokens]) -> VideoTokens:
    """The chunks of one clip, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return VideoTokens(
        tokens=torch.cat([part.tokens for part in parts], dim=1),
        mask=torch.cat([part.mask for part in parts], dim=1),
        sizes=torch.cat([part.sizes for part in parts], dim=1),
        pts_seconds=torch.cat([part.pts_seconds for part in parts], dim=1),
        embedding=F.normalize(torch.stack([part.embedding for part in parts]).mean(dim=0), dim=-1),
    )


def _stack(videos: Sequence[VideoTokens]) -> VideoTokens:
    """A batch of clips, filled with zeros at the end."""
    longest = max(video.mask.shape[1] for video in videos)

    def whole(name: str) -> Tensor:
        rows = [getattr(video, name) for video in videos]
        return torch.cat([F.pad(row, (0, 0) * (row.ndim - 2) + (0, longest - row.shape[1])) for row in rows])

    return VideoTokens(
        tokens=whole("tokens"),
        mask=whole("mask"),
        sizes=whole("sizes"),
        pts_seconds=whole("pts_seconds"),
        embedding=torch.cat([video.embedding for video in videos]),
    )
