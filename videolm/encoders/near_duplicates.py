"""Patches that are as in the frame before, and tokens without them: what `drop_repeats` plans behind the tower."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from videolm.types import VideoTokens


def changed_patches(
    frames: Float[Tensor, "batch frames 3 height width"],
    *,
    patch_size: int,
    threshold: float,
    pixel_std: tuple[float, float, float],
    keep_one: bool,
) -> Bool[Tensor, "batch frames patches"]:
    """Whether each patch changed since the frame before, as `drop_repeats` says; in the first frame all have.

    `frames` were divided by `pixel_std`; with `keep_one` the first patch of a frame in which none changed has.
    """
    std = torch.tensor(pixel_std, device=frames.device).view(3, 1, 1)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    difference = ((frames - before).float() * std).abs().mean(dim=2)
    # From pixels in [0, 1] to such from -1 to 1, and from those to the 255 of the rule.
    change = F.avg_pool2d(difference, patch_size).flatten(2) * 2 * 255
    has_changed = change > threshold
    if keep_one:
        has_changed[:, :, 0] |= ~has_changed.any(dim=2)
    has_changed[:, 0] = True
    return has_changed


def without_repeats(
    video: VideoTokens,
    assignment: Int[Tensor, "batch originals"] | None,
    changed: Bool[Tensor, "batch frames patches"],
) -> VideoTokens:
    """Only the tokens that exist and stand for a patch that `changed`, or for a class token; moved together.

    The longest clip decides how many rows there are, so the host waits for the device. `assignment` is the row
    of each original token, class tokens before the patches of their frame; None: its own.
    """
    _, frames, num_patches = changed.shape
    if assignment is None:
        stays = _with_class_tokens(changed, video.mask.shape[1] // frames - num_patches)
    else:
        changed = _with_class_tokens(changed, assignment.shape[1] // frames - num_patches)
        changed = changed & (assignment >= 0)
        stays = torch.zeros_like(video.mask, dtype=torch.int32)
        stays = stays.scatter_add(1, assignment.clamp(min=0).long(), changed.int()) > 0
    stays = stays & video.mask
    num_left = stays.sum(dim=1)
    longest = int(num_left.max())
    rows = stays.int().sort(dim=1, descending=True, stable=True).indices[:, :longest]
    mask = torch.arange(longest, device=rows.device) < num_left[:, None]
    return VideoTokens(
        tokens=video.tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, video.tokens.shape[2])),
        mask=mask,
        sizes=video.sizes.gather(1, rows),
        pts_seconds=video.pts_seconds.gather(1, rows),
        embedding=video.embedding,
    )


def _with_class_tokens(
    changed: Bool[Tensor, "batch frames patches"], num_class_tokens: int
) -> Bool[Tensor, "batch originals"]:
    return F.pad(changed, (num_class_tokens, 0), value=True).flatten(1)
