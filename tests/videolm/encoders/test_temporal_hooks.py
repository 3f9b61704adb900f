"""What the hooks of a tower can carry beside what is built in: proofs on small towers of what `Block` says of them."""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videolm.encoders.blocks import Attended, Grid, add_attended
from videolm.encoders.clip import ImageTower

WIDTH, HEADS, DEPTH, PATCHES = 12, 3, 2, 4


def tower(**hooks: object) -> ImageTower:
    torch.manual_seed(0)
    return ImageTower(
        image_size=8, patch_size=4, width=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_width=20, joint_dim=5,
        activation="gelu", **hooks,
    ).eval()  # fmt: skip


def random_frames(batch: int, num_frames: int) -> Tensor:
    return torch.randn(batch, num_frames, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# Proxy tokens: CLIP-ViP, arXiv 2209.06430


class AppendProxies(nn.Module):
    """An `embed`: every frame gets a copy of the clip's proxies."""

    def __init__(self, num_proxies: int) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(num_proxies, WIDTH))

    def forward(self, grid: Grid) -> Grid:
        copies = self.proxies.expand(*grid.tokens.shape[:2], -1, -1)
        return replace(grid, tokens=torch.cat([grid.tokens, copies], dim=2))


class GuideProxies(nn.Module):
    """A `mid`: class token and proxies attend to all frames, and all their copies get the same."""

    def __init__(self, out: nn.Linear, num_proxies: int) -> None:
        super().__init__()
        # In a tuple it stays the block's alone, with its weights in no second place.
        self.out = (out,)
        self.num_proxies = num_proxies

    def forward(self, grid: Grid, attended: Attended) -> Grid:
        shared = [0, *range(-self.num_proxies, 0)]
        qkv = torch.cat(
            [attended.qkv[:, 0, shared], attended.qkv[:, :, 1 : -self.num_proxies].flatten(1, 2)], dim=1
        )
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(query[:, :, : len(shared)], key, value)
        update = attended.update.clone()
        update[:, :, shared] = self.out[0](gathered.transpose(1, 2).flatten(2)).unsqueeze(1)
        return add_attended(grid, replace(attended, update=update))


class DropProxies(nn.Module):
    """A `tap` of the last block."""

    def __init__(self, num_proxies: int) -> None:
        super().__init__()
        self.num_proxies = num_proxies

    def forward(self, grid: Grid) -> Grid:
        return replace(grid, tokens=grid.tokens[:, :, : -self.num_proxies])


@torch.no_grad()
def test_proxy_tokens_that_see_all_frames_can_be_hung_on_hooks() -> None:
    num_proxies, num_frames = 3, 4
    model = tower(embed=AppendProxies(num_proxies), tap={DEPTH - 1: DropProxies(num_proxies)})
    for block in model.blocks:
        block.mid = GuideProxies(block.attention.out, num_proxies)
    frames = random_frames(2, num_frames)
    actual = model(frames).tokens

    # The same by CLIP-ViP's own rule: one sequence of the shared tokens and all patches, with a mask.
    patches = model.patch(frames.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (2, num_frames))
    patches = (patches + model.position[1:]).flatten(1, 2)
    shared = torch.cat([(model.class_token + model.position[0]).unsqueeze(0), model.embed.proxies])
    x = model.ln_pre(torch.cat([shared.expand(2, -1, -1), patches], dim=1))
    frame_of = torch.cat([torch.full((1 + num_proxies,), -1), torch.arange(num_frames).repeat_interleave(4)])
    sees = (frame_of[:, None] == -1) | (frame_of[None] == -1) | (frame_of[:, None] == frame_of[None])
    for block in model.blocks:
        qkv = block.attention.qkv(block.ln_1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv, attn_mask=sees)
        x = x + block.attention.out(attended.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    torch.testing.assert_close(actual[:, :, 0], x[:, :1].expand(-1, num_frames, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(actual[:, :, 1:].flatten(1, 2), x[:, 1 + num_proxies :], rtol=0, atol=1e-5)


# A side branch: STAN, arXiv 2301.11116


@dataclass(frozen=True, eq=False)
class SideGrid(Grid):
    """A Grid with the tokens of a second tower, which blocks pass on as they are."""

    side: Tensor | None = None


class OpenBranch(nn.Module):
    """An `embed`."""

    def forward(self, grid: Grid) -> SideGrid:
        return SideGrid(
            **{f.name: getattr(grid, f.name) for f in fields(grid)}, side=torch.zeros_like(grid.tokens)
        )


class BranchLayer(nn.Module):
    """A `tap`: what the branch holds, and the tokens of this level, through a layer of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, dropout=0.0, batch_first=True)

    def forward(self, grid: SideGrid) -> SideGrid:
        batch, frames, num_tokens, width = grid.tokens.shape
        mixed = (grid.side + grid.tokens).transpose(1, 2).reshape(batch * num_tokens, frames, width)
        side = self.layer(mixed).view(batch, num_tokens, frames, width).transpose(1, 2)
        return replace(grid, side=side)


class JoinBranch(nn.Module):
    """The last `tap`: the branch is added to the tower."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = BranchLayer()
        self.out = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, grid: SideGrid) -> Grid:
        grid = self.layer(grid)
        return replace(grid, tokens=grid.tokens + self.out(grid.side), side=None)


def test_a_side_branch_can_be_hung_on_taps() -> None:
    frames = random_frames(2, 3)
    expected = tower()(frames).tokens
    model = tower(embed=OpenBranch(), tap={0: BranchLayer(), DEPTH - 1: JoinBranch()})
    model.load_state_dict(tower().state_dict(), strict=False)
    assert torch.equal(model(frames).tokens, expected)

    nn.init.normal_(model.blocks[-1].tap.out.weight)
    out = model(frames).tokens
    assert not torch.allclose(out, expected, atol=1e-3)
    out.square().sum().backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if ".tap." in name and "bias" not in name)
    other = frames.clone()
    other[:, 2] += 1
    assert not torch.allclose(model(other).tokens[:, 0], out[:, 0], atol=1e-3)


# Local temporal convolution: mPLUG-2, arXiv 2302.00402


class LocalTemporal(nn.Module):
    """A `pre`: each token adds what a convolution over its neighbours in time makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(WIDTH, 4)
        self.over_time = nn.Conv1d(4, 4, kernel_size=3, padding=1, groups=4)
        self.up = nn.Linear(4, WIDTH)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, grid: Grid) -> Grid:
        batch, frames, num_tokens, _ = grid.tokens.shape
        hidden = self.down(grid.tokens)
        if grid.lengths is not None:
            hidden = hidden * (torch.arange(frames) < grid.lengths[:, None])[:, :, None, None]
        hidden = self.over_time(hidden.permute(0, 2, 3, 1).flatten(0, 1)).view(batch, num_tokens, 4, frames)
        return replace(grid, tokens=grid.tokens + self.up(hidden.permute(0, 3, 1, 2)))


@torch.no_grad()
def test_a_local_temporal_convolution_is_a_hook() -> None:
    frames = random_frames(2, 4)
    model = tower(pre={0: LocalTemporal()})
    model.load_state_dict(tower().state_dict(), strict=False)
    assert torch.equal(model(frames).tokens, tower()(frames).tokens)
    nn.init.normal_(model.blocks[0].pre.up.weight)
    frames[1, 2:] = 50.0
    together = model(frames, lengths=torch.tensor([4, 2])).tokens
    torch.testing.assert_close(together[1:, :2], model(frames[1:, :2]).tokens, rtol=0, atol=1e-5)
    assert not torch.allclose(model(frames.flip(1)).tokens.flip(1)[:1], together[:1], atol=1e-3)
