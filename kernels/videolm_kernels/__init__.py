"""Fused operations on video tokens. They know tensors, no video and no CLIP; see kernels/README.md."""

from videolm_kernels.temporal_attention.op import temporal_attention

__all__ = ["temporal_attention"]
