"""Sec. 3.1 (Eq. 3-6) and Sec. 4.5: checkpoint -> merged, BN-folded fp32 TFLite, parity, run time.

    raw RGB 1x480x640x3, float32, 0..255 -> resize -> merged stem -> ... -> 1x480x640x1 metres

`python export.py` rebuilds the network in plain tf.nn operations, reloads the written file and
compares it with PyTorch by maximum absolute error. TensorFlow is imported here and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import (
    CheckpointError,
    ConvSame,
    LiteDepth,
    build,
    merge_normalization,
    read_checkpoint,
)
from predict import Parser, parse_size, usable_cores


class ExportError(ValueError):
    """An export that cannot be done; the message says why and names the cure."""


# --------------------------------------------------------------------- Sec. 3.1, folding and graph


def fold_batchnorm(
    conv_weight: np.ndarray, conv_bias: np.ndarray | None, bn: nn.BatchNorm2d | None
) -> tuple[np.ndarray, np.ndarray]:
    """W' = g W,  b' = beta + g (b - mu)  with  g = gamma / sqrt(var + eps), in double.

    conv_weight (out, in/groups, k, k), conv_bias (out,) or None for zeros, bn with the running
    statistics (None: nothing to fold). Returns (W', b') as float64, shaped as the convolution's.
    """
    W = np.asarray(conv_weight, np.float64)
    b = np.zeros(len(W)) if conv_bias is None else np.asarray(conv_bias, np.float64)
    if bn is None:
        return W, b
    gamma, beta = _double(bn.weight), _double(bn.bias)
    mu, var = _double(bn.running_mean), _double(bn.running_var)
    g = gamma / np.sqrt(var + bn.eps)
    return W * g.reshape(-1, 1, 1, 1), beta + g * (b - mu)


def convert(model: LiteDepth, image_size: tuple[int, int]) -> bytes:
    """The TFLite file (fp32) of `model` in eval mode, for pictures of (H, W) = image_size.

    In: (1, H, W, 3) float32, raw RGB 0..255. Out: (1, H, W, 1) float32, metres. A network that is
    not merged yet is merged first (Eq. 3-6). Raises ExportError when TensorFlow is missing.
    """
    tf = _tensorflow()
    if not isinstance(model, LiteDepth):
        raise ExportError(
            f"this is a teacher ({model.model_args['model']}), and only the student is exported: "
            "distil it into one with python distill.py --teacher FILE"
        )
    merged = model if model.merged else merge_normalization(model)
    signature = [tf.TensorSpec((1, *image_size, 3), tf.float32, name="image")]

    @tf.function(input_signature=signature, autograph=False)
    def litedepth(image):
        return tf.identity(_graph(tf, merged, image), name="depth")

    concrete = litedepth.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], litedepth).convert()


def _graph(tf, model: LiteDepth, image):
    """`LiteDepth.forward` of a merged network, operation by operation, NHWC."""
    encoder, decoder = model.encoder, model.decoder
    x = _resize(tf, image, model.size, "bilinear")
    x = _pad_with(tf, x, _double(encoder.conv_stem.fill))
    x = _conv(tf, x, encoder.conv_stem, encoder.bn1, relu=True, padding="VALID")
    taps = []
    for i, stage in enumerate(encoder.blocks):
        for block in stage:
            x = _block(tf, x, block)
        if i != 2:  # stages 2 and 3 share a resolution: only the later one is tapped
            taps.append(x)
    s1, s2, s3, s4 = taps
    x = _conv(tf, s4, decoder.fuse4, relu=True)
    for layer, skip in ((decoder.fuse3, s3), (decoder.fuse2, s2), (decoder.fuse1, s1)):
        x = tf.concat([_resize(tf, x, skip.shape[1:3], "corners"), skip], 3)
        x = _conv(tf, x, layer, relu=True)
    d_hat = _conv(tf, x, decoder.depth, relu=True)
    return _resize(tf, d_hat, image.shape[1:3], model.mode)


def _block(tf, x, block: nn.Module):
    """DepthwiseSeparable (no `conv_pwl`, no skip) or InvertedResidual."""
    if not hasattr(block, "conv_pwl"):
        y = _conv(tf, x, block.conv_dw, block.bn1, relu=True)
        return _conv(tf, y, block.conv_pw, block.bn2, relu=False)
    y = _conv(tf, x, block.conv_pw, block.bn1, relu=True)
    y = _conv(tf, y, block.conv_dw, block.bn2, relu=True)
    y = _conv(tf, y, block.conv_pwl, block.bn3, relu=False)
    return x + y if block.skip else y


def _conv(tf, x, layer: nn.Conv2d, bn=None, *, relu: bool, padding: str = "SAME"):
    """Convolution, BatchNorm folded in, optional ReLU; (1, h, w, in) -> (1, h', w', out)."""
    k, s = layer.kernel_size[0], layer.stride[0]
    # ConvSame follows TensorFlow's SAME rule; nn.Conv2d agrees with it only where it is symmetric.
    if not isinstance(layer, ConvSame) and (s != 1 or layer.padding != (k // 2, k // 2)):
        raise ExportError(f"cannot export {layer}: its padding is not TensorFlow's SAME")
    bias = None if layer.bias is None else _double(layer.bias)
    W, b = fold_batchnorm(_double(layer.weight), bias, bn)
    if layer.groups == 1:
        kernel = W.transpose(2, 3, 1, 0).astype(np.float32)  # (k, k, in, out)
        x = tf.nn.conv2d(x, kernel, s, padding)
    else:
        kernel = W.transpose(2, 3, 0, 1).astype(np.float32)  # (k, k, channels, 1)
        x = tf.nn.depthwise_conv2d(x, kernel, (1, s, s, 1), padding)
    x = tf.nn.bias_add(x, b.astype(np.float32))
    return tf.nn.relu(x) if relu else x


def _pad_with(tf, x, fill: np.ndarray):
    """The stem's SAME padding at stride 2 on even sizes (one column right, one row below), filled
    per channel with `fill`, the mean m: (1, h, w, 3) -> (1, h + 1, w + 1, 3).

    Why: see merge_normalization. Concatenated constants are exact for any m and stay in XNNPACK's
    partition; PADV2 takes one scalar (wrong for unequal means) and cuts the graph in two.
    """
    _, h, w, c = x.shape
    fill = fill.astype(np.float32)
    x = tf.concat([x, np.broadcast_to(fill, (1, h, 1, c))], 2)
    return tf.concat([x, np.broadcast_to(fill, (1, 1, w + 1, c))], 1)


def _resize(tf, x, size: tuple[int, int], mode: str):
    """`model.upsample` for (1, h, w, C) -> (1, *size, C); the same three modes."""
    (h, w), (H, W) = tuple(x.shape[1:3]), tuple(size)
    if (h, w) == (H, W):
        return x
    if mode == "nearest":
        if H % h == 0 and W % w == 0:  # half-pixel centres: no float product is near a whole number
            return tf.raw_ops.ResizeNearestNeighbor(images=x, size=(H, W), half_pixel_centers=True)
        x = tf.gather(x, (np.arange(H) * h // H).astype(np.int32), axis=1)
        return tf.gather(x, (np.arange(W) * w // W).astype(np.int32), axis=2)
    corners = mode == "corners"
    return tf.raw_ops.ResizeBilinear(
        images=x, size=(H, W), align_corners=corners, half_pixel_centers=not corners
    )


def _double(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _tensorflow():
    """TensorFlow, quiet and without the GPU (with one it lays the graph out differently)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ExportError(f"export needs TensorFlow: pip install tensorflow ({error})") from error
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:  # TensorFlow already runs in this process: its devices are settled
        pass
    return tf


# -------------------------------------------------------------------------------- the written file


def interpreter(content: bytes, threads: int):
    """A ready LiteRT interpreter for a TFLite file. Raises ExportError when LiteRT is missing."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(
            f"running a TFLite file needs LiteRT: pip install ai-edge-litert==2.1.6 ({error})"
        ) from error
    runner = Interpreter(model_content=content, num_threads=threads)
    runner.allocate_tensors()
    return runner


def run_tflite(
    content: bytes, pictures: Iterable[np.ndarray], threads: int = 1
) -> Iterator[np.ndarray]:
    """Depth (H, W) float32 in metres of each (H, W, 3) RGB picture, from the TFLite file."""
    runner = interpreter(content, threads)
    [source], [target] = runner.get_input_details(), runner.get_output_details()
    for picture in pictures:
        runner.set_tensor(source["index"], picture[None].astype(np.float32))
        runner.invoke()
        yield runner.get_tensor(target["index"])[0, :, :, 0]


@torch.inference_mode()
def run_torch(model: LiteDepth, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same from PyTorch: the reference, with Eq. 1 and BatchNorm as they were trained."""
    for picture in pictures:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        yield model(image)[0, 0].numpy()


def operations(content: bytes) -> tuple[Counter, int]:
    """(operation type -> count, number of partitions that XNNPACK takes over)."""
    names = Counter(op["op_name"] for op in interpreter(content, 1)._get_ops_details())
    return names, names.pop("DELEGATE", 0)


def time_tflite(
    content: bytes, picture: np.ndarray, *, threads: int, warmup: int, runs: int
) -> np.ndarray:
    """Milliseconds of each of `runs` invocations after `warmup` more; copies in and out excluded.

    picture: (H, W, 3) RGB. threads: LiteRT's. Returns (runs,) float64.
    """
    runner = interpreter(content, threads)
    runner.set_tensor(runner.get_input_details()[0]["index"], picture[None].astype(np.float32))
    for _ in range(warmup):
        runner.invoke()
    times = np.empty(runs)
    for i in range(runs):
        start = time.perf_counter()
        runner.invoke()
        times[i] = 1e3 * (time.perf_counter() - start)
    return times


# --------------------------------------------------------------------------------------- ONNX, ours


class OnnxGraph:
    """Nodes and constants of an ONNX graph, collected one after the other; tensors are names.

    helper, numpy_helper: of the onnx package.
    """

    def __init__(self, helper, numpy_helper) -> None:
        self.helper, self.numpy_helper = helper, numpy_helper
        self.nodes: list = []
        self.constants: list = []

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes) -> str:
        name = output or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def conv(
        self, x: str, size: tuple[int, int], W: np.ndarray, b: np.ndarray, *, stride: int,
        groups: int, relu: bool,
    ) -> str:  # fmt: skip
        """SAME convolution of a map of `size` with W (out, in/groups, k, k), optional ReLU."""
        from model import same_padding

        k = W.shape[-1]
        (top, bottom), (left, right) = (same_padding(n, k, stride) for n in size)
        x = self.node(
            "Conv", x, self.constant(W.astype(np.float32)), self.constant(b.astype(np.float32)),
            kernel_shape=[k, k], strides=[stride, stride], pads=[top, left, bottom, right],
            group=groups,
        )  # fmt: skip
        return self.node("Relu", x) if relu else x

    def layer(self, x: str, size: tuple[int, int], conv: nn.Conv2d, bn=None, *, relu: bool) -> str:
        """A convolution of the network, BatchNorm folded in."""
        bias = None if conv.bias is None else _double(conv.bias)
        W, b = fold_batchnorm(_double(conv.weight), bias, bn)
        options = {"stride": conv.stride[0], "groups": conv.groups, "relu": relu}
        return self.conv(x, size, W, b, **options)

    def resize(
        self, x: str, channels: int, size: tuple[int, int], to: tuple[int, int], mode: str
    ) -> str:
        """`model.upsample` for (1, channels, *size) -> (1, channels, *to); the same three modes."""
        (h, w), (H, W) = size, to
        if size == to:
            return x
        if mode == "nearest" and (H % h or W % w):  # whole numbers: no float scale can slip
            x = self.node("Gather", x, self.constant(np.arange(H) * h // H), axis=2)
            return self.node("Gather", x, self.constant(np.arange(W) * w // W), axis=3)
        how = {
            # For whole ratios the rounded place is never near a half, and equals floor(v h / H).
            "nearest": {"mode": "nearest", "coordinate_transformation_mode": "half_pixel",
                        "nearest_mode": "round_prefer_floor"},
            "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
            "corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        }[mode]  # fmt: skip
        sizes = self.constant(np.array([1, channels, H, W], np.int64))
        return self.node("Resize", x, "", "", sizes, **how)

    def network(self, model: LiteDepth, image_size: tuple[int, int], to: tuple[int, int]) -> None:
        """`LiteDepth.forward` of a merged network, operation by operation, NCHW: "image" of
        image_size -> "depth" of the size `to`."""
        encoder, decoder, size = model.encoder, model.decoder, model.size
        x = self.resize("image", 3, image_size, size, "bilinear")
        # The mean is subtracted and 0 padded, where the merged stem pads the mean: the same for any
        # mean, and its bias no longer holds W' m. One pass over 1/15 of the picture's pixels.
        stem, fill = encoder.conv_stem, _double(encoder.conv_stem.fill)
        x = self.node("Sub", x, self.constant(fill.astype(np.float32).reshape(1, 3, 1, 1)))
        b = _double(stem.bias) + (_double(stem.weight) * fill.reshape(1, 3, 1, 1)).sum((1, 2, 3))
        W, b = fold_batchnorm(_double(stem.weight), b, encoder.bn1)
        x = self.conv(x, size, W, b, stride=2, groups=1, relu=True)
        size, taps = _half(size), []
        for i, stage in enumerate(encoder.blocks):
            for block in stage:
                x, size = self.block(x, size, block)
            if i != 2:  # stages 2 and 3 share a resolution: only the later one is tapped
                taps.append((x, size))
        x = self.layer(x, size, decoder.fuse4, relu=True)
        channels = decoder.fuse4.out_channels
        fusions = (decoder.fuse3, decoder.fuse2, decoder.fuse1)
        for layer, (skip, larger) in zip(fusions, reversed(taps[:3])):
            x = self.resize(x, channels, size, larger, "corners")
            x = self.layer(self.node("Concat", x, skip, axis=1), larger, layer, relu=True)
            channels, size = layer.out_channels, larger
        d_hat = self.layer(x, size, decoder.depth, relu=True)
        self.node("Identity", self.resize(d_hat, 1, size, to, model.mode), output="depth")

    def block(
        self, x: str, size: tuple[int, int], block: nn.Module
    ) -> tuple[str, tuple[int, int]]:  # fmt: skip
        """DepthwiseSeparable (no `conv_pwl`, no skip) or InvertedResidual -> (map, its size)."""
        smaller = _half(size) if block.conv_dw.stride[0] == 2 else size
        if not hasattr(block, "conv_pwl"):
            y = self.layer(x, size, block.conv_dw, block.bn1, relu=True)
            return self.layer(y, smaller, block.conv_pw, block.bn2, relu=False), smaller
        y = self.layer(x, size, block.conv_pw, block.bn1, relu=True)
        y = self.layer(y, size, block.conv_dw, block.bn2, relu=True)
        y = self.layer(y, smaller, block.conv_pwl, block.bn3, relu=False)
        return (self.node("Add", x, y) if block.skip else y), smaller


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def to_onnx(
    model: LiteDepth, image_size: tuple[int, int], *, output_size: tuple[int, int] | None = None,
    metadata: dict | None = None,
) -> bytes:  # fmt: skip
    """The ONNX file (fp32, opset 13) of `model` in eval mode, for pictures of (H, W) = image_size.

    In: "image" (1, 3, H, W) float32, raw RGB 0..255, channels first as ONNX users expect. Out:
    "depth" (1, 1, *output_size) float32, metres; output_size None = image_size. metadata: goes into
    the file as the property "litedepth.json". A network that is not merged yet is merged first
    (Eq. 3-6). onnxruntime's Resize places the input's samples in float32, some 4e-5 pixels off:
    that is most of its distance to PyTorch. Raises ExportError: a teacher, or the onnx package is
    missing.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise ExportError(f"--format onnx: pip install onnx onnxruntime ({error})") from error
    if not isinstance(model, LiteDepth):
        raise ExportError(
            f"this is a teacher ({model.model_args['model']}), and only the student is exported: "
            "distil it into one with python distill.py --teacher FILE"
        )
    to = output_size or image_size
    graph = OnnxGraph(helper, numpy_helper)
    merged = model if model.merged else merge_normalization(model)
    graph.network(merged, tuple(image_size), tuple(to))
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, *size])
        for name, channels, size in (("image", 3, image_size), ("depth", 1, to))
    ]
    content = helper.make_model(
        helper.make_graph(graph.nodes, "litedepth", ends[:1], ends[1:], graph.constants),
        opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="LiteDepth",
    )  # fmt: skip
    if metadata is not None:
        helper.set_model_props(content, {"litedepth.json": json.dumps(metadata)})
    onnx.checker.check_model(content, full_check=True)
    return content.SerializeToString()


def run_onnx(
    content: bytes, pictures: Iterable[np.ndarray], threads: int = 1
) -> Iterator[np.ndarray]:
    """Depth (h, w) float32 in metres of each (H, W, 3) RGB picture, from the ONNX file; `threads`
    are onnxruntime's. Raises ExportError when onnxruntime is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(f"running ONNX: pip install onnx onnxruntime ({error})") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    for picture in pictures:
        image = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32)
        yield session.run(["depth"], {"image": image})[0][0, 0]


# ------------------------------------------------------------------------------------------ parity


@dataclass(frozen=True)
class Parity:
    """What `compare` found; metres. `border` is the maximum over the picture's outer ring."""

    pictures: int
    max_abs: float
    mean_abs: float
    border: float
    depth: tuple[float, float]  # smallest and largest value of the reference
    tolerance: float

    @property
    def limit(self) -> float:
        """tolerance metres, relative to the reference's range once that exceeds 1 m."""
        return self.tolerance * max(1.0, self.depth[1])

    @property
    def passed(self) -> bool:
        return self.max_abs <= self.limit  # False for NaN


def compare(
    references: Iterable[np.ndarray], outputs: Iterable[np.ndarray], tolerance: float
) -> Parity:
    """Maximum absolute error of outputs against references, both iterables of (H, W) metres.

    A signed mean would hide errors that cancel, and a mean those that sit in one border row.
    Raises ValueError for no pictures, unequal numbers of them or unequal shapes.
    """
    rows = []
    for reference, output in zip(references, outputs, strict=True):
        if reference.shape != output.shape:
            raise ValueError(f"reference is {reference.shape}, output {output.shape}")
        error = np.abs(output.astype(np.float64) - reference)
        ring = np.max([error[[0, -1]].max(), error[:, [0, -1]].max()])  # NaN stays NaN
        rows.append((error.max(), error.mean(), ring, reference.min(), reference.max()))
    if not rows:
        raise ValueError("no pictures to compare")
    rows = np.array(rows, np.float64)
    worst, _, border, _, high = rows.max(axis=0).tolist()
    depth = (float(rows[:, 3].min()), high)
    return Parity(len(rows), worst, float(rows[:, 1].mean()), border, depth, tolerance)


def pattern_pictures(size: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Name -> (H, W, 3) uint8: flat, smooth, rough, and bright or dark along the border."""
    H, W = size
    v, u = np.mgrid[:H, :W]
    ramp = np.stack([255 * v / max(H - 1, 1), 255 * u / max(W - 1, 1), 255 - 255 * v / H], 2)
    frame = np.full((H, W, 3), 255)
    frame[1:-1, 1:-1] = 0
    pictures = {
        "noise": np.random.default_rng(seed).integers(0, 256, (H, W, 3)),
        "gradient": ramp,
        "black": np.zeros((H, W, 3)),
        "white": np.full((H, W, 3), 255),
        "frame": frame,
        "checker": np.where(((v // 8 + u // 8) % 2)[..., None], (255, 128, 0), (0, 64, 255)),
    }
    return {name: picture.astype(np.uint8) for name, picture in pictures.items()}


def real_pictures(data_arg: str, split: str, size: tuple[int, int], limit: int) -> list[np.ndarray]:
    """At most `limit` pictures (H, W, 3) uint8 RGB of `size`, evenly spread over the split.

    They are read as in training. Raises ExportError or OSError for what cannot be read.
    """
    try:
        import data  # here, so that the test pictures need neither the kernels nor a data set

        pairs = data.list_pairs(data.resolve(data_arg), split)
        chosen = np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).round().astype(int)
        return [data.read_pair(pairs[i], size, None, {}).rgb for i in chosen]
    except (ImportError, ValueError) as error:
        raise ExportError(f"pictures of {data_arg}: {error}") from error


# --------------------------------------------------------------------------------------------- main


def newest_checkpoint(runs: Path) -> Path:
    """The newest of runs/student and runs/distilled: best.pt, or last.pt where there is no best."""
    found = []
    for run in ("student", "distilled"):
        files = [runs / run / name for name in ("best.pt", "last.pt")]
        found += [file for file in files if file.is_file()][:1]
    if not found:
        raise ExportError(
            f"no checkpoint in {runs / 'student'} or {runs / 'distilled'}: "
            "python train.py first, or --checkpoint FILE"
        )
    return max(found, key=lambda file: file.stat().st_mtime)


def training_data(checkpoint: Path) -> tuple[str, str] | None:
    """(--data, --val_split) of the checkpoint's run, if its args.json says so and the data is there
    (embedded scenes always are: they are rendered again). A run without validation: "val"."""
    try:
        run = json.loads((checkpoint.parent / "args.json").read_text())
        name, split = run["data"], str(run.get("val_split", "val"))
        there = name.startswith("synthetic:") or Path(name).is_dir()
        return (name, "val" if split == "none" else split) if there else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(path: Path, content: bytes) -> None:
    """Writes the file atomically: a reader sees the old one or the new one. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def number(kind: type, low: float):
    """An argparse type: a finite int or float that is at least `low`."""

    def parse(text: str):
        value = kind(text)  # ValueError: argparse words it
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {low}")
        return value

    parse.__name__ = kind.__name__
    return parse


def tflite_name(text: str) -> Path:
    """An argparse type: a path that ends in .tflite (so that no checkpoint is overwritten)."""
    if not text.endswith(".tflite"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .tflite")
    return Path(text)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Merge the normalisation (Eq. 3-6), fold BatchNorm, write fp32 TFLite, compare "
        "it with PyTorch and time it on this host.",
        epilog="exit code: 0 written and equal; 2 an error, in one line; 3 not equal: the file is "
        "written as <name>.failed.tflite, and an older <name>.tflite stays as it was",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE",
        help="trained student (default: the newer of runs/student/best.pt and "
        "runs/distilled/best.pt; last.pt where there is no best.pt)")  # fmt: skip
    add("--out", type=tflite_name, metavar="FILE.tflite",
        help="file to write; missing folders are made (default: model.tflite beside the "
        "checkpoint)")  # fmt: skip
    add("--image_size", type=parse_size, metavar="HxW",
        help="size of the file's input and output; fixed in the file, so take the camera's. The "
        "network still works at its own --size (default: the checkpoint's own, that of its "
        "training pictures; 480x640, Sec. 4.1, where it does not say)")  # fmt: skip
    add("--data", metavar="ROOT|synthetic:N",
        help="data set whose pictures are compared beside six test pictures (default: the "
        "checkpoint's own, where its args.json names it and it is still there)")  # fmt: skip
    add("--split",
        help="which pictures of --data (default: the --val_split of the checkpoint's run on its "
        "own data; val otherwise)")  # fmt: skip
    add("--pictures", type=number(int, 0), default=16, metavar="N",
        help="how many pictures of --data to compare, spread evenly over the split; 0 = only the "
        "test pictures (default 16)")  # fmt: skip
    add("--tolerance", type=number(float, 0), default=1e-4, metavar="M",
        help="largest absolute error allowed, in metres; times the largest depth where that "
        "exceeds 1 m (default 1e-4; float rounding gives about 1e-5)")  # fmt: skip
    add("--threads", type=number(int, 0), default=min(4, usable_cores()), metavar="N",
        help="second thread count that is timed, after 1; more than the idle cores only slows it "
        "down; 0 = all usable cores (default: these, at most 4)")  # fmt: skip
    add("--runs", type=number(int, 1), default=50, metavar="N",
        help="timed invocations per thread count; more on a busy host (default 50)")  # fmt: skip
    add("--warmup", type=number(int, 0), default=10, metavar="N",
        help="invocations before timing starts (default 10)")  # fmt: skip
    add("--seed", type=number(int, 0), default=0, metavar="N",
        help="of the noise among the test pictures (default 0)")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    args = make_parser().parse_args(argv)
    try:
        checkpoint = args.checkpoint or newest_checkpoint(Path("runs"))
        stored = read_checkpoint(checkpoint)
        model = build(stored, checkpoint).eval()
        image_size = args.image_size or tuple(stored.get("image_size") or (480, 640))
        out = args.out or checkpoint.with_name("model.tflite")
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures = list(pattern_pictures(image_size, args.seed).values())
        source = f"{len(pictures)} test pictures"
        trained_on, val_split = training_data(checkpoint) or (None, "val")
        data_arg = args.data or trained_on
        split = args.split or (val_split if data_arg == trained_on else "val")
        if data_arg and args.pictures:
            try:
                real = real_pictures(data_arg, split, image_size, args.pictures)
                pictures += real
                source += f", {len(real)} of {data_arg} {split}"
            except (ExportError, OSError) as error:
                if args.data:
                    raise
                print(f"notice: {error}; only the test pictures are compared", file=sys.stderr)
        # The final name is for a file that passed: other scripts pick it up without asking.
        failed = out.with_name(f"{out.stem}.failed.tflite")
        write(failed, convert(model, image_size))
        try:
            content = failed.read_bytes()
            ops, partitions = operations(content)
            outputs = run_tflite(content, pictures)
            parity = compare(run_torch(model, pictures), outputs, args.tolerance)
            if parity.passed:
                os.replace(failed, out)
        except BaseException:
            failed.unlink(missing_ok=True)
            raise
        times = {
            threads: time_tflite(
                content, pictures[0], threads=threads, warmup=args.warmup, runs=args.runs
            )
            for threads in sorted({1, args.threads or usable_cores()})
        }
    except (CheckpointError, ExportError, OSError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2

    H, W = image_size
    low, high = parity.depth
    file = out if parity.passed else failed
    rows = [
        ("checkpoint", str(checkpoint)),
        ("file", f"{file}, {len(content) / 1e6:.3f} MB ({len(content) / 2**20:.3f} MiB), fp32"),
        ("input", f"1x{H}x{W}x3 float32, raw RGB 0..255"),
        ("output", f"1x{H}x{W}x1 float32, metres"),
        ("operations", f"{ops.total()}: " + ", ".join(f"{n} {k}" for k, n in ops.most_common())),
        ("XNNPACK", f"{partitions} partition" + "s" * (partitions != 1)),
    ]
    for threads, ms in times.items():
        name = f"run time, {threads} thread" + "s" * (threads > 1)
        median, p90 = np.median(ms), np.percentile(ms, 90)
        rows.append((name, f"median {median:.3f} ms, p90 {p90:.3f} ms"))
    rows += [
        ("timing", f"{args.runs} runs after {args.warmup} warm-up, without copies in and out, "
         f"on this host ({platform.machine()}, {os.cpu_count()} cores)"),
        ("compared", f"{source}; PyTorch's depth {low:.3g} .. {high:.3g} m"),
        ("error, max", f"{parity.max_abs:.2e} m (outermost pixels {parity.border:.2e} m)"),
        ("error, mean", f"{parity.mean_abs:.2e} m"),
        ("tolerance", f"{parity.limit:.2e} m: " + ("passed" if parity.passed else "FAILED")),
    ]  # fmt: skip
    for name, text in rows:
        print(f"{name:<20}{text}")
    if low == high:
        print(f"WARNING: the reference is {low:g} m everywhere: equal, but an untrained or dead "
              "network", file=sys.stderr)  # fmt: skip
    if not parity.passed:
        older = f"; {out} is still the older file" if out.exists() else ""
        print(f"export.py: {file} is written but does NOT equal PyTorch: {parity.max_abs:.2e} m "
              f"> {parity.limit:.2e} m{older}", file=sys.stderr)  # fmt: skip
    return 0 if parity.passed else 3


if __name__ == "__main__":
    sys.exit(main())
