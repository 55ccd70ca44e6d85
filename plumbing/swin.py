"""Swin Transformer (Liu et al., ICCV 2021), the teacher's backbone (Fig. 5)."""

from __future__ import annotations

import functools
import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# name: embedding width, blocks and attention heads of the four stages, public ImageNet weights
SWIN = {
    "swin_l": (192, (2, 2, 18, 2), (6, 12, 24, 48), "swin_large_patch4_window7_224_22k.pth"),
    "swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32), "swin_base_patch4_window7_224_22k.pth"),
    "swin_s": (96, (2, 2, 18, 2), (3, 6, 12, 24), "swin_small_patch4_window7_224.pth"),
    "swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24), "swin_tiny_patch4_window7_224.pth"),
    "swin_nano": (48, (2, 2, 2, 2), (2, 4, 8, 16), None),  # ours, for a CPU
}


class WindowAttention(nn.Module):
    """Self-attention among the window x window tokens of a window, with a learned bias for every
    relative position. In and out: (windows, window^2, C)."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        at = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # (window^2, 2)
        apart = at[:, None] - at[None] + window - 1  # 0 .. 2 window - 2 down and across
        row = (apart[..., 0] * (2 * window - 1) + apart[..., 1]).flatten()
        self.register_buffer("row", row, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask (windows of one picture, window^2, window^2), added to the attention's logits."""
        n, t, dim = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # gather, as in Eq. 9: its backward adds in one order on any CPU threads
        rows = self.row[:, None].expand(-1, self.heads)
        bias = self.relative_position_bias_table.gather(0, rows).T.reshape(1, self.heads, t, t)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(n // len(mask), 1, 1, 1)
        logits = q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5 + bias
        x = logits.softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, t, dim))


@functools.lru_cache(maxsize=32)
def shift_mask(size: tuple[int, int], window: int) -> Tensor:
    """-100 between tokens that only the cyclic shift by window // 2 brought into one window, else
    0: (windows, window^2, window^2) for a map of `size`, multiples of window."""
    regions = []
    for length in size:  # rolled: what was there | the other end
        regions.append((torch.arange(length) >= length - window // 2).long())
    label = 2 * regions[0][:, None] + regions[1]
    label = to_windows(label[None, ..., None], window).squeeze(-1)
    return (label[:, :, None] != label[:, None]) * -100.0


def to_windows(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C), H and W multiples of window -> (N * windows, window^2, C)."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(-1, window * window, c)


def from_windows(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`; size: (H, W)."""
    (h, w), c = size, x.shape[-1]
    x = x.view(-1, h // window, w // window, window, window, c).transpose(2, 3)
    return x.reshape(-1, h, w, c)


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a LayerNorm and beside a skip; windows are shifted by
    half in every second block. Any map (N, H, W, C) is padded with zeros to whole windows."""

    def __init__(self, dim: int, window: int, heads: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self._attend(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, -w % self.window, 0, -h % self.window))
        whole, s, mask = tuple(x.shape[1:3]), self.shift, None
        if s:
            x = x.roll((-s, -s), (1, 2))
            mask = shift_mask(whole, self.window).to(x.device)
        x = self.attn(to_windows(x, self.window), mask)
        x = from_windows(x, self.window, whole)
        return (x.roll((s, s), (1, 2)) if s else x)[:, :h, :w]

    def _drop(self, x: Tensor) -> Tensor:
        """Stochastic depth: in training this branch is left out for a share of the samples."""
        if not self.training or not self.drop_path:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
        return x * (keep.to(x.dtype) / (1 - self.drop_path))


class PatchMerging(nn.Module):
    """2x2 tokens of C channels -> one of 2C. An odd map is padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class PatchEmbed(nn.Module):
    """4x4 pixels -> a token: (N, 3, H, W) -> (N, ceil(H/4), ceil(W/4), C); zeros fill the last."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """Blocks at one resolution, and the merging that follows (none after the last stage)."""

    def __init__(self, dim: int, window: int, heads: int, drop: list[float], last: bool) -> None:
        super().__init__()
        blocks = [SwinBlock(dim, window, heads, i % 2 == 1, rate) for i, rate in enumerate(drop)]
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if last else PatchMerging(dim)


class Swin(nn.Module):
    """Swin Transformer (Liu et al., ICCV 2021) as a backbone, named as its authors name it.

    In: (N, 3, H, W), normalised, of any size. Out: four maps of `channels` = embed * (1, 2, 4, 8)
    at 1/4 .. 1/32 (rounded up), each after a LayerNorm of its own. drop_path grows linearly over
    the blocks up to this rate. Patch 4, MLP ratio 4, no absolute position embedding.
    """

    def __init__(
        self, embed: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int = 7,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window = window
        self.channels = tuple(embed * 2**i for i in range(4))
        self.patch_embed = PatchEmbed(embed)
        total, self.layers = sum(depths), nn.ModuleList()
        for i, dim in enumerate(self.channels):
            before = sum(depths[:i])
            rates = [drop_path * (before + j) / (total - 1) for j in range(depths[i])]
            self.layers.append(SwinStage(dim, window, heads[i], rates, last=i == 3))
        for i, dim in enumerate(self.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, taps = self.patch_embed(x), []
        for i, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = block(x)
            taps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return taps


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """((2a-1)^2, heads), windows a x a -> ((2 window - 1)^2, heads); not such a table: as it is."""
    a, b = math.isqrt(len(table)) if table.ndim else 0, 2 * window - 1
    if table.ndim != 2 or a * a != len(table) or a % 2 == 0 or a == b:
        return table
    grid = table.float().T.view(1, -1, a, a)
    grid = F.interpolate(grid, size=(b, b), mode="bicubic", align_corners=False)
    return grid.view(-1, b * b).T.contiguous()


def recognize(weights: dict[str, Tensor]) -> str | None:
    """The name in SWIN of a bare backbone's weights, by its width and its blocks; None for what is
    no Swin, or one of another shape."""
    blocks = {m[0] for k in weights if (m := re.search(r"layers\.\d+\.blocks\.\d+\.", k))}
    width = next(iter(weights.get("patch_embed.proj.weight", torch.empty(0)).shape), 0)
    for name, (embed, depths, _, _) in SWIN.items():
        if (embed, sum(depths)) == (width, len(blocks)):
            return name
    return None
