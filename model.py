"""Sec. 3.1 Network Design: the student of Fig. 1, and Eq. 1-6 (merging the normalisation).

    raw RGB 0..255 -> resize to 128x160 -> encoder (taps at 1/4, 1/8, 1/16, 1/32)
                   -> decoder (five convolutions, 32x40) -> resize to the input's size -> metres

The encoder keeps timm's parameter names, so that public ImageNet weights load as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import threading
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict import parse_size

IMAGENET_URL = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
    "tf_mobilenetv3_small_minimal_100-922a7843.pth"
)
FORMAT = "litedepth-1"  # written into every checkpoint; raised when an old file could be misread


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file, the keys and the cure."""


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
    In: the encoder's taps. Out: d_hat (N, 1, H/4, W/4) in metres, >= 0.
    PAPER: calls that output 32x64; 128x160 over 4 is 32x40. No normalisation layer, as released.
    """

    def __init__(self, kind: str, widths: tuple[int, ...] = (72, 24, 8), logits: int = 24) -> None:
        super().__init__()
        if kind not in ("mix", "3x3", "1x1"):
            raise ValueError(f"decoder must be mix, 3x3 or 1x1, got {kind!r}")
        deep, shallow = (3 if kind == "3x3" else 1), (1 if kind == "1x1" else 3)
        c1, c2, c3, c4 = Encoder.channels
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
        s1, s2, s3, s4 = taps
        x = F.relu(self.fuse4(s4))
        x = F.relu(self.fuse3(torch.cat([upsample(x, s3.shape[-2:], "corners"), s3], 1)))
        x = F.relu(self.fuse2(torch.cat([upsample(x, s2.shape[-2:], "corners"), s2], 1)))
        x = F.relu(self.fuse1(torch.cat([upsample(x, s1.shape[-2:], "corners"), s1], 1)))
        return F.relu(self.depth(x))


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


class LiteDepth(nn.Module):
    """The student: raw RGB in, metric depth out.

    size: network resolution (h, w), multiples of 32; the first layer resizes to it.
    decoder: "mix", "3x3" or "1x1" (Table 3). upsample: "nearest" or "bilinear", last layer.
    mean, std: per channel, on 0..255, in RGB order; stored with the weights.
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
        self.model_args = {
            "size": list(size), "decoder": decoder, "upsample": upsample,
            "mean": list(mean), "std": list(std), "merged": merged,
        }  # fmt: skip
        self.size, self.mode, self.merged = tuple(size), upsample, merged
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.encoder = Encoder()
        self.decoder = Decoder(decoder)
        if merged:
            self.encoder.conv_stem.bias = nn.Parameter(torch.zeros(16))
            self.encoder.conv_stem.fill = self.mean.clone()

    def normalize(self, I_r: Tensor) -> Tensor:
        """Eq. 1: I_n = (I_r - m) / s, with raw RGB I_r (N, 3, H, W) in 0..255."""
        return (I_r - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)

    def network(self, image: Tensor) -> Tensor:
        """Raw RGB (N, 3, h, w), already at network scale -> d_hat (N, 1, h/4, w/4) in metres."""
        return self.decoder(self.encoder(image if self.merged else self.normalize(image)))

    def forward(self, image: Tensor) -> Tensor:
        """Raw RGB (N, 3, H, W) in 0..255 -> depth (N, 1, H, W) in metres: the deployed graph."""
        d_hat = self.network(upsample(image, self.size, "bilinear"))
        return upsample(d_hat, image.shape[-2:], self.mode)


# ----------------------------------------------------------------------------- Sec. 3.1, Eq. 1-6


def merge_normalization(model: LiteDepth) -> LiteDepth:
    """Eq. 3-6: a copy of the network that takes raw pixels straight into its first convolution.

    W' = W / s,   b'_i = b_i - sum_d ( m_d / s_d * sum_j W_dij )        (computed in double)

    PAPER: Eq. 6 as printed is exact only away from the border. The trained network pads
    *normalised* pixels with 0, and 0 after Eq. 1 is the mean before it: the merged stem pads with
    the mean (`ConvSame.fill`). Exact to float rounding for any per-channel mean and std. The copy
    is float32, on the device and in the mode (train or eval) of the network given.
    """
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


# ------------------------------------------------------------------- checkpoints and public weights


def save(path: str | os.PathLike, model: LiteDepth, /, **state: object) -> None:
    """Writes a checkpoint that `load` can rebuild; atomic: a reader sees the old file or the new.

    `state` (optimizer, epoch, ...) goes beside the weights; plain containers and tensors only.
    Raises ValueError for a state that would take the place of the weights.
    """
    path = Path(path)
    content = {"format": FORMAT, "model_args": model.model_args, "model": model.state_dict()}
    if taken := sorted(content.keys() & state.keys()):
        raise ValueError(f"these names in a checkpoint are the network's: {', '.join(taken)}")
    content |= state
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        _read_weights(part)  # refuse now what `load` would refuse later
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The dictionary written by `save`, on the CPU; tensors and plain values only, never code.

    Raises CheckpointError for a file that is missing, cut, altered or of another kind. The
    archive's own checksums are verified first: torch.load does not notice flipped bytes.
    """
    content = _read_weights(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a LiteDepth checkpoint (no {FORMAT!r} mark). A file of backbone weights "
            "goes to train.py --pretrained FILE"
        )
    return content


def load(path: str | os.PathLike) -> LiteDepth:
    """Rebuilds any saved network, in eval mode on the CPU. Raises CheckpointError."""
    return build(read_checkpoint(path), path).eval()


def build(checkpoint: dict, path: str | os.PathLike) -> LiteDepth:
    """The network of a dictionary from `read_checkpoint`; `path` is for the message."""
    try:
        model = LiteDepth(**checkpoint["model_args"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot rebuild the network: {error}") from error
    _load_matching(model, checkpoint.get("model"), path)
    return model


def _read_weights(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                folders = [i.filename for i in archive.infolist() if i.external_attr & 0x10]
                broken = archive.testzip() or next(iter(folders), None)  # torch skips a "folder"
            if broken:
                raise CheckpointError(f"{path}: damaged (wrong checksum: {broken}); copy it anew")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for a bad file
        # torch's weights-only message begins with advice on how to load code after all
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        raise CheckpointError(
            f"{path}: not a readable weights file (cut short, damaged, or holding code): "
            f"{reason[0] if reason and ' ' in reason[0] else type(error).__name__}"
        ) from error


def _load_matching(module: nn.Module, weights: dict[str, Tensor], path: object) -> None:
    """load_state_dict whose error names every key that does not fit."""
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{path}: holds no dictionary of weights")
    own = module.state_dict()
    problems = [f"missing {k}" for k in own if k not in weights]
    problems += [f"unexpected {k}" for k in weights if k not in own]
    problems += [
        f"{k} is {tuple(weights[k].shape)}, wanted {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if problems:
        shown = "; ".join(problems[:8])
        shown += f"; and {len(problems) - 8} more" if problems[8:] else ""
        raise CheckpointError(f"{path}: does not fit this network: {shown}")
    module.load_state_dict(weights)


def load_pretrained(model: LiteDepth, source: str) -> tuple[str, bool]:
    """Sec. 4.2 "the encoder is pretrained on ImageNet". -> (what was loaded in one line, fell_back)

    source: "auto" (the public timm file if it is cached or comes within 10 s, else from scratch:
    only then fell_back is True), "imagenet" (the same, but its absence is an error), "none", a file
    or a URL (kept in torch.hub's cache, see `fetch`). A file may be timm's (encoder only; its
    classifier is ignored) or one of our checkpoints (whole network). Raises CheckpointError.
    """
    if source == "none":
        return "none: from scratch", False
    if source == "auto":
        try:
            path = fetch(IMAGENET_URL, timeout=10.0)
        except CheckpointError as error:
            return f"none: from scratch, because ImageNet weights are not to be had ({error})", True
    elif source == "imagenet":
        path = fetch(IMAGENET_URL, timeout=60.0)
    elif urlparse(source).scheme in ("http", "https"):
        path = fetch(source, timeout=600.0)
    elif urlparse(source).scheme == "file":
        path = Path(urllib.request.url2pathname(urlparse(source).path))
    else:
        path = Path(source)
    weights = _read_weights(path)
    if isinstance(weights, dict) and weights.get("format") == FORMAT:
        _load_matching(model, weights.get("model"), path)
        model.model_args |= {"mean": model.mean.tolist(), "std": model.std.tolist()}
        return f"whole network from {path.name}", False
    for wrapper in ("state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{path}: holds no dictionary of weights")
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    dropped = ("blocks.5.", "conv_head.", "classifier.")  # the 96 -> 576 layer and what follows
    weights = {k: v for k, v in weights.items() if not k.startswith(dropped)}
    # Files older than PyTorch 0.4.1 lack this counter; nothing is lost by keeping ours.
    own = {k: v for k, v in model.encoder.state_dict().items() if k.endswith("num_batches_tracked")}
    _load_matching(model.encoder, {**own, **weights}, path)
    return f"encoder from {path.name}", False


def fetch(url: str, timeout: float) -> Path:
    """The file behind `url`, from torch.hub's cache or downloaded there within `timeout` seconds.

    A name like NAME-1a2b3c4d.pth promises the first digits of its SHA-256 (torch.hub's custom):
    they are checked, in the cache too. Any other file is cached by its address: delete it to have
    a newer one. Raises CheckpointError, also where the cache cannot be written or read.
    """
    name = Path(urlparse(url).path).name
    promised = re.search(r"-([0-9a-f]{8,})\.", name)
    if not promised:  # any server may have a best.pth: the cache's name holds the address too
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}_{name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    part = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        cached = path.is_file()
        content = path.read_bytes() if cached else _download(url, timeout, path.parent)
        digest = hashlib.sha256(content).hexdigest()
        if promised and not digest.startswith(promised[1]):
            raise CheckpointError(
                f"{path if cached else url}: SHA-256 begins {digest[:8]}, its name promises "
                f"{promised[1]}" + ("; delete it" if cached else "")
            )
        if not cached:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(content)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot keep {url} in the cache: {error}. Set TORCH_HOME to a folder that can be "
            "written, or download it elsewhere and pass its path to --pretrained"
        ) from error
    return path


def _download(url: str, timeout: float, cache: Path) -> bytes:
    """What `url` holds; `cache` is for the message."""
    result: list[bytes | Exception] = []

    def download() -> None:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                result.append(response.read())
        except Exception as error:  # handed to the caller's thread
            result.append(error)

    # A thread, because name resolution ignores urlopen's timeout. It writes no file: one that ends
    # too late leaves nothing behind.
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(timeout)
    answer = result[0] if result else f"no answer within {timeout:.0f} s"
    if not isinstance(answer, bytes):
        raise CheckpointError(
            f"could not download {url}: {answer}. Download it elsewhere and pass its path to "
            f"--pretrained, or put it into {cache}"
        )
    return answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of Sec. 3.1."""
    group = parser.add_argument_group("network (Sec. 3.1)")
    group.add_argument(
        "--model", default="student", choices=["student"], help="which network to train"
    )
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
            flag, default="127.5,127.5,127.5", type=parse_triple, metavar="R,G,B",
            help=f"{text} of Eq. 1 on 0..255 (default 127.5 each, as the ImageNet weights expect)",
        )  # fmt: skip
    group.add_argument(
        "--pretrained", default="auto", metavar="auto|imagenet|none|FILE|URL",
        help="encoder weights: auto = public ImageNet weights if they are cached or download "
        "within 10 s, else from scratch (said loudly); imagenet = insist; none = never ask; a URL "
        "is downloaded once and then read from torch.hub's cache: delete it there to have it anew "
        "(default auto)",
    )  # fmt: skip


def parse_triple(text: str) -> tuple[float, float, float]:
    """"127.5,127.5,127.5" -> three floats, R, G, B."""
    try:
        r, g, b = (float(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers R,G,B") from None
    return r, g, b
