"""Sec. 3.1 Network Design: the student of Fig. 1, and Eq. 1-6 (merging the normalisation);
Sec. 3.4: the teacher of Fig. 5.

    raw RGB 0..255 -> resize to 128x160 -> encoder (taps at 1/4, 1/8, 1/16, 1/32)
                   -> decoder (five convolutions, 32x40) -> resize to the input's size -> metres

The student's encoder is a MobileNetV3, the teacher's a Swin Transformer; the rest is the same.
Encoders keep the parameter names of timm and of Swin's authors, so that public ImageNet weights
load as they are.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import re
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plumbing.checkpoints import (
    CHECKPOINT_FORMAT,
    WINDOW,
    CheckpointError,
    check_args,
    check_facts,
    check_plain,
    read_checkpoint,
    read_weights,
)
from plumbing.files import UserError
from plumbing.flags import parse_size
from plumbing.swin import SWIN, Swin, resize_bias_table
from plumbing.weights import backbone_weights, fetch

IMAGENET_URL = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
    "tf_mobilenetv3_small_minimal_100-922a7843.pth"
)
SWIN_URL = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"


# ------------------------------------------------------------------------------- Sec. 3.1, encoder


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME rule for one axis: pixels to add (before, after).

    At stride 2 on an even size this is (0, 1), not PyTorch's symmetric (1, 1): ImageNet weights
    trained in TensorFlow are half a pixel off under the symmetric rule.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class ConvSame(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding; weights and flags as nn.Conv2d.

    `fill` (per input channel) replaces the zeros of the padding; only a merged stem has one.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("fill", None)

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        top, bottom = same_padding(x.shape[-2], k, s)
        left, right = same_padding(x.shape[-1], k, s)
        if self.fill is not None:
            n, c, h, w = x.shape
            canvas = self.fill.to(x.dtype).view(1, c, 1, 1)
            canvas = canvas.repeat(n, 1, top + h + bottom, left + w + right)
            canvas[:, :, top : top + h, left : left + w] = x
            x = canvas
        elif (top, left) == (bottom, right):  # symmetric: let the convolution pad, it is faster
            return F.conv2d(x, self.weight, self.bias, s, (top, left), 1, self.groups)
        else:
            x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, s, 0, 1, self.groups)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # TensorFlow's epsilon, as the weights were trained


class DepthwiseSeparable(nn.Module):
    """Depthwise 3x3 + ReLU, then a linear 1x1 (stage 0; no skip)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = ConvSame(cin, cin, 3, stride, groups=cin, bias=False)
        self.bn1 = batch_norm(cin)
        self.conv_pw = nn.Conv2d(cin, cout, 1, bias=False)
        self.bn2 = batch_norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv_dw(x)))
        return self.bn2(self.conv_pw(x))


class InvertedResidual(nn.Module):
    """1x1 expand + ReLU, depthwise 3x3 + ReLU, linear 1x1; skip where the shape is kept."""

    def __init__(self, cin: int, mid: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(cin, mid, 1, bias=False)
        self.bn1 = batch_norm(mid)
        self.conv_dw = ConvSame(mid, mid, 3, stride, groups=mid, bias=False)
        self.bn2 = batch_norm(mid)
        self.conv_pwl = nn.Conv2d(mid, cout, 1, bias=False)
        self.bn3 = batch_norm(cout)
        self.skip = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv_pw(x)))
        y = F.relu(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.skip else y


class Encoder(nn.Module):
    """MobileNetV3-small, "minimal" (no squeeze-excite, 3x3 only, ReLU), without its last 1x1.

    PAPER: the removed layer is 96 -> 576; the 96 -> 960 of Sec. 3.1 is the large network's.
    In (N, 3, H, W), normalised. Out: four taps of 16, 24, 48 and 96 channels at 1/4 .. 1/32.
    """

    channels = (16, 24, 48, 96)

    def __init__(self) -> None:
        super().__init__()
        ir = InvertedResidual
        self.conv_stem = ConvSame(3, 16, 3, 2, bias=False)
        self.bn1 = batch_norm(16)
        self.blocks = nn.Sequential(
            nn.Sequential(DepthwiseSeparable(16, 16, 2)),
            nn.Sequential(ir(16, 72, 24, 2), ir(24, 88, 24, 1)),
            nn.Sequential(ir(24, 96, 40, 2), ir(40, 240, 40, 1), ir(40, 240, 40, 1)),
            nn.Sequential(ir(40, 120, 48, 1), ir(48, 144, 48, 1)),
            nn.Sequential(ir(48, 288, 96, 2), ir(96, 576, 96, 1), ir(96, 576, 96, 1)),
        )
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                fan_out = m.kernel_size[0] ** 2 * m.out_channels // m.groups
                nn.init.normal_(m.weight, 0.0, math.sqrt(2.0 / fan_out))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv_stem(x)))
        s0 = self.blocks[0](x)
        s1 = self.blocks[1](s0)
        s3 = self.blocks[3](self.blocks[2](s1))
        return [s0, s1, s3, self.blocks[4](s3)]


# ------------------------------------------------------------------------------- Sec. 3.1, decoder


class Decoder(nn.Module):
    """Five convolutions: three fusions, one at the highest resolution, one to depth (Fig. 1).

    `kind` is the row of Table 3: "mix" (1x1 deep, 3x3 shallow: the paper's), "3x3" or "1x1".
    channels: of the encoder's taps, shallow to deep. widths: of the three fusions, deep to shallow.
    In: the encoder's taps. Out: d_hat (N, 1, H/4, W/4) in metres, >= 0.
    PAPER: calls that output 32x64; 128x160 over 4 is 32x40. No normalisation layer, as released.
    """

    def __init__(
        self, kind: str, channels: tuple[int, ...], widths: tuple[int, ...], logits: int = 24
    ) -> None:
        super().__init__()
        if kind not in ("mix", "3x3", "1x1"):
            raise ValueError(f"decoder must be mix, 3x3 or 1x1, got {kind!r}")
        deep, shallow = (3 if kind == "3x3" else 1), (1 if kind == "1x1" else 3)
        c1, c2, c3, c4 = channels
        a, b, c = widths
        self.fuse4 = nn.Conv2d(c4, a, deep, padding=deep // 2)
        self.fuse3 = nn.Conv2d(a + c3, b, deep, padding=deep // 2)
        self.fuse2 = nn.Conv2d(b + c2, c, deep, padding=deep // 2)
        self.fuse1 = nn.Conv2d(c + c1, logits, shallow, padding=shallow // 2)
        self.depth = nn.Conv2d(logits, 1, 1)
        for m in self.children():
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)
        # PAPER: silent. With a zero bias here and the ReLU below, some seeds die for good (all-zero
        # prediction, no gradient): 1 of 6 in 60 steps of Eq. 7 and 10 on real pairs at lr 4e-3,
        # none with 1 m, which is inside every data set's range.
        nn.init.ones_(self.depth.bias)

    def forward(self, taps: list[Tensor]) -> Tensor:
        return self.decode(taps)[0]

    def decode(self, taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """-> d_hat and [DeFeat2, DeFeat3, DeFeat4], what Eq. 12 compares: outputs of the second,
        third and fourth convolution, at 1/16, 1/8 and 1/4.

        PAPER: Fig. 6 does not say on which side of the ReLU; before it, as released.
        """
        s1, s2, s3, s4 = taps
        x = F.relu(self.fuse4(s4))
        defeat2 = self.fuse3(torch.cat([upsample(x, s3.shape[-2:], "corners"), s3], 1))
        x = upsample(F.relu(defeat2), s2.shape[-2:], "corners")
        defeat3 = self.fuse2(torch.cat([x, s2], 1))
        x = upsample(F.relu(defeat3), s1.shape[-2:], "corners")
        defeat4 = self.fuse1(torch.cat([x, s1], 1))
        return F.relu(self.depth(F.relu(defeat4))), [defeat2, defeat3, defeat4]


def upsample(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resizes (N, C, h, w) to (N, C, *size).

    "corners": bilinear, align_corners=True (inside the decoder);
    "bilinear": half-pixel centres (the input); also what `--upsample bilinear` does to the output;
    "nearest": output pixel v reads cell floor(v*h/H), in integer arithmetic.

    PAPER: says "resize" three times and no more. Corners inside and nearest at the end are the
    released code's; it trains with half-pixel centres at the input but exports align_corners=True,
    1.5 px apart at the border: here both are half-pixel.
    """
    (h, w), (H, W) = x.shape[-2:], tuple(size)
    if (h, w) == (H, W):
        return x
    if mode == "nearest":
        if H % h == 0 and W % w == 0:
            # Pixel centres are half a pixel off every cell border: no float scale can slip there,
            # as "nearest" does for some ratios (41, 47, ...). For whole ratios both mean floor.
            return F.interpolate(x, size=(H, W), mode="nearest-exact")
        rows = torch.arange(H, device=x.device) * h // H
        cols = torch.arange(W, device=x.device) * w // W
        return x.index_select(2, rows).index_select(3, cols)
    return F.interpolate(x, size=(H, W), mode="bilinear", align_corners=mode == "corners")


# ------------------------------------------------------------------------------- Sec. 3.1, network


class DepthNetwork(nn.Module):
    """What student and teacher share: raw RGB in, metric depth out; `encoder` and `decoder` are
    the subclass's.

    size: network resolution (h, w), multiples of 32; the first layer resizes to it.
    upsample: "nearest" or "bilinear", last layer.
    mean, std: per channel, on 0..255, in RGB order; stored with the weights.
    """

    merged = False  # whether Eq. 1 is inside the stem already
    encoder: nn.Module
    decoder: Decoder

    def __init__(
        self, *, size: tuple[int, int], upsample: str,
        mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        if len(size) != 2 or any(s <= 0 or s % 32 for s in size):
            raise ValueError(f"size must be multiples of 32, got {'x'.join(map(str, size))}")
        if upsample not in ("nearest", "bilinear"):
            raise ValueError(f"upsample must be nearest or bilinear, got {upsample!r}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name} must be three finite numbers, got {tuple(values)}")
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {tuple(std)}")
        self.model_args: dict = {
            "size": list(size), "upsample": upsample, "mean": list(mean), "std": list(std),
        }  # fmt: skip
        self.size, self.mode = tuple(size), upsample
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def normalize(self, I_r: Tensor) -> Tensor:
        """Eq. 1: I_n = (I_r - m) / s, with raw RGB I_r (N, 3, H, W) in 0..255."""
        return (I_r - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)

    def features(self, image: Tensor, normalized: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Raw RGB (N, 3, h, w), already at network scale -> d_hat and the features of Fig. 6, in
        one pass; see `Decoder.decode`. normalized: Eq. 1 has been applied, as the loader does."""
        raw = not (normalized or self.merged)
        return self.decoder.decode(self.encoder(self.normalize(image) if raw else image))

    def network(self, image: Tensor) -> Tensor:
        """Raw RGB (N, 3, h, w), already at network scale -> d_hat (N, 1, h/4, w/4) in metres."""
        return self.features(image)[0]

    def forward(self, image: Tensor) -> Tensor:
        """Raw RGB (N, 3, H, W) in 0..255 -> depth (N, 1, H, W) in metres: the deployed graph."""
        d_hat = self.network(upsample(image, self.size, "bilinear"))
        return self.enlarge(d_hat, image.shape[-2:])

    def enlarge(self, d_hat: Tensor, size: tuple[int, int]) -> Tensor:
        """The last resize: d_hat (N, 1, h, w) -> (N, 1, *size), `--upsample`'s way."""
        return upsample(d_hat, size, self.mode)

    def pretrained_encoder(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A public ImageNet file's weights -> those of `encoder`, by its names."""
        raise NotImplementedError

    def imagenet(self) -> tuple[str, float]:
        """Where those weights are published, and how many seconds their download may take."""
        raise NotImplementedError


class LiteDepth(DepthNetwork):
    """The student (Fig. 1). decoder: "mix", "3x3" or "1x1" (Table 3).

    merged: the stem already holds Eq. 3-5 (made by `merge_normalization`, not by users).
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] = (128, 160),
        decoder: str = "mix",
        upsample: str = "nearest",
        mean: tuple[float, ...] = (127.5, 127.5, 127.5),
        std: tuple[float, ...] = (127.5, 127.5, 127.5),
        merged: bool = False,
    ) -> None:
        super().__init__(size=size, upsample=upsample, mean=mean, std=std)
        self.model_args |= {"decoder": decoder, "merged": merged}
        self.merged = merged
        self.encoder = Encoder()
        self.decoder = Decoder(decoder, Encoder.channels, widths=(72, 24, 8))
        if merged:
            self.encoder.conv_stem.bias = nn.Parameter(torch.zeros(16))
            self.encoder.conv_stem.fill = self.mean.clone()

    def imagenet(self) -> tuple[str, float]:
        return IMAGENET_URL, 10.0

    def pretrained_encoder(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        dropped = ("blocks.5.", "conv_head.", "classifier.")  # the 96 -> 576 layer and the rest
        weights = {k: v for k, v in weights.items() if not k.startswith(dropped)}
        # Files older than PyTorch 0.4.1 lack this counter; nothing is lost by keeping ours.
        own = self.encoder.state_dict().items()
        return {k: v for k, v in own if k.endswith("num_batches_tracked")} | weights


# ----------------------------------------------------------------------------- Sec. 3.1, Eq. 1-6


def merge_normalization(model: LiteDepth) -> LiteDepth:
    """Eq. 3-6: a copy of the network that takes raw pixels straight into its first convolution.

    W' = W / s,   b'_i = b_i - sum_d ( m_d / s_d * sum_j W_dij )        (computed in double)

    PAPER: Eq. 6 as printed is exact only away from the border. The trained network pads
    *normalised* pixels with 0, and 0 after Eq. 1 is the mean before it: the merged stem pads with
    the mean (`ConvSame.fill`). Exact to float rounding for any per-channel mean and std. The copy
    is float32, on the device and in the mode (train or eval) of the network given.
    """
    if not isinstance(model, LiteDepth):
        raise ValueError("a teacher's normalisation is not merged: only the student is deployed")
    if model.merged:
        raise ValueError("this network's normalisation is merged already")
    colours = {"mean": model.mean.tolist(), "std": model.std.tolist()}
    merged = LiteDepth(**{**model.model_args, **colours, "merged": True}).to(model.mean.device)
    merged.load_state_dict(model.state_dict(), strict=False)  # all but the stem's bias and fill
    m, s = model.mean.double().view(1, 3, 1, 1), model.std.double().view(1, 3, 1, 1)
    W = model.encoder.conv_stem.weight.detach().double()
    b = 0.0 if model.encoder.conv_stem.bias is None else model.encoder.conv_stem.bias.double()
    stem = merged.encoder.conv_stem
    stem.weight.data = (W / s).to(stem.weight)
    stem.bias.data = (b - (m / s * W).sum(dim=(1, 2, 3))).to(stem.weight)
    return merged.train(model.training)


# --------------------------------------------------------------------- calibration, ours (no Eq.)


def calibrate(model: LiteDepth, scale: float, shift: float) -> LiteDepth:
    """A copy whose depth is d' = max(0, scale d_hat + shift), at no cost: the last convolution
    computes y, the network returns d_hat = relu(y), and the copy relu(scale y + shift).

    shift in metres; scale 1000 and shift 0 give millimetres. Exact but where the network says 0
    (y <= 0) and shift > 0: max(0, ...) is the shift there, the copy's depth is between 0 and the
    shift. The arithmetic is double, the copy's weights are of the original's type. Works on merged
    networks too, before or after; model_args stay. Raises ValueError: a teacher, a scale that is
    not positive, anything that is not finite.
    """
    if not isinstance(model, LiteDepth):
        raise ValueError("a teacher is not calibrated: only the student is deployed")
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(shift)):
        raise ValueError(f"wanted a scale > 0 and a finite shift, got {scale} and {shift}")
    calibrated = copy.deepcopy(model)
    depth = calibrated.decoder.depth
    depth.weight.data = (scale * depth.weight.detach().double()).to(depth.weight)
    depth.bias.data = (scale * depth.bias.detach().double() + shift).to(depth.bias)
    return calibrated


# ------------------------------------------------------------------------------- Sec. 3.4, Fig. 5

class Teacher(DepthNetwork):
    """The teacher (Fig. 5): Swin `model` (a name in SWIN) and the student's decoder, wider.

    Works at the student's resolution, so Eq. 12 compares maps of one size. Normalises by its own
    mean and std, ImageNet's by default. PAPER: gives neither the Swin's size nor the widths; the
    released code takes the large one, 768, 192 and 48 channels and drop path 0.3.
    """

    def __init__(
        self,
        model: str,
        *,
        size: tuple[int, int] = (128, 160),
        decoder: str = "mix",
        upsample: str = "nearest",
        mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        std: tuple[float, ...] = (58.395, 57.12, 57.375),
        window: int = 7,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__(size=size, upsample=upsample, mean=mean, std=std)
        if model not in SWIN:
            raise ValueError(f"model must be student or one of {', '.join(SWIN)}, got {model!r}")
        if window < 2 or not 0 <= drop_path < 1:
            raise ValueError(f"window must be >= 2, drop_path in [0, 1): {window}, {drop_path}")
        self.model_args |= {
            "model": model, "decoder": decoder, "window": window, "drop_path": drop_path,
        }  # fmt: skip
        embed, depths, heads, self.published = SWIN[model]
        self.encoder = Swin(embed, depths, heads, window, drop_path)
        self.decoder = Decoder(decoder, self.encoder.channels, widths=(768, 192, 48))

    def imagenet(self) -> tuple[str, float]:
        if self.published is None:
            raise CheckpointError(f"{self.model_args['model']} is ours: nobody published weights")
        return SWIN_URL + self.published, 600.0

    def pretrained_encoder(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Layouts: the authors' and timm's, which since 0.9 counts a merging to the stage after it.
        The classifier, its norm and tables that follow from the window are left out, ours start
        afresh; a bias table of another window is resized, bicubic, as the authors do."""
        later = any(k.startswith("layers.3.downsample.") for k in weights)
        dropped = ("relative_position_index", "attn_mask")
        own = self.encoder.state_dict().items()
        fits = {k: v for k, v in own if re.match(r"norm\d\.", k)}
        for k, v in weights.items():
            if k.startswith(("head.", "norm.")) or k.endswith(dropped):
                continue
            if later and ".downsample." in k:
                k = re.sub(r"^layers\.(\d{1,3})", lambda m: f"layers.{int(m[1]) - 1}", k)
            if k.endswith("relative_position_bias_table"):
                v = resize_bias_table(v, self.encoder.window)
            fits[k] = v
        return fits


def create(model: str = "student", **model_args: object) -> DepthNetwork:
    """The network of that name: "student" or a teacher of SWIN. Raises ValueError."""
    return LiteDepth(**model_args) if model == "student" else Teacher(model, **model_args)


# ------------------------------------------------------------------- checkpoints and public weights


def save(path: str | os.PathLike, model: DepthNetwork, /, **state: object) -> None:
    """Writes a checkpoint that `load` can rebuild; atomic: a reader sees the old file or the new.

    `state` (optimizer, epoch, ...) goes beside the weights; plain containers and tensors only.
    Raises ValueError for a state that would take the place of the weights or that `load` would
    refuse; OSError where it cannot be written (disk full, read-only): what stood at `path` is as it
    was.
    """
    path = Path(path)
    content = {"format": CHECKPOINT_FORMAT, "model_args": model.model_args, "model": model.state_dict()}
    if taken := sorted(content.keys() & state.keys()):
        raise ValueError(f"these names in a checkpoint are the network's: {', '.join(taken)}")
    content |= state
    check_plain(content, "it")  # refuse now what `load` would refuse later
    check_facts(content, path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer answers a full disk with a RuntimeError of its own; the system's word
        # for it stands behind that.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        kept = "the one that is there is older and whole" if path.exists() else "there is none yet"
        raise OSError(
            f"{path}: cannot be written ({cause.strerror or cause}); {kept}. Make room, or take "
            "another folder"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> DepthNetwork:
    """Rebuilds any saved network, in eval mode on the CPU. Raises CheckpointError."""
    return build(read_checkpoint(path), path).eval()


def runner(
    path: str | os.PathLike, threads: int | None, device: str
) -> tuple[Callable, tuple[int, int], str]:
    """(run, image_size, about) of a checkpoint, for `runtime.load_predictor`.

    run: raw RGB (H, W, 3) float32 array -> metres (h, w); image_size: the pictures it was trained
    on, 480x640 where the file does not say. threads: None = PyTorch's own number. Raises UserError.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    checkpoint = read_checkpoint(path)
    network = build(checkpoint, path).eval().to(device)

    def run(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
        # No TensorFloat-32: a GPU must give the metres that the CPU and the .tflite give.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(x)[0, 0].float().cpu().numpy()

    size = tuple(checkpoint.get("image_size") or (480, 640))
    return run, size, f"PyTorch, {device}, threads {torch.get_num_threads()}"


def build(checkpoint: dict, path: str | os.PathLike) -> DepthNetwork:
    """The network of a dictionary from `read_checkpoint`; `path` is for the message. Raises
    CheckpointError."""
    model_args, weights = checkpoint.get("model_args"), checkpoint.get("model")
    try:
        check_args(model_args)
        # Shapes first, which cost no memory: a few bytes can ask for the largest network there is.
        with torch.device("meta"):
            shapes = create(**model_args)
        _check_matching(shapes, weights, path)
        model = create(**model_args)
    except CheckpointError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot rebuild the network: {error!s:.300}") from error
    _load_matching(model, weights, path)
    return model


def _load_matching(module: nn.Module, weights: object, path: object) -> None:
    """load_state_dict whose error names every key that does not fit."""
    _check_matching(module, weights, path)
    module.load_state_dict(weights)
    if isinstance(module, DepthNetwork):
        colours = torch.cat([module.mean, module.std])
        if not colours.isfinite().all() or module.std.min() <= 0:
            shown = [round(v, 4) for v in colours.tolist()]
            raise CheckpointError(f"{path}: its mean and std cannot be: {shown}")


def _check_matching(module: nn.Module, weights: object, path: object) -> None:
    """Raises CheckpointError unless these are weights of the module's names and shapes."""
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{path}: holds no dictionary of weights")
    own = module.state_dict()
    problems = [f"missing {k}" for k in own if k not in weights]
    problems += [f"unexpected {str(k)[:99]}" for k in weights if k not in own]
    problems += [
        f"{k} is {tuple(weights[k].shape)}, wanted {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if problems:
        shown = "; ".join(problems[:8])
        shown += f"; and {len(problems) - 8} more" if problems[8:] else ""
        raise CheckpointError(f"{path}: does not fit this network: {shown}")


def load_pretrained(model: DepthNetwork, source: str) -> tuple[str, bool]:
    """Sec. 4.2 "the encoder is pretrained on ImageNet". -> (what was loaded in one line, fell_back)

    source: "auto" (the public file of `model.imagenet` if it is cached or comes in time, else from
    scratch: only then fell_back is True), "imagenet" (the same with more patience, but its absence
    is an error), "none", a file or a URL (kept in torch.hub's cache, see `fetch`). A file may be a
    public backbone (encoder only; its classifier is ignored) or one of our checkpoints (whole
    network). Raises CheckpointError.
    """
    if source == "none":
        return "none: from scratch", False
    if source == "auto":
        try:
            path = fetch(*model.imagenet())
        except CheckpointError as error:
            return f"none: from scratch, because ImageNet weights are not to be had ({error})", True
    elif source == "imagenet":
        url, timeout = model.imagenet()
        path = fetch(url, 6 * timeout)
    elif urlparse(source).scheme in ("http", "https"):
        path = fetch(source, timeout=600.0)
    elif urlparse(source).scheme == "file":
        path = Path(urllib.request.url2pathname(urlparse(source).path))
    else:
        path = Path(source)
    weights = read_weights(path)
    if isinstance(weights, dict) and weights.get("format") == CHECKPOINT_FORMAT:
        _load_matching(model, weights.get("model"), path)
        model.model_args |= {"mean": model.mean.tolist(), "std": model.std.tolist()}
        return f"whole network from {path.name}", False
    weights = backbone_weights(weights, path)
    _load_matching(model.encoder, model.pretrained_encoder(weights), path)
    return f"encoder from {path.name}", False


def add_arguments(parser: argparse.ArgumentParser, teachers: bool) -> None:
    """The flags of Sec. 3.1, and with `teachers` those of the teacher of Sec. 3.4."""
    group = parser.add_argument_group("network (Sec. 3.1)")
    if teachers:
        group.add_argument(
            "--model", default="student", choices=["student", *SWIN],
            help="the student of Fig. 1, or a teacher of Fig. 5 for distill.py: large is the "
            "paper's, tiny and up want a GPU, nano (ours) trains on a CPU (default student)",
        )  # fmt: skip
        group.add_argument(
            "--drop_path", default=0.3, type=parse_share,
            help="teacher: share of samples that skip the last block in training, less before it; "
            "a small teacher or a short run wants less (default 0.3, as released)",
        )  # fmt: skip
        group.add_argument(
            "--window", default=7, type=parse_window,
            help="teacher: tokens across an attention window; bias tables of public weights are "
            "resized to it (default 7)",
        )  # fmt: skip
    group.add_argument(
        "--decoder", default="mix", choices=["mix", "3x3", "1x1"],
        help="kernels of the decoder, a row of Table 3 (default mix: 1x1 deep, 3x3 shallow)",
    )  # fmt: skip
    group.add_argument(
        "--size", default="128x160", type=parse_size, metavar="HxW",
        help="resolution the network works at, multiples of 32; the picture is resized to it "
        "inside the network (default 128x160, Sec. 3.1; the 4x6 of Sec. 1 is a slip)",
    )  # fmt: skip
    group.add_argument(
        "--upsample", default="nearest", choices=["nearest", "bilinear"],
        help="last layer, from a quarter of --size to the picture's size (default nearest, as "
        "released; the paper says only 'resize')",
    )  # fmt: skip
    for flag, text in (("--mean", "m"), ("--std", "s")):
        group.add_argument(
            flag, type=parse_triple, metavar="R,G,B",
            help=f"{text} of Eq. 1 on 0..255 (default: what the network's ImageNet weights expect, "
            "127.5 each for the student)",
        )  # fmt: skip
    group.add_argument(
        "--pretrained", default="auto", metavar="auto|imagenet|none|FILE|URL",
        help="encoder weights: auto = public ImageNet weights if they are cached or download "
        "within 10 s (a teacher's: 600 s), else from scratch (said loudly); imagenet = insist; "
        "none = never ask; a FILE of timm, of Swin's authors or of ours; a URL is downloaded once "
        "and then read from torch.hub's cache: delete it there to have it anew (default auto)",
    )  # fmt: skip


def parse_share(text: str) -> float:
    """argparse type: a number of 0 or more, below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more, below 1")
    return value


def parse_window(text: str) -> int:
    """argparse type: a whole number, 2 to 64."""
    if not text.isdecimal() or not 2 <= int(text) <= WINDOW:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 2 to {WINDOW}")
    return int(text)


def parse_triple(text: str) -> tuple[float, float, float]:
    """ "127.5,127.5,127.5" -> three floats, R, G, B."""
    try:
        r, g, b = (float(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers R,G,B") from None
    return r, g, b
