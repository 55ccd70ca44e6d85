"""Swin Transformer (Liu et al., ICCV 2021), the teacher's backbone (Fig. 5), and its weights.

The detection form: any map is padded to whole windows, and a norm stands behind every stage.
Parameters have the names of Swin's authors.
"""

from __future__ import annotations

import functools
import math
import re
from collections import OrderedDict

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
SWIN_URL = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"


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


def to_windows(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C), H and W multiples of window -> (N * windows, window^2, C)."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(-1, window * window, c)


@functools.lru_cache(maxsize=32)
def shift_mask(size: tuple[int, int], window: int) -> Tensor:
    """-100 between tokens that only the cyclic shift by window // 2 brought into one window, else
    0: (windows, window^2, window^2) for a map of `size`, multiples of window."""
    # Rolled, a side holds what was there and then what came from its other end.
    rows, cols = (torch.arange(side) >= side - window // 2 for side in size)
    region = to_windows((2 * rows[:, None] + cols.int())[None, ..., None], window).squeeze(-1)
    return (region[:, :, None] != region[:, None]) * -100.0


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a LayerNorm and beside a skip; windows are shifted by
    half in every second block. Any map (N, H, W, C) is padded with zeros to whole windows."""

    def __init__(self, dim: int, window: int, heads: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        wide, narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=wide, act=nn.GELU(), fc2=narrow))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._kept(x) * self._attend(self.norm1(x))
        return x + self._kept(x) * self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        t, s = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -w % t, 0, -h % t))
        H, W = x.shape[1:3]
        mask = shift_mask((H, W), t).to(x.device) if s else None
        x = self.attn(to_windows(x.roll((-s, -s), (1, 2)), t), mask)
        x = x.view(n, H // t, W // t, t, t, c).transpose(2, 3).reshape(n, H, W, c)
        return x.roll((s, s), (1, 2))[:, :h, :w]

    def _kept(self, x: Tensor) -> Tensor:
        """Stochastic depth: 1, but in training 0 for the share drop_path of the samples, whose
        branch is left out, and 1 / (1 - drop_path) for the others."""
        return F.dropout(x.new_ones(len(x), 1, 1, 1), self.drop_path, self.training)


class PatchMerging(nn.Module):
    """2x2 tokens of C channels -> one of 2C. An odd map is padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class Swin(nn.Module):
    """In (N, 3, H, W), normalised. Out: four taps of embed, 2, 4 and 8 embed channels at 1/4 ..
    1/32 (sides rounded up), each after a LayerNorm. No absolute position embedding.

    drop_path: of the last block in training; it grows linearly from 0 at the first.
    """

    def __init__(
        self, embed: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int = 7,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window = window
        self.channels = tuple(embed * 2**i for i in range(4))
        # 4x4 pixels -> a token
        embedding = OrderedDict(proj=nn.Conv2d(3, embed, 4, 4), norm=nn.LayerNorm(embed))
        self.patch_embed = nn.ModuleDict(embedding)
        rates = (drop_path * k / (sum(depths) - 1) for k in range(sum(depths)))
        self.layers = nn.ModuleList()
        for i, dim in enumerate(self.channels):
            shifted = (j % 2 == 1 for j in range(depths[i]))
            blocks = [SwinBlock(dim, window, heads[i], s, next(rates)) for s in shifted]
            stage = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
            if i < 3:
                stage["downsample"] = PatchMerging(dim)
            self.layers.append(stage)
        for i, dim in enumerate(self.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        x, taps = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1)), []
        for i, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = block(x)
            taps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
            if i < 3:
                x = stage.downsample(x)
        return taps


# ---------------------------------------------------------------------------------- public weights


def swin_weights(weights: dict[str, Tensor], encoder: Swin) -> dict[str, Tensor]:
    """A public file's weights by the names of `encoder`. Layouts: the authors' and timm's, which
    since 0.9 counts a merging to the stage after it. The classifier, its norm and tables that
    follow from the window are left out, the norms after the stages start afresh; a bias table of
    another window is resized, bicubic, as the authors do."""
    later = any(k.startswith("layers.3.downsample.") for k in weights)
    ours = {k: v for k, v in encoder.state_dict().items() if re.match(r"norm\d\.", k)}
    for k, v in weights.items():
        if re.match(r"head\.|norm\.", k) or k.endswith(("relative_position_index", "attn_mask")):
            continue
        if later and ".downsample." in k:
            k = re.sub(r"\d+", lambda m: str(int(m[0]) - 1), k, count=1)
        if k.endswith("relative_position_bias_table"):
            v = resize_bias_table(v, encoder.window)
        ours[k] = v
    return ours


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """((2a-1)^2, heads), windows a x a -> ((2 window - 1)^2, heads); not such a table: as it is."""
    a, b = math.isqrt(len(table)), 2 * window - 1
    if a * a != len(table) or a == b:
        return table
    grid = table.float().T.view(1, -1, a, a)
    grid = F.interpolate(grid, size=(b, b), mode="bicubic", align_corners=False)
    return grid.view(-1, b * b).T.contiguous()
