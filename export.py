"""Sec. 3.1 (Eq. 3-6) and Sec. 4.5: checkpoint -> the fastest TFLite graph, and its report card.

    raw RGB 1x480x640x3, float32 or uint8, 0..255 -> resize -> merged stem -> ... -> depth

`python export.py --format fp32,fp16,int8-dynamic,int8` rebuilds the network in plain tf.nn
operations, writes a file per format, reloads each and compares it with PyTorch, by absolute error
and by the metrics of Sec. 4.1. TensorFlow is imported here and nowhere else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import ConvSame, LiteDepth, build, calibrate, merge_normalization, same_padding, upsample
from plumbing.checkpoints import CheckpointError, read_calibration, read_checkpoint
from plumbing.device import machine, run_times
from plumbing.files import UserError, git_state, usable_cores, write_file
from plumbing.flags import Parser, parse_size
from plumbing.pictures import resize_depth
from plumbing.report import (
    DELEGATE,
    Card,
    Limits,
    Parity,
    broken,
    compare,
    hushed,
    interpreter,
    table,
    tensorflow_quietly,
)
from plumbing.runtime import seal
from predict import number

FORMATS = ("fp32", "fp16", "int8-dynamic", "int8", "onnx")


@dataclass(frozen=True)
class Layout:
    """What a file takes and gives, and how its graph is laid out; one field, one flag of `main`.

    input_size (H, W) of the pictures, input_type "float32" or "uint8": raw RGB 0..255 either way.
    output_size (h, w) of the depth map, in unit "m" or "mm". upsample: the last resize, "nearest"
    or "bilinear". normalization: where Eq. 1 is, see `_stem`. last_resize: see `_enlarge`.
    """

    input_size: tuple[int, int]
    input_type: str
    output_size: tuple[int, int]
    unit: str
    upsample: str
    normalization: str
    last_resize: str

    @property
    def scale(self) -> float:
        """Units per metre."""
        return {"m": 1.0, "mm": 1000.0}[self.unit]


def standard(model: LiteDepth, size: tuple[int, int], **changes: object) -> Layout:
    """The layout of the paper's Sec. 4.5 for pictures of `size`: float in, metres out, same size,
    `model`'s own last resize; with `changes`."""
    fields = {
        "input_size": size, "input_type": "float32", "output_size": size, "unit": "m",
        "upsample": model.mode, "normalization": "weights", "last_resize": "fast",
    }  # fmt: skip
    return Layout(**{**fields, **changes})


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


def _graph(tf, model: LiteDepth, layout: Layout, image):
    """`LiteDepth.forward` of a network in eval mode, operation by operation, NHWC."""
    encoder, decoder = model.encoder, model.decoder
    if layout.input_type == "uint8":
        image = tf.cast(image, tf.float32)
    x = _stem(tf, model, layout.normalization, image)
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
    with tf.name_scope(FLOAT):
        return _enlarge(tf, decoder.depth, layout, x)


FLOAT = "kept_in_float"  # scope of the operations that --format int8 does not quantise


def _stem(tf, model: LiteDepth, normalization: str, image):
    """Picture (1, H, W, 3), raw -> the stem's output (1, h/2, w/2, 16) at network size (h, w).

    normalization, three places for Eq. 1, all exact to the border:
    "weights": Eq. 3-6, in the stem's weights and bias; the stem pads with the mean;
    "shift": s in the weights, m subtracted after the resize, zero padding as it was trained;
    "graph": the paper's network without MIN (Table 3): (I_r - m) / s on the whole picture.
    """
    stem, bn = model.encoder.conv_stem, model.encoder.bn1
    if normalization == "graph":
        m, s = _double(model.mean).astype(np.float32), _double(model.std).astype(np.float32)
        x = _resize(tf, (image - m) / s, model.size, "bilinear")
        return _conv(tf, x, stem, bn, relu=True)
    with tf.name_scope(FLOAT):
        x = _resize(tf, image, model.size, "bilinear")
    if normalization == "weights":
        merged = merge_normalization(model)
        x = _pad_with(tf, x, _double(merged.encoder.conv_stem.fill))
        return _conv(tf, x, merged.encoder.conv_stem, bn, relu=True, padding="VALID")
    h, w = model.size
    # A row of pixels is one long vector here: XNNPACK subtracts vectors of three channels slowly.
    x = tf.reshape(x, (1, h, 3 * w)) - np.tile(_double(model.mean), w).astype(np.float32)
    return _conv(
        tf, tf.reshape(x, (1, h, w, 3)), stem, bn, relu=True, std=_double(model.std)
    )  # fmt: skip


def _enlarge(tf, depth: nn.Conv2d, layout: Layout, x):
    """The decoder's last convolution and the last resize: (1, h, w, C) -> (1, *output_size, 1).

    last_resize "plain": TFLite's own resize of one channel, which no vector unit helps.
    "fast", exact too: first along W as a matrix product (for a whole nearest ratio the last
    convolution just gives every pixel as many times as it is wide), then along H with the row of
    pixels as channels: a copy of whole rows.
    """
    W, b = layout.scale * _double(depth.weight), layout.scale * _double(depth.bias)
    (h, w), (H, width) = tuple(x.shape[1:3]), layout.output_size
    if layout.last_resize == "plain" or (h, w) == (H, width):
        return _resize(tf, _pointwise(tf, x, W, b), (H, width), layout.upsample)
    if layout.upsample == "nearest" and width % w == 0:
        n = width // w
        x = _pointwise(tf, x, np.repeat(W, n, 0), np.repeat(b, n))
        x = tf.reshape(x, (1, h, 1, width))
    else:
        x = tf.reshape(_pointwise(tf, x, W, b), (1, h, 1, w))
        x = tf.nn.conv2d(x, resize_matrix(w, width, layout.upsample)[None, None], 1, "VALID")
    if layout.upsample == "bilinear":
        x = _resize(tf, x, (H, 1), "bilinear")
    elif H % h == 0:
        x = _copies(tf, x, H // h)
    else:  # outside XNNPACK, but a copy of whole rows, and the last operation
        rows = (np.arange(H) * h // H).astype(np.int32)
        return tf.gather(tf.reshape(x, (1, h, width, 1)), rows, axis=1)
    return tf.reshape(x, (1, H, width, 1))


def _copies(tf, x, n: int):
    """(1, h, 1, W) -> (1, h, n, W), every row n times, by concatenation.

    BROADCAST_TO, TILE and RESIZE_NEAREST_NEIGHBOR would leave XNNPACK, which concatenates at most
    five tensors at a time; a sum or maximum that broadcasts is as fast, but phones' GPU delegates
    have been reported to compute it wrongly.
    """
    if n == 1:
        return x
    if n <= 5:
        return tf.concat([x] * n, 2)
    many, rest = divmod(n, 5)
    y = tf.concat([_copies(tf, x, many)] * 5, 2)
    return tf.concat([y, *[x] * rest], 2) if rest else y


def resize_matrix(n: int, N: int, mode: str) -> np.ndarray:
    """(n, N) float32: a row of n pixels times this is `model.upsample`'s row of N pixels."""
    rows = torch.eye(n).view(n, 1, 1, n)
    return upsample(rows, (1, N), mode)[:, 0, 0].numpy()


def _block(tf, x, block: nn.Module):
    """DepthwiseSeparable (no `conv_pwl`, no skip) or InvertedResidual."""
    if not hasattr(block, "conv_pwl"):
        y = _conv(tf, x, block.conv_dw, block.bn1, relu=True)
        return _conv(tf, y, block.conv_pw, block.bn2, relu=False)
    y = _conv(tf, x, block.conv_pw, block.bn1, relu=True)
    y = _conv(tf, y, block.conv_dw, block.bn2, relu=True)
    y = _conv(tf, y, block.conv_pwl, block.bn3, relu=False)
    return x + y if block.skip else y


def _conv(
    tf, x, layer: nn.Conv2d, bn=None, *, relu: bool, padding: str = "SAME",
    std: np.ndarray | float = 1.0,
):  # fmt: skip
    """Convolution, BatchNorm folded in, optional ReLU; (1, h, w, in) -> (1, h', w', out).

    std: per input channel, Eq. 1's division taken into the weights.
    """
    k, s = layer.kernel_size[0], layer.stride[0]
    # ConvSame follows TensorFlow's SAME rule; nn.Conv2d agrees with it only where it is symmetric.
    if not isinstance(layer, ConvSame) and (s != 1 or layer.padding != (k // 2, k // 2)):
        raise UserError(f"cannot export {layer}: its padding is not TensorFlow's SAME")
    bias = None if layer.bias is None else _double(layer.bias)
    W, b = fold_batchnorm(_double(layer.weight) / np.reshape(std, (1, -1, 1, 1)), bias, bn)
    if layer.groups == 1:
        kernel = W.transpose(2, 3, 1, 0).astype(np.float32)  # (k, k, in, out)
        x = tf.nn.conv2d(x, kernel, s, padding)
    else:
        kernel = W.transpose(2, 3, 0, 1).astype(np.float32)  # (k, k, channels, 1)
        x = tf.nn.depthwise_conv2d(x, kernel, (1, s, s, 1), padding)
    x = tf.nn.bias_add(x, b.astype(np.float32))
    return tf.nn.relu(x) if relu else x


def _pointwise(tf, x, W: np.ndarray, b: np.ndarray):
    """ReLU of a 1x1 convolution; W (out, in, 1, 1), b (out,)."""
    x = tf.nn.conv2d(x, W.transpose(2, 3, 1, 0).astype(np.float32), 1, "VALID")
    return tf.nn.relu(tf.nn.bias_add(x, b.astype(np.float32)))


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


# ------------------------------------------------------------------------------------ the formats


def convert(
    model: LiteDepth, layout: Layout, precision: str = "fp32",
    pictures: Iterable[np.ndarray] = (),
) -> bytes:  # fmt: skip
    """The bare TFLite flatbuffer of `model` in eval mode.

    In: (1, H, W, 3), raw RGB 0..255. Out: (1, h, w, 1) float32. precision: one of FORMATS but onnx:
    "fp16": weights in half precision, arithmetic in float;
    "int8-dynamic": weights of all convolutions but the depthwise in int8, per channel; their inputs
    are quantised as they come, so no pictures are needed;
    "int8": everything in int8, per channel, ranges taken from `pictures`, (H, W, 3) uint8 training
    pictures; but the first resize (of raw colours, so not with normalization "graph"), the last
    convolution and the last resize stay in float.
    Raises UserError when TensorFlow is missing and for int8 without pictures.
    """
    tf = tensorflow_quietly()
    pictures = list(pictures)
    if precision == "int8" and not pictures:
        raise UserError("int8 needs training pictures for its ranges: give --data ROOT")
    source = tf.TensorSpec((1, *layout.input_size, 3), layout.input_type, name="image")

    @tf.function(input_signature=[source], autograph=False)
    def litedepth(image):
        return tf.identity(_graph(tf, model, layout, image), name="depth")

    def converter(optimise: bool):
        concrete = [litedepth.get_concrete_function()]
        made = tf.lite.TFLiteConverter.from_concrete_functions(concrete, litedepth)
        made.optimizations = [tf.lite.Optimize.DEFAULT] if optimise else []
        return made

    # The warnings are of TensorFlow's own interpreter, inside its own quantiser.
    with warnings.catch_warnings(), hushed():
        warnings.simplefilter("ignore")
        quantised = converter(True)
        if precision == "fp16":
            quantised.target_spec.supported_types = [tf.float16]
            return bytes(quantised.convert())
        plain = converter(False).convert()
        if precision == "fp32":
            return bytes(plain)
        if precision == "int8-dynamic":
            return _float_depthwise(quantised.convert(), plain)

        def ranges():
            return ([picture[None].astype(layout.input_type)] for picture in pictures)

        # The one way into the converter's list of operations that stay in float.
        quantised.representative_dataset = ranges
        kept = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=_kept_in_float(plain))
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=quantised, debug_dataset=ranges, debug_options=kept
        )
        return bytes(debugger.get_nondebug_quantized_model())


def _kept_in_float(content: bytes) -> list[str]:
    """Output names of the operations under the scope FLOAT, and of the last, which bears the name
    of the graph's output instead.

    The last convolution's output is the depth: 256 steps over 0..40 m would show, and in float
    XNNPACK takes the whole graph. Resizing in int8 would round colours once more.
    """
    runner = interpreter(content, 1)
    names = {t["index"]: t["name"] for t in runner.get_tensor_details()}
    ops = [op for op in runner._get_ops_details() if op["op_name"] != DELEGATE]
    outputs = [names[op["outputs"][0]] for op in ops]
    return [name for name in outputs if FLOAT in name or name == outputs[-1]]


def _float_depthwise(content: bytes, plain: bytes) -> bytes:
    """An int8-dynamic file with the depthwise kernels of the float file `plain` put back.

    XNNPACK has no such depthwise convolution: each one would cut the graph (8 partitions, twice
    the time), for 3 % of the weights. The converter offers no choice by operation here.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    models = [flatbuffer_utils.convert_bytearray_to_object(bytearray(c)) for c in (content, plain)]
    (small, full), (graph, source) = models, (m.subgraphs[0] for m in models)
    kinds = [[m.operatorCodes[op.opcodeIndex].builtinCode for op in m.subgraphs[0].operators]
             for m in models]  # fmt: skip
    if kinds[0] != kinds[1]:
        raise UserError("TensorFlow's int8-dynamic graph is not the float one any more")
    for kind, a, b in zip(kinds[0], graph.operators, source.operators):
        if kind == schema.BuiltinOperator.DEPTHWISE_CONV_2D:
            kernel, original = graph.tensors[a.inputs[1]], source.tensors[b.inputs[1]]
            kernel.type, kernel.quantization = original.type, original.quantization
            small.buffers[kernel.buffer].data = full.buffers[original.buffer].data
    return bytes(flatbuffer_utils.convert_object_to_bytearray(small))


# -------------------------------------------------------------------------------- the written file

class Runner:
    """A TFLite file, loaded: `runner(picture)` is its depth, `runner.invoke()` its graph alone."""

    def __init__(self, content: bytes, layout: Layout, threads: int) -> None:
        self.lite, self.scale = interpreter(content, threads), layout.scale
        [self.source], [self.target] = self.lite.get_input_details(), self.lite.get_output_details()
        self.invoke = self.lite.invoke

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) RGB u8 -> (h, w) float32 metres."""
        self.lite.set_tensor(self.source["index"], picture[None].astype(self.source["dtype"]))
        self.invoke()
        return self.lite.get_tensor(self.target["index"])[0, :, :, 0] / np.float32(self.scale)


class Reference:
    """The same from PyTorch, with Eq. 1 and BatchNorm as they were trained."""

    def __init__(self, model: LiteDepth, layout: Layout) -> None:
        self.model, self.layout = model.eval(), layout

    @torch.inference_mode()
    def __call__(self, picture: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        d_hat = self.model.network(upsample(image, self.model.size, "bilinear"))
        return upsample(d_hat, self.layout.output_size, self.layout.upsample)[0, 0].numpy()


# ------------------------------------------------------------------------------------------- ONNX


class OnnxGraph:
    """Nodes and constants of an ONNX graph, collected one after the other; tensors are names.

    helper, numpy_helper: of the onnx package.
    """

    FLOAT, UINT8 = 1, 2  # onnx.TensorProto's numbers

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

    def network(self, model: LiteDepth, layout: Layout) -> None:
        """`LiteDepth.forward`, operation by operation, NCHW: "image" -> "depth"."""
        encoder, decoder, size = model.encoder, model.decoder, model.size
        x = "image"
        if layout.input_type == "uint8":
            x = self.node("Cast", x, to=self.FLOAT)
        x = self.resize(x, 3, layout.input_size, size, "bilinear")
        # As `_stem` does for "shift": ONNX has no padding with a colour either.
        x = self.node("Sub", x, self.constant(model.mean.numpy().reshape(1, 3, 1, 1)))
        W = _double(encoder.conv_stem.weight) / _double(model.std).reshape(1, 3, 1, 1)
        W, b = fold_batchnorm(W, None, encoder.bn1)
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
        x = self.resize(d_hat, 1, size, layout.output_size, layout.upsample)
        self.node("Identity", x, output="depth")

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


def onnx_package():
    """onnx, where onnxruntime is too. Raises UserError."""
    try:
        import onnx
        import onnxruntime  # noqa: F401  to be there when the file is compared
    except ImportError as error:
        raise UserError(f"--format onnx: pip install onnx onnxruntime ({error})") from error
    return onnx


def to_onnx(model: LiteDepth, layout: Layout, metadata: dict | None = None) -> bytes:
    """The ONNX file (fp32, opset 13) of `model` in eval mode; the layout's normalization and
    last_resize do not matter here.

    In: "image" (1, 3, H, W), raw RGB 0..255, channels first as ONNX users expect. Out: "depth"
    (1, 1, h, w) float32. metadata: goes into the file as the property "litedepth.json", with NCHW
    as the layout of both.
    onnxruntime's Resize places the input's samples in float32, some 4e-5 pixels off: that is most
    of its distance to PyTorch. Raises UserError when the packages are missing.
    """
    onnx = onnx_package()
    from onnx import helper, numpy_helper

    graph = OnnxGraph(helper, numpy_helper)
    graph.network(calibrate(model, layout.scale, 0.0), layout)
    types = {"float32": graph.FLOAT, "uint8": graph.UINT8}
    source = [types[layout.input_type], [1, 3, *layout.input_size]]
    content = helper.make_model(
        helper.make_graph(
            graph.nodes, "litedepth", [helper.make_tensor_value_info("image", *source)],
            [helper.make_tensor_value_info("depth", graph.FLOAT, [1, 1, *layout.output_size])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="LiteDepth",
    )  # fmt: skip
    if metadata is not None:
        ends = {end: metadata[end] | {"layout": "NCHW"} for end in ("input", "output")}
        helper.set_model_props(content, {"litedepth.json": json.dumps(metadata | ends)})
    onnx.checker.check_model(content, full_check=True)
    return content.SerializeToString()


class OnnxRunner:
    """An ONNX file, loaded: as `Runner`. Raises UserError when the packages are missing."""

    def __init__(self, content: bytes, layout: Layout, threads: int) -> None:
        onnx_package()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors only
        self.session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        self.layout, self.image = layout, None

    def invoke(self) -> np.ndarray:
        """Runs the graph on the last picture."""
        return self.session.run(["depth"], {"image": self.image})[0]

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) RGB u8 -> (h, w) float32 metres."""
        nchw = picture.transpose(2, 0, 1)[None]
        self.image = np.ascontiguousarray(nchw, self.layout.input_type)
        return self.invoke()[0, 0] / np.float32(self.layout.scale)


def open_runner(precision: str, content: bytes, layout: Layout, threads: int):
    """What runs a file of this format: a Runner or an OnnxRunner."""
    return (OnnxRunner if precision == "onnx" else Runner)(content, layout, threads)


# ------------------------------------------------------------------------------------------ parity


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


# ------------------------------------------------------------------------------------- report card


def newest_checkpoint(runs: Path) -> Path:
    """The newest of runs/student and runs/distilled: best.pt, or last.pt where there is no best."""
    found = []
    for run in ("student", "distilled"):
        files = [runs / run / name for name in ("best.pt", "last.pt")]
        found += [file for file in files if file.is_file()][:1]
    if not found:
        raise UserError(
            f"no checkpoint in {runs / 'student'} or {runs / 'distilled'}: "
            "python train.py first, or --checkpoint FILE"
        )
    return max(found, key=lambda file: file.stat().st_mtime)


def trained_on(checkpoint: Path) -> dict:
    """data, split, val_split, depth_scale, max_depth of the checkpoint's run, as far as its
    args.json says so; without "data" where the data is not there any more (embedded scenes always
    are: they are rendered again)."""
    try:
        run = json.loads(Path(checkpoint.parent / "args.json").read_bytes().decode())
        words = ("data", "split", "val_split")
        facts = {name: run[name] for name in words if isinstance(run.get(name), str)}
        for name in ("depth_scale", "max_depth"):
            # type, not isinstance: true is no number of metres. Within float32 and its inverse.
            if type(run.get(name)) in (int, float) and 1e-30 < run[name] < 1e30:
                facts[name] = float(run[name])
        name = facts["data"]
        if not (name.startswith("synthetic:") or Path(name).is_dir()):
            del facts["data"]
        return facts
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return {}


class Pictures:
    """Pictures of a data set, read as in training: `val`, what the files are examined on, with the
    truth; `training(n)`, for int8's ranges. (H, W, 3) uint8 and (H, W) metres."""

    def __init__(
        self, data_arg: str, split: str, train_split: str, size: tuple[int, int], limit: int | None,
        depth_scale: float,
    ) -> None:  # fmt: skip
        import evaluate  # here, so that the test pictures need neither the kernels nor a data set
        from plumbing import pairs as data

        self.data, self.evaluate, self.depth_scale = data, evaluate, depth_scale
        self.root, self.train_split, self.size = data.resolve(data_arg), train_split, size
        pairs = [] if limit == 0 else data.list_pairs(self.root, split)
        data.check_files(pairs)
        self.pairs = pairs if limit is None else evaluate.spread(pairs, limit)
        self.about = f"{data_arg} {split}" if pairs else None

    @property
    def val(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _, sample in self._read(self.pairs, "compare"):
            yield sample.rgb, sample.depth.astype(np.float32) / np.float32(self.depth_scale)

    def training(self, n: int) -> list[np.ndarray]:
        try:
            pairs = self.data.list_pairs(self.root, self.train_split)
        except self.data.DataError as error:
            raise UserError(f"ranges of int8: {error}") from error
        pairs = self.evaluate.spread(pairs, n)
        return [sample.rgb for _, sample in self._read(pairs, "ranges of int8")]

    def _read(self, pairs: list, name: str) -> Iterator:
        progress = name if sys.stderr.isatty() else None
        try:
            yield from self.evaluate.read_all(pairs, self.size, None, progress)
        except self.data.DataError as error:
            raise UserError(str(error)) from error


def examine(
    reference: Reference, runners: dict[str, Runner], cards: dict[str, Card],
    tests: list[np.ndarray], pictures: Pictures | None, max_depth: float,
) -> dict[str, float] | None:  # fmt: skip
    """Runs every file beside PyTorch over all pictures and fills in its card's tests, real and
    metrics. Returns PyTorch's own metrics; None without pictures."""
    expected = [reference(picture) for picture in tests]
    for name, runner in runners.items():
        cards[name].tests = compare(expected, map(runner, tests))
    if pictures is None or not pictures.pairs:
        return None
    metrics = pictures.evaluate.metrics
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("PyTorch", *runners)}
    for card in cards.values():
        card.real = Parity()
    for rgb, d in pictures.val:
        d_ref = reference(rgb)
        outputs = {"PyTorch": d_ref} | {name: runner(rgb) for name, runner in runners.items()}
        for name, d_hat in outputs.items():
            rows[name].append(metrics(resize_depth(d_hat, d.shape, "nearest"), d, max_depth))
            if name in cards:
                cards[name].real.add(d_ref, d_hat)
    for name, card in cards.items():
        card.metrics = mean(rows[name])
    return mean(rows["PyTorch"])


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each metric over the pictures that have it, as evaluate.py prints it, and "images"."""
    rows = [row for row in rows if math.isfinite(row["si_rmse"])]
    names = rows[0] if rows else ("si_rmse", "rmse")
    figures = {k: float(np.mean([row[k] for row in rows])) if rows else math.nan for k in names}
    return figures | {"images": len(rows)}


# ------------------------------------------------------------------------------------------- main


def tflite_name(text: str) -> Path:
    """An argparse type: a path that ends in .tflite (so that no checkpoint is overwritten)."""
    if Path(text).suffix != ".tflite":
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME.tflite")
    return Path(text)


def format_list(text: str) -> list[str]:
    """An argparse type: "fp32,int8" -> ["fp32", "int8"], each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no format; they are {', '.join(FORMATS)}"
        )
    return names


def output_size(text: str) -> tuple[int, int] | str:
    """An argparse type: "240x320" -> (240, 320); "native" stays."""
    return text if text == "native" else parse_size(text)


def file_of(out: Path, precision: str) -> Path:
    """model.tflite -> the file of a format: model.tflite, model.int8.tflite, model.onnx."""
    if precision == "onnx":
        return out.with_suffix(".onnx")
    return out if precision == "fp32" else out.with_suffix(f".{precision}.tflite")


def failed_name(path: Path) -> Path:
    return path.with_name(f"{path.stem}.failed{path.suffix}")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="export.py",
        description="Merge the normalisation (Eq. 3-6), fold BatchNorm, write a TFLite file per "
        "format, compare each with PyTorch and time it on this host.",
        epilog="exit code: 0 written, every format within its tolerance; 2 an error, in one line; "
        "3 a format broke its tolerance: it is named, its file written as NAME.failed.tflite (an "
        "older NAME.tflite stays as it was), and all others and report.json as usual",
    )
    add = parser.add_argument_group("files").add_argument
    add("--checkpoint", type=Path, metavar="FILE",
        help="trained student (default: the newer of runs/student/best.pt and "
        "runs/distilled/best.pt; last.pt where there is no best.pt)")  # fmt: skip
    add("--out", type=tflite_name, metavar="NAME.tflite",
        help="file to write; missing folders are made (default: model.tflite beside the "
        "checkpoint). The other formats are NAME.fp16.tflite, ..., and report.json lies "
        "beside them")  # fmt: skip
    add("--format", type=format_list, default=["fp32"], metavar="F,F,...", dest="formats",
        help="any of fp32, fp16 (half the size, same time), int8-dynamic (a third of the size; "
        "faster than fp32 where the CPU has int8 dot products, as a Raspberry Pi 5 and recent "
        "phones have, slower on a Pi 4), int8 (the same size, in integers but for the "
        "two resizes and the last convolution, for accelerators; wants --data), onnx (pip install "
        "onnx onnxruntime; NCHW, as its users expect). Default fp32")  # fmt: skip
    add = parser.add_argument_group("graph (Sec. 3.1, 4.5)").add_argument
    add("--input_size", "--image_size", type=parse_size, metavar="HxW", dest="input_size",
        help="size of the pictures the file takes; fixed in the file, so take the camera's. The "
        "network still works at its own --size (default: the checkpoint's own, that of its "
        "training pictures; 480x640, Sec. 4.1, where it does not say)")  # fmt: skip
    add("--output_size", type=output_size, metavar="HxW|native",
        help="size of the depth map; native is the network's own, 32x40 at 128x160, for those who "
        "enlarge it on the GPU or need no more (default: --input_size)")  # fmt: skip
    add("--upsample", choices=("nearest", "bilinear"),
        help="last resize: nearest as trained and published; bilinear is smooth, but invents "
        "depths between the two sides of an edge (default: the checkpoint's)")  # fmt: skip
    add("--input_type", choices=("float32", "uint8"), default="float32",
        help="uint8 takes the camera's bytes as they are and spares the application a "
        "conversion; colours are RGB in 0..255 either way (default float32)")  # fmt: skip
    add("--unit", choices=("m", "mm"), default="m",
        help="of the depths that come out; the challenge's files are millimetres "
        "(default m)")  # fmt: skip
    add("--normalization", choices=("weights", "shift", "graph"), default="weights",
        help="where Eq. 1 goes: weights = merged, Eq. 3-6; shift = only the scale is merged, the "
        "mean subtracted after the resize (as exact, as fast); graph = not merged, Table 3 "
        "without MIN (default weights)")  # fmt: skip
    add("--last_resize", choices=("fast", "plain"), default="fast",
        help="fast = along W, then whole rows along H; plain = TFLite's own operation, same "
        "values, several times slower. --normalization graph --last_resize plain is the "
        "straightforward conversion (default fast)")  # fmt: skip
    add("--calibration", type=Path, metavar="FILE",
        help="scale and shift of evaluate.py --calibrate, taken into the last "
        "convolution (default: none)")  # fmt: skip
    add = parser.add_argument_group("report card").add_argument
    add("--data", metavar="ROOT|synthetic:N",
        help="data set to compare on and to take int8's ranges from (default: the checkpoint's "
        "own, where its args.json names it and it is still there)")  # fmt: skip
    add("--split",
        help="which pictures of --data to compare on (default: the --val_split of the "
        "checkpoint's run on its own data; val otherwise)")  # fmt: skip
    add("--pictures", type=number(int, 0), metavar="N",
        help="compare on N of them, spread evenly; 0 = only on six test pictures, which are always "
        "compared (default: all)")  # fmt: skip
    add("--train_split", metavar="SPLIT",
        help="where int8's ranges come from (default: the --split of the checkpoint's run, or "
        "train)")  # fmt: skip
    add("--range_pictures", type=number(int, 1), default=100, metavar="N",
        help="how many pictures int8's ranges are taken from, spread evenly (default 100)")
    add("--depth_scale", type=number(float, 1e-9), metavar="S",
        help="units of the depth files per metre (default: the run's, or 1000)")
    add("--max_depth", type=number(float, 1e-9), metavar="M",
        help="metres at which a depth is cut before it is scored (default: the run's, or 40)")
    add("--tolerance", type=number(float, 0), default=1e-4, metavar="M",
        help="fp32 and onnx: largest absolute error allowed, in metres; times the largest depth "
        "where that exceeds 1 m (default 1e-4; float rounding gives about 1e-5)")  # fmt: skip
    add("--tolerance_fp16", type=number(float, 0), default=5e-3, metavar="M",
        help="the same for fp16 (default 5e-3: weights of 11 bits give about 1e-3)")
    add("--tolerance_int8", type=number(float, 0), default=0.05, metavar="R",
        help="int8 and int8-dynamic: largest mean absolute error allowed, over the mean depth, on "
        "--data (on the test pictures without it; default 0.05)")  # fmt: skip
    add("--tolerance_si_rmse", type=number(float, 0), default=0.02, metavar="R",
        help="and by how much their si-RMSE may exceed PyTorch's (default 0.02, that is 2 %%)")
    add("--threads", type=number(int, 0), default=min(4, usable_cores()), metavar="N",
        help="second thread count that is timed, after 1; more than the idle cores only slows it "
        "down; 0 = all usable cores (default: these, at most 4)")  # fmt: skip
    add("--runs", type=number(int, 1), default=50, metavar="N",
        help="timed invocations per thread count; more on a busy host (default 50)")  # fmt: skip
    add("--warmup", type=number(int, 0), default=10, metavar="N",
        help="invocations before timing starts (default 10)")  # fmt: skip
    add("--C", type=number(float, 1e-9), default=0.01,
        help="constant of Eq. 14's Score; its run time is this host's, 1 thread (default 0.01, as "
        "in Table 3)")  # fmt: skip
    add("--seed", type=number(int, 0), default=0, metavar="N",
        help="of the noise among the test pictures (default 0)")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    args = make_parser().parse_args(argv)
    try:
        return run(args)
    except (CheckpointError, UserError, OSError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2


def open_pictures(args: argparse.Namespace, run: dict, size: tuple[int, int]) -> Pictures | None:
    """The data set to compare on; None, with a notice, when nobody asked for one and it fails."""
    data_arg = args.data or run.get("data")
    if not data_arg or (args.pictures == 0 and "int8" not in args.formats):
        return None
    own = data_arg == run.get("data")
    split = args.split or (own and run.get("val_split")) or "val"
    train_split = args.train_split or (own and run.get("split")) or "train"
    try:
        return Pictures(
            data_arg, "val" if split == "none" else split, train_split, size, args.pictures,
            args.depth_scale or run.get("depth_scale") or 1000.0,
        )  # fmt: skip
    except (ImportError, OSError, ValueError) as error:
        if args.data or "int8" in args.formats:
            raise UserError(f"pictures of {data_arg}: {error}") from error
        print(f"notice: pictures of {data_arg}: {error}; only the test pictures are compared",
              file=sys.stderr)  # fmt: skip
        return None


def measure(
    args: argparse.Namespace, card: Card, layout: Layout, picture: np.ndarray,
    own: dict[str, float] | None, pictures: Pictures | None, limits: Limits,
) -> None:  # fmt: skip
    """Fills in a card's run times, Score and broken tolerances; own: PyTorch's metrics."""
    content = card.path.read_bytes()
    for threads in sorted({1, args.threads or usable_cores()}):
        runner = open_runner(card.format, content, layout, threads)
        runner(picture)
        for _ in range(args.warmup):
            runner.invoke()
        card.ms[threads] = run_times(runner.invoke, args.runs)
    scores = None
    if own:
        scores = card.metrics["si_rmse"], own["si_rmse"]
        card.score = pictures.evaluate.score(scores[0], card.ms[1]["p50"] / 1e3, args.C)
    card.broken = broken(card.format, limits, card.tests, card.real, scores)


def run(args: argparse.Namespace) -> int:
    """`main` without the handling of errors."""
    if "onnx" in args.formats:  # said before the other formats take their time
        onnx_package()
    checkpoint = args.checkpoint or newest_checkpoint(Path("runs"))
    stored = read_checkpoint(checkpoint)
    model = student(build(stored, checkpoint).eval())
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    calibration = read_calibration(args.calibration) if args.calibration else None
    if calibration:
        model = calibrate(model, calibration["scale"], calibration["shift_m"])
        if calibration.get("model_sha256", digest) != digest:
            raise UserError(
                f"{args.calibration} was fitted for another model file "
                f"({calibration.get('model')}): "
                f"python evaluate.py --model {checkpoint} --calibrate SPLIT"
            )
    size = args.input_size or tuple(stored.get("image_size") or (480, 640))
    native = tuple(side // 4 for side in model.size)
    layout = standard(
        model, size, input_type=args.input_type, unit=args.unit,
        output_size=native if args.output_size == "native" else args.output_size or size,
        upsample=args.upsample or model.mode, normalization=args.normalization,
        last_resize=args.last_resize,
    )  # fmt: skip
    out = args.out or checkpoint.with_name("model.tflite")
    out.parent.mkdir(parents=True, exist_ok=True)
    trained = trained_on(checkpoint)
    pictures = open_pictures(args, trained, size)
    about = metadata(model, layout, calibration, {
        "file": checkpoint.name, "sha256": digest, "epoch": stored.get("epoch"),
        "step": stored.get("step"),
    })  # fmt: skip
    tests = list(pattern_pictures(size, args.seed).values())
    limits = Limits(
        args.tolerance, args.tolerance_fp16, args.tolerance_int8, args.tolerance_si_rmse
    )
    cards: dict[str, Card] = {}
    try:
        # The final names are for files that passed: other scripts pick them up without asking.
        for precision in args.formats:
            say(f"{precision} ...")
            about_file = {"precision": precision} | about
            if precision == "onnx":
                content = to_onnx(model, layout, about_file)
            else:
                needs = precision == "int8" and pictures is not None
                ranges = pictures.training(args.range_pictures) if needs else []
                content = seal(convert(model, layout, precision, ranges), about_file)
            card = cards[precision] = Card(precision, failed_name(file_of(out, precision)))
            write_file(card.path, content)
            card.describe(card.path.read_bytes())
        runners = {
            name: open_runner(name, card.path.read_bytes(), layout, 1)
            for name, card in cards.items()
        }
        max_depth = args.max_depth or trained.get("max_depth") or 40.0
        own = examine(Reference(model, layout), runners, cards, tests, pictures, max_depth)
        for card in cards.values():
            say(f"timing {card.format} ...")
            measure(args, card, layout, tests[0], own, pictures, limits)
    except BaseException:
        for card in cards.values():
            card.path.unlink(missing_ok=True)
        raise
    for card in cards.values():
        if not card.broken:
            card.path = card.path.replace(file_of(out, card.format))
    report = {
        "checkpoint": str(checkpoint), "layout": asdict(layout), "metadata": about,
        "host": machine(Path("/")), "tolerance": asdict(limits),
        "timing": {"runs": args.runs, "warmup": args.warmup, "copies": False, "C": args.C},
        "compared": {"test_pictures": len(tests), "seed": args.seed,
                     "data": pictures and pictures.about,
                     "data_pictures": max(card.real.pictures if card.real else 0
                                          for card in cards.values())},
        "pytorch": own, "files": [asdict(card) for card in cards.values()],
    }  # fmt: skip
    # NaN, of a broken network, is no JSON: null
    text = json.dumps(report, default=str)
    text = json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1)
    write_file(out.with_name("report.json"), f"{text}\n".encode())
    print_report(report, list(cards.values()))
    for card in (c for c in cards.values() if c.broken):
        final = file_of(out, card.format)
        older = f"; {final} is still the older file" if final.exists() else ""
        print(f"export.py: {card.format} does NOT equal PyTorch within its tolerance: "
              f"{', '.join(card.broken)}; written as {card.path}{older}",
              file=sys.stderr)  # fmt: skip
    return 3 if any(card.broken for card in cards.values()) else 0


def student(model: nn.Module) -> LiteDepth:
    """The network itself. Raises UserError for a teacher."""
    if isinstance(model, LiteDepth):
        return model
    raise UserError(
        f"this is a teacher ({model.model_args['model']}), and only the student is exported: "
        "distil it into one with python distill.py --teacher FILE"
    )


def metadata(
    model: LiteDepth, layout: Layout, calibration: dict | None, checkpoint: dict
) -> dict:  # fmt: skip
    """What the file says of itself; predict.py reads and verifies it."""
    if calibration:
        names = ("scale", "shift_m", "split", "pairs")
        calibration = {name: calibration[name] for name in names if name in calibration}
    return {
        "input": {"size": list(layout.input_size), "dtype": layout.input_type, "layout": "NHWC",
                  "channels": "RGB", "range": [0, 255]},
        "output": {"size": list(layout.output_size), "dtype": "float32", "layout": "NHWC",
                   "unit": layout.unit},
        "mean": model.mean.tolist(), "std": model.std.tolist(), "network": model.model_args,
        "calibration": calibration, "git": git_state(), "checkpoint": checkpoint,
    }  # fmt: skip


def print_report(report: dict, cards: list[Card]) -> None:
    layout, compared, timing = report["layout"], report["compared"], report["timing"]
    about = report["metadata"]
    H, W = layout["input_size"]
    h, w = layout["output_size"]
    source = f"{compared['test_pictures']} test pictures"
    if compared["data"]:
        source += f", {compared['data_pictures']} of {compared['data']}"
    rows = [
        ("checkpoint", report["checkpoint"]),
        ("input", f"1x{H}x{W}x3 {layout['input_type']}, raw RGB 0..255"),
        ("output", f"1x{h}x{w}x1 float32, {'metres' if layout['unit'] == 'm' else 'millimetres'}, "
         f"{layout['upsample']}"),
        ("graph", f"normalization {layout['normalization']}, last resize {layout['last_resize']}"),
        ("calibration", "none" if not about["calibration"] else
         f"{about['calibration']['scale']:.4g} d {about['calibration']['shift_m']:+.4g} m, in both "
         "the file and PyTorch"),
        ("compared", f"with PyTorch on {source}; " + (
            "errors in metres, on the latter" if compared["data"] else
            "si-RMSE and errors on real pictures: --data ROOT")),
        ("timing", f"{timing['runs']} runs after {timing['warmup']} warm-up, without copies in and "
         f"out, on this host ({report['host']['cpu']}, {report['host']['cores']} cores)"),
    ]  # fmt: skip
    for card in cards:
        ops = ", ".join(f"{n} {name}" for name, n in card.operations.items())
        rows.append((card.format, f"{card.path}: {ops}"))
        if card.gpu not in (None, "yes"):
            cures = {
                "CAST": "--input_type float32",
                "GATHER": "--output_size native, or a height that is a multiple of the network's "
                f"{about['network']['size'][0] // 4} rows",
            }
            cure = "; ".join(flag for op, flag in cures.items() if op in card.gpu)
            rows.append(("", f"TFLite's GPU delegate refuses {card.gpu}: {cure}"))
    for name, text in rows:
        print(f"{name:<14}{text}")
    print("\n" + table(cards, report["pytorch"]))
    low, high = cards[0].tests.depth_min, cards[0].tests.depth_max
    if low == high:
        print(f"WARNING: the reference is {low:g} m everywhere: equal, but an untrained or dead "
              "network", file=sys.stderr)  # fmt: skip


def say(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"export.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
