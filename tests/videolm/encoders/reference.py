"""A CLIP under openai/CLIP's names, made of torch's own layers: what readers and towers are measured against."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, TEXT_WIDTH, PATCH, IMAGE, CONTEXT, VOCABULARY, DEPTH = 192, 128, 4, 12, 7, 40, 2
JOINT = TEXT_WIDTH


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Layer(nn.Module):
    def __init__(
        self, width: int, heads: int, activation: nn.Module, *, eps: float = 1e-5, layer_scale: bool = False
    ) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=activation, c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.ls_1 = LayerScale(width) if layer_scale else nn.Identity()
        self.ls_2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.ls_1(self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Layers(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(layers)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.resblocks:
            x = layer(x, mask)
        return x


class Vision(nn.Module):
    def __init__(self, heads: int, activation: nn.Module, *, layer_scale: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((IMAGE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Layers(
            [Layer(WIDTH, heads, activation, layer_scale=layer_scale) for _ in range(DEPTH)]
        )
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, JOINT) * 0.1)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.conv1(pictures).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        tokens = self.transformer(self.ln_pre(tokens + self.positional_embedding))
        return self.ln_post(tokens[:, 0]) @ self.proj


class Text(nn.Module):
    def __init__(self, heads: int, activation: nn.Module, *, layer_scale: bool) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, TEXT_WIDTH) * 0.1)
        self.transformer = Layers(
            [Layer(TEXT_WIDTH, heads, activation, layer_scale=layer_scale) for _ in range(DEPTH)]
        )
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, JOINT) * 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        words = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        later = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, dtype=words.dtype).triu(1)
        words = self.ln_final(self.transformer(words, later))
        return words[torch.arange(len(ids)), ids.argmax(dim=1)] @ self.text_projection


class ReferenceCLIP(nn.Module):
    """open_clip's CustomTextCLIP; `flat_state` has the names of openai/CLIP and of open_clip's CLIP."""

    def __init__(
        self,
        *,
        activation: Literal["quick_gelu", "gelu"] = "quick_gelu",
        vision_heads: int = WIDTH // 64,
        text_heads: int = TEXT_WIDTH // 64,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        layer = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.visual = Vision(vision_heads, layer, layer_scale=layer_scale)
        self.text = Text(text_heads, layer, layer_scale=layer_scale)
        self.logit_scale = nn.Parameter(torch.tensor(3.25))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)

    def forward(self, pictures: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual(pictures), self.text(ids)

    def flat_state(self, prefix: str = "") -> dict[str, Tensor]:
        return {prefix + key.removeprefix("text."): value for key, value in self.state_dict().items()}


class FrameTransformer(nn.Module):
    """CLIP4Clip's transformer over frames, under its names."""

    def __init__(self, *, depth: int = 3, max_frames: int = CONTEXT) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(max_frames, JOINT)
        self.transformerClip = Layers(
            [Layer(JOINT, JOINT // 64, QuickGELU(), eps=1e-12) for _ in range(depth)]
        )

    def forward(self, frames: Tensor) -> Tensor:
        return frames + self.transformerClip(
            frames + self.frame_position_embeddings.weight[: frames.shape[1]]
        )


class FrameLSTM(nn.Module):
    """CLIP4Clip's LSTM over frames, under its names; its positions are of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(CONTEXT, JOINT)
        self.lstm_visual = nn.LSTM(JOINT, JOINT, batch_first=True)

    def forward(self, frames: Tensor) -> Tensor:
        return frames + self.lstm_visual(frames)[0]


def mean_of_frames(clip: ReferenceCLIP, frames: Tensor, *, aggregator: nn.Module | None = None) -> Tensor:
    """CLIP4Clip's vector of one clip (T, 3, H, W) that has no frame too many, in float64."""
    features = clip.double().visual(frames.double())
    if aggregator is not None:
        features = aggregator.double()(features[None])[0]
    return F.normalize(F.normalize(features, dim=-1).mean(dim=0), dim=0)


def sentences() -> tuple[Tensor, Tensor]:
    """Ids and mask of sentences of several lengths; the end token is the last of the vocabulary, padding is 0."""
    num_words = torch.tensor([2, 4, CONTEXT])
    ids = torch.randint(1, VOCABULARY - 1, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(CONTEXT) < num_words[:, None]
    ids = ids.masked_fill(~mask, 0)
    ids[torch.arange(3), num_words - 1] = VOCABULARY - 1
    return ids, mask
