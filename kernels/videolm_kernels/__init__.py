"""Fused operations on video tokens. They know tensors, no video and no CLIP; see kernels/README.md."""

from videolm_kernels.frame_attention.op import frame_attention
from videolm_kernels.temporal_attention.op import temporal_attention
from videolm_kernels.token_interaction.op import token_interaction
from videolm_kernels.token_merging.match import Match, compose_assignments, max_merged
from videolm_kernels.token_merging.op import match_tokens, merge_tokens, unmerge_tokens

__all__ = [
    "Match",
    "compose_assignments",
    "frame_attention",
    "match_tokens",
    "max_merged",
    "merge_tokens",
    "temporal_attention",
    "token_interaction",
    "unmerge_tokens",
]
