"""Sec. 3.1 Network Design: the student of Fig. 1, and Eq. 1-6 (merging the normalisation);
Sec. 3.4: the teacher of Fig. 5.

    raw RGB 0..255 -> resize to 128x160 -> encoder (taps at 1/4, 1/8, 1/16, 1/32)
                   -> decoder (five convolutions, 32x40) -> resize to the input's size -> metres

The student's encoder is a MobileNetV3, the teacher's a Swin Transformer; the rest is the same.
Encoders keep the parameter names of timm and of Swin's authors, so that public ImageNet weights
load as they are.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plumbing import checkpoints
from plumbing.checkpoints import (
    CHECKPOINT_FORMAT,
    CheckpointError,
    is_ours,
    load_weights,
    read_checkpoint,
    read_weights,
)
from plumbing.flags import any_number, below_1, between, flag, parse_size, positive, several
from plumbing.run import pick_device
from plumbing.runtime import SHIPPED
from plumbing.swin import SWIN, SWIN_URL, Swin, swin_weights
from plumbing.weights import backbone_weights, mobilenet_weights, weights_file

IMAGENET_URL = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
    "tf_mobilenetv3_small_minimal_100-922a7843.pth"
)


# ------------------------------------------------------------------------------- Sec. 3.1, encoder


class ConvSame(nn.Conv2d):
    """3x3 convolution with TensorFlow's SAME padding; weights and flags as nn.Conv2d.

    At stride 2 that is one pixel behind an even side, not PyTorch's one at each end: ImageNet
    weights trained in TensorFlow are half a pixel off under the symmetric rule. `fill` (per input
    channel) replaces the zeros of the padding; only a merged stem has one.
    """

    def __init__(self, cin: int, cout: int, stride: int, **options: object) -> None:
        # At stride 1 SAME is symmetric, and nn.Conv2d pads faster than F.pad does.
        super().__init__(cin, cout, 3, stride, padding=int(stride == 1), bias=False, **options)
        self.register_buffer("fill", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2:
            pads = x.shape[3] % 2, 1, x.shape[2] % 2, 1
            if self.fill is None:
                x = F.pad(x, pads)
            else:
                fill = self.fill.to(x.dtype).view(1, -1, 1, 1)
                x = F.pad(x - fill, pads) + fill
        return super().forward(x)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # TensorFlow's epsilon, as the weights were trained


class DepthwiseSeparable(nn.Module):
    """Depthwise 3x3 + ReLU, then a linear 1x1 (stage 0; no skip)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = ConvSame(cin, cin, stride, groups=cin)
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
        self.conv_dw = ConvSame(mid, mid, stride, groups=mid)
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
        self.conv_stem = ConvSame(3, 16, 2)
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


KERNELS = {"mix": (1, 3), "3x3": (3, 3), "1x1": (1, 1)}  # Table 3: of deep and shallow fusions


class Decoder(nn.Module):
    """Five convolutions: three fusions, one at the highest resolution, one to depth (Fig. 1).

    `kind` is the row of Table 3: "mix" (1x1 deep, 3x3 shallow: the paper's), "3x3" or "1x1".
    channels: of the encoder's taps, shallow to deep. widths: of the three fusions, deep to shallow.
    In: the encoder's taps. Out: d_hat (N, 1, H/4, W/4) in metres, >= 0.
    PAPER: calls that output 32x64; 128x160 over 4 is 32x40. No normalisation layer, as released.
    """

    def __init__(self, kind: str, channels: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        deep, shallow = KERNELS[kind]
        c1, c2, c3, c4 = channels
        a, b, c = widths
        self.fuse4 = nn.Conv2d(c4, a, deep, padding=deep // 2)
        self.fuse3 = nn.Conv2d(a + c3, b, deep, padding=deep // 2)
        self.fuse2 = nn.Conv2d(b + c2, c, deep, padding=deep // 2)
        self.fuse1 = nn.Conv2d(c + c1, 24, shallow, padding=shallow // 2)
        self.depth = nn.Conv2d(24, 1, 1)
        for m in self.children():
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)
        # PAPER: silent. With a zero bias here and the ReLU below, some seeds die for good (all-zero
        # prediction, no gradient): 1 of 6 in 60 steps of Eq. 7 and 10 on real pairs at lr 4e-3,
        # none with 1 m, which is inside every data set's range.
        nn.init.ones_(self.depth.bias)

    def forward(self, taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
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
    decoder: "mix", "3x3" or "1x1", the row of Table 3.
    upsample: "nearest" or "bilinear", last layer.
    mean, std: per channel, on 0..255, in RGB order; stored with the weights.
    """

    encoder: nn.Module
    decoder: Decoder
    merged = False  # whether Eq. 1 is inside the stem already
    published: tuple[str | None, float]  # ImageNet weights: URL, seconds a download may take
    public_weights: Callable  # (what such a file holds, encoder) -> the same by encoder's names

    def __init__(
        self, *, mean: tuple[float, ...], std: tuple[float, ...],
        size: tuple[int, int] = (128, 160), decoder: str = "mix", upsample: str = "nearest",
    ) -> None:  # fmt: skip
        super().__init__()
        h, w = size
        if h % 32 or w % 32 or min(size) <= 0:
            raise ValueError(f"size must be multiples of 32, got {h}x{w}")
        self.model_args: dict = {
            "size": list(size), "decoder": decoder, "upsample": upsample, "mean": list(mean),
            "std": list(std),
        }  # fmt: skip
        self.size, self.mode = tuple(size), upsample
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def normalize(self, I_r: Tensor) -> Tensor:
        """Eq. 1: I_n = (I_r - m) / s, with raw RGB I_r (N, 3, H, W) in 0..255."""
        return (I_r - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)

    def features(self, image: Tensor, normalized: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Raw RGB (N, 3, h, w), already at network scale -> d_hat and the features of Fig. 6, in
        one pass; see `Decoder.forward`. normalized: Eq. 1 has been applied, as the loader does."""
        raw = not (normalized or self.merged)
        return self.decoder(self.encoder(self.normalize(image) if raw else image))

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


class LiteDepth(DepthNetwork):
    """The student (Fig. 1). shared: size, decoder and upsample, as DepthNetwork says.

    merged: the stem already holds Eq. 3-5 (made by `merge_normalization`, not by users).
    """

    published = IMAGENET_URL, 60.0
    public_weights = staticmethod(mobilenet_weights)

    def __init__(
        self, *, mean: tuple[float, ...] = (127.5, 127.5, 127.5),
        std: tuple[float, ...] = (127.5, 127.5, 127.5), merged: bool = False, **shared: object,
    ) -> None:  # fmt: skip
        super().__init__(mean=mean, std=std, **shared)
        self.model_args["merged"] = self.merged = merged
        self.encoder = Encoder()
        self.decoder = Decoder(self.model_args["decoder"], Encoder.channels, widths=(72, 24, 8))
        if merged:
            self.encoder.conv_stem.bias = nn.Parameter(torch.zeros(16))
            self.encoder.conv_stem.fill = self.mean.clone()


# ----------------------------------------------------------------------------- Sec. 3.1, Eq. 1-6


def merge_normalization(network: LiteDepth) -> LiteDepth:
    """Eq. 3-6: a copy of the network that takes raw pixels straight into its first convolution.

    W' = W / s,   b'_i = b_i - sum_d ( m_d / s_d * sum_j W_dij )        (computed in double)

    b_i is 0: the stem has no bias of its own. PAPER: Eq. 6 as printed is exact only away from the
    border. The trained network pads *normalised* pixels with 0, and 0 after Eq. 1 is the mean
    before it: the merged stem pads with the mean (`ConvSame.fill`). Exact to float rounding for any
    per-channel mean and std. Raises ValueError: a teacher, a network that is merged already.
    """
    if not isinstance(network, LiteDepth) or network.merged:
        raise ValueError("only a student, which alone is deployed, is merged, and only once")
    merged = copy.deepcopy(network)
    merged.model_args["merged"] = merged.merged = True
    stem = merged.encoder.conv_stem
    W, m, s = (t.detach().double() for t in (stem.weight, network.mean, network.std))
    m, s = m.view(1, 3, 1, 1), s.view(1, 3, 1, 1)
    stem.weight.data = (W / s).to(stem.weight)
    stem.bias = nn.Parameter(-(m / s * W).sum((1, 2, 3)).to(stem.weight))
    stem.fill = network.mean.clone()
    return merged


# --------------------------------------------------------------------- calibration, ours (no Eq.)


def calibrate(network: DepthNetwork, scale: float, shift: float) -> DepthNetwork:
    """A copy whose depth is d' = max(0, scale d_hat + shift), at no cost: the last convolution
    computes y, the network returns d_hat = relu(y), and the copy relu(scale y + shift).

    shift in metres; scale 1000 and shift 0 give millimetres. Exact but where the network says 0
    (y <= 0) and shift > 0: max(0, ...) is the shift there, the copy's depth is between 0 and the
    shift. The arithmetic is double, the copy's weights are of the original's type. Works on merged
    networks too, before or after; model_args stay. Raises ValueError: a scale that is not positive,
    anything that is not finite.
    """
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(shift)):
        raise ValueError(f"wanted a scale > 0 and a finite shift, got {scale} and {shift}")
    calibrated = copy.deepcopy(network)
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

    public_weights = staticmethod(swin_weights)

    def __init__(
        self, model: str, *, mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        std: tuple[float, ...] = (58.395, 57.12, 57.375), window: int = 7, drop_path: float = 0.3,
        **shared: object,
    ) -> None:  # fmt: skip
        super().__init__(mean=mean, std=std, **shared)
        self.model_args |= {"model": model, "window": window, "drop_path": drop_path}
        embed, depths, heads, file = SWIN[model]
        self.published = SWIN_URL + file if file else None, 600.0
        self.encoder = Swin(embed, depths, heads, window, drop_path)
        self.decoder = Decoder(
            self.model_args["decoder"], self.encoder.channels, widths=(768, 192, 48)
        )


# ------------------------------------------------------------------- checkpoints and public weights


def create(model: str = "student", **model_args: object) -> DepthNetwork:
    """The network of that name: "student" or a teacher of SWIN. Raises ValueError for a size that
    cannot be, KeyError for a name that nothing has."""
    return LiteDepth(**model_args) if model == "student" else Teacher(model, **model_args)


def save(path: str | os.PathLike, network: DepthNetwork, /, **state: object) -> None:
    """Writes a checkpoint that `load` can rebuild; `state` (optimizer, epoch, ...) goes beside the
    weights. Atomic, and raises OSError and ValueError, as plumbing.checkpoints.save."""
    args, weights = network.model_args, network.state_dict()
    content = dict(format=CHECKPOINT_FORMAT, model_args=args, model=weights, **state)
    checkpoints.save(path, content)


def load(path: str | os.PathLike) -> DepthNetwork:
    """Rebuilds any saved network, in eval mode on the CPU. Raises CheckpointError."""
    return build(read_checkpoint(path), path).eval()


def build(checkpoint: dict, path: str | os.PathLike) -> DepthNetwork:
    """The network of a dictionary from `read_checkpoint`; `path` is for the message. Raises
    CheckpointError."""
    try:
        network = create(**checkpoint["model_args"])
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot rebuild the network: {error!s:.300}") from error
    load_weights(network, checkpoint.get("model"), path)
    return network


def runner(
    path: Path, threads: int | None, device: str
) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[int, int], str]:
    """A checkpoint to predict with -> run (raw RGB float32 (H, W, 3) -> metres (H, W)), the size of
    the pictures that it was trained on, and what it runs on, in words. Raises CheckpointError, and
    UserError for a device that is not there."""
    on = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    checkpoint = read_checkpoint(path)
    network = build(checkpoint, path).eval().to(on)

    def run(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].to(on)
        # No TensorFloat-32: a GPU must give the metres that the CPU and the .tflite give.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(x)[0, 0].float().cpu().numpy()

    size = tuple(checkpoint.get("image_size", (480, 640)))
    return run, size, f"PyTorch, {on.type}, threads {torch.get_num_threads()}"


def load_pretrained(network: DepthNetwork, source: str) -> str:
    """Sec. 4.2 "the encoder is pretrained on ImageNet". -> what was loaded, in one line.

    source: "auto" (see `start_from_shipped`), "imagenet" (the public file of `network.published`,
    cached or downloaded), "none", a file or a URL (kept in torch.hub's cache, see `fetch`). A file
    may be a public backbone (encoder only; wrappers, prefixes, a classifier are ignored) or one of
    our checkpoints (whole network). Raises CheckpointError.
    """
    if source == "none":
        return "none: from scratch"
    if source == "auto":
        return start_from_shipped(network)
    path = weights_file(source, *network.published)
    content = read_weights(path)
    if is_ours(content):
        load_weights(network, content.get("model"), path)
        network.model_args |= {"mean": network.mean.tolist(), "std": network.std.tolist()}
        return f"whole network from {path.name}"
    weights = backbone_weights(content, network.encoder.state_dict(), path)
    told = f"{path}: {len(weights)} tensors ({', '.join([*weights][:4]):.250}, ...)"
    load_weights(network.encoder, network.public_weights(weights, network.encoder), told)
    return f"encoder from {path.name}"


def start_from_shipped(network: DepthNetwork) -> str:
    """weights/litedepth.pt of this repository, trained on rendered rooms and streets: the whole
    network where decoder, mean and std are the same, the encoder of any other student. The network
    is never asked, so that every machine starts alike.

    PAPER: "pretrained on ImageNet": --pretrained imagenet."""
    path = SHIPPED.with_suffix(".pt")
    if not isinstance(network, LiteDepth) or not path.is_file():
        return "none: from scratch (--pretrained imagenet is the paper's)"
    shipped = load(path)
    theirs, own = shipped.model_args, network.model_args
    same = all([*theirs[k]] == [*own[k]] for k in ("decoder", "mean", "std"))
    part, name = ("", "whole network") if same else ("encoder.", "encoder")
    weights = {k: v for k, v in shipped.state_dict().items() if k.startswith(part)}
    network.load_state_dict(network.state_dict() | weights)
    return f"{name} from weights/{path.name}, which has seen rendered rooms and streets"


# ------------------------------------------------------------------------------------------- flags


@dataclass(frozen=True)
class Network:
    """network (Sec. 3.1)"""

    decoder: str = flag(
        "mix", "kernels of the decoder, a row of Table 3 (default mix: 1x1 deep, 3x3 shallow)",
        choices=[*KERNELS],
    )  # fmt: skip
    size: tuple[int, int] = flag(
        "128x160", "resolution the network works at, multiples of 32; the picture is resized to it "
        "inside the network (default 128x160, Sec. 3.1; the 4x6 of Sec. 1 is a slip)", parse_size,
        metavar="HxW",
    )  # fmt: skip
    upsample: str = flag(
        "nearest", "last layer, from a quarter of --size to the picture's size (default nearest, "
        "as released; the paper says only 'resize')", choices=["nearest", "bilinear"],
    )  # fmt: skip
    mean: tuple[float, ...] | None = flag(
        None, "m of Eq. 1 on 0..255 (default: what the network's ImageNet weights expect, 127.5 "
        "each for the student)",
        several(3, any_number, "three numbers R,G,B"), metavar="R,G,B",
    )  # fmt: skip
    std: tuple[float, ...] | None = flag(
        None, "s of Eq. 1 on 0..255 (default: as for --mean)",
        several(3, positive, "three numbers R,G,B"), metavar="R,G,B",
    )  # fmt: skip
    pretrained: str = flag(
        "auto", "where to start: auto = a student from weights/litedepth.pt of this repository "
        "(its encoder alone where --decoder, --mean or --std differ), a teacher from scratch; "
        "imagenet = the encoder's public ImageNet weights, as in the paper, cached or downloaded; "
        "none = from scratch; a FILE (.pth, .safetensors) of timm, of Swin's authors or of ours; a "
        "URL is downloaded once, then read from torch.hub's cache: delete it there to have it anew",
        metavar="auto|imagenet|none|FILE|URL",
    )  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """teacher (Sec. 3.4)"""

    model: str = flag(
        "student", "the student of Fig. 1, or a teacher of Fig. 5 for distill.py: large is the "
        "paper's, tiny and up want a GPU, nano (ours) trains on a CPU", choices=["student", *SWIN],
    )  # fmt: skip
    drop_path: float = flag(
        0.3, "teacher: share of samples that skip the last block in training, less before it; a "
        "small teacher or a short run wants less (default 0.3, as released)", below_1,
    )  # fmt: skip
    window: int = flag(
        7, "teacher: tokens across an attention window; bias tables of public weights are resized "
        "to it", between(2, 64, "a whole number from 2 to 64", int),
    )  # fmt: skip
