"""Inputs, options and a truth of its own for the tests of temporal attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videolm_kernels import temporal_attention

Shape = tuple[int, int, int, int, int]
# (B, T, N, H, Dh): one of everything, primes, T around powers of two, CLIP's own, the heads of a small model.
ODD_SHAPES: tuple[Shape, ...] = (
    (1, 1, 1, 1, 1),
    (2, 1, 5, 3, 8),
    (3, 2, 1, 1, 16),
    (2, 7, 5, 2, 24),
    (1, 8, 17, 4, 48),
    (2, 12, 7, 1, 64),
    (1, 13, 3, 5, 33),
    (1, 33, 2, 2, 8),
)

# The same for kernels, which know four head widths: full and partial tiles, T at, below and above a tile's rows.
KERNEL_SHAPES: tuple[Shape, ...] = (
    (2, 1, 67, 1, 16),
    (3, 2, 1, 2, 16),
    (1, 7, 13, 2, 32),
    (2, 8, 17, 1, 16),
    (2, 12, 7, 2, 64),
    (1, 13, 5, 1, 128),
    (2, 16, 5, 1, 32),
    (1, 20, 7, 2, 16),
    (1, 32, 3, 1, 128),
    (1, 33, 3, 1, 64),
    (1, 64, 1, 2, 16),
)

OPTIONS = ("lengths", "time_bias", "shared_key_value", "is_causal", "num_skipped")


def random_qkv(shape: Shape, *, seed: int = 0) -> Tensor:
    batch, frames, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, tokens, 3, heads, head_dim, dtype=torch.float64, generator=generator)


def random_upstream(shape: Shape, *, seed: int = 1) -> Tensor:
    return random_qkv(shape, seed=seed)[:, :, :, 0].contiguous()


def random_options(names: tuple[str, ...], shape: Shape, *, seed: int = 2) -> dict[str, Any]:
    """Those of OPTIONS that are named; the first clip misses a frame, and the last one all of them."""
    batch, frames, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((batch,), frames)
    lengths[:1], lengths[batch // 2 + 1 :] = max(frames - 1, 1), 0
    every = {
        "lengths": lengths,
        "time_bias": torch.randn(heads, 2 * frames - 1, dtype=torch.float64, generator=generator),
        "shared_key_value": torch.randn(batch, 2, heads, head_dim, dtype=torch.float64, generator=generator),
        "is_causal": True,
        "num_skipped": min(1, tokens),
    }
    return {name: every[name] for name in names}


def cast(options: dict[str, Any], dtype: torch.dtype, device: torch.device | None = None) -> dict[str, Any]:
    """The options on `device`, those with a gradient as `dtype`."""
    moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
    return {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in moved.items()
    }


def value_and_gradients(qkv: Tensor, *, upstream: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The result and the gradients of qkv, time_bias and shared_key_value, where given."""
    qkv = qkv.detach().requires_grad_()
    options = {
        name: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in options.items()
    }
    given = [options[name] for name in ("time_bias", "shared_key_value") if name in options]
    out = temporal_attention(qkv, **options)
    return out.detach(), *torch.autograd.grad(out, [qkv, *given], upstream)


def attention_one_position_at_a_time(
    qkv: Tensor,
    *,
    lengths: Tensor | None = None,
    time_bias: Tensor | None = None,
    shared_key_value: Tensor | None = None,
    is_causal: bool = False,
    num_skipped: int = 0,
) -> Tensor:
    """torch's own attention on the existing frames of one clip, position and head after the other."""
    batch, frames, tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_zeros(batch, frames, tokens, heads, head_dim)
    for b in range(batch):
        length = frames if lengths is None else int(lengths[b])
        for n in range(num_skipped, tokens):
            for h in range(heads):
                query, key, value = qkv[b, :length, n, :, h].unbind(1)
                bias = qkv.new_zeros(length, length)
                for t in range(length):
                    for s in range(length):
                        if time_bias is not None:
                            bias[t, s] = time_bias[h, t - s + frames - 1]
                        if is_causal and s > t:
                            bias[t, s] = -torch.inf
                if shared_key_value is not None:
                    key = torch.cat([key, shared_key_value[b, :1, h]])
                    value = torch.cat([value, shared_key_value[b, 1:, h]])
                    bias = F.pad(bias, (0, 1))
                attended = F.scaled_dot_product_attention(query[None], key[None], value[None], bias[None])
                out[b, :length, n, h] = attended[0]
    return out
