"""Sec. 3.1 (Eq. 3-6) and Sec. 4.5: checkpoint -> the fastest TFLite graph, and its report card.

    raw RGB 1x480x640x3, float32 or uint8, 0..255 -> resize -> merged stem -> ... -> depth

`python export.py --format fp32,fp16,int8-dynamic,int8` rebuilds the network in plain tf.nn
operations, writes a file per format, reloads each and compares it with PyTorch, by absolute error
and by the metrics of Sec. 4.1. TensorFlow is imported here and nowhere else.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluate import Tally, score
from model import LiteDepth, build, calibrate, merge_normalization, upsample
from plumbing import onnx
from plumbing.calibration import read_calibration
from plumbing.checkpoints import read_checkpoint
from plumbing.device import machine
from plumbing.files import (
    UserError,
    git_state,
    progress,
    run_main,
    say,
    sha256,
    usable_cores,
    write_json,
)  # fmt: skip
from plumbing.flags import Parser, add, flag, parse_size, take
from plumbing.pictures import resize_depth
from plumbing.report import (
    DELEGATE,
    Card,
    Comparison,
    Limits,
    Timing,
    hushed,
    pattern_pictures,
    printed,
)  # fmt: skip
from plumbing.runtime import Predictor, interpreter, load_tflite, newest_model, seal, tell_shape

FORMATS = ("fp32", "fp16", "int8-dynamic", "int8", "onnx")
PER_METRE = {"m": 1, "mm": 1000}


def output_size(text: str) -> tuple[int, int] | str:
    """An argparse type: "240x320" -> (240, 320); "native" stays."""
    return text if text == "native" else parse_size(text)


@dataclass(frozen=True)
class Layout:
    """graph (Sec. 3.1, 4.5)

    What a file takes and gives; None: see `of`."""

    input_size: tuple[int, int] | None = flag(
        None, "size of the pictures the file takes; fixed in the file. Keep the training "
        "pictures' shape: another one is squeezed inside, and depth suffers. The "
        "network still works at its own --size (default: the checkpoint's own, that of its "
        "training pictures; 480x640, Sec. 4.1, where it does not say)", parse_size, metavar="HxW",
    )  # fmt: skip
    output_size: tuple[int, int] | str | None = flag(
        None, "size of the depth map; native is the network's own, 32x40 at 128x160, for those who "
        "enlarge it on the GPU or need no more. A height that is no multiple of native's keeps "
        "TFLite's GPU delegate from starting (default: --input_size)", output_size,
        metavar="HxW|native",
    )  # fmt: skip
    upsample: str | None = flag(
        None, "last resize: nearest as trained and published; bilinear is smooth, but invents "
        "depths between the two sides of an edge (default: the checkpoint's)",
        choices=["nearest", "bilinear"],
    )  # fmt: skip
    input_type: str = flag(
        "float32", "uint8 takes the camera's bytes as they are and spares the application a "
        "conversion; colours are RGB in 0..255 either way", choices=["float32", "uint8"],
    )  # fmt: skip
    unit: str = flag(
        "m", "of the depths that come out; the challenge's files are millimetres",
        choices=["m", "mm"],
    )  # fmt: skip
    normalization: str = flag(
        "weights", "where Eq. 1 goes: weights = merged, Eq. 3-6; graph = not merged, Table 3 "
        "without MIN", choices=["weights", "graph"],
    )  # fmt: skip
    last_resize: str = flag(
        "fast", "fast = along W, then whole rows along H; plain = TFLite's own operation, same "
        "values, several times slower. --normalization graph --last_resize plain is the "
        "straightforward conversion", choices=["fast", "plain"],
    )  # fmt: skip

    def of(self, model: LiteDepth, size: tuple[int, int] = (480, 640)) -> Layout:
        """With all sizes and the last resize filled in. size: of the checkpoint's pictures."""
        size = self.input_size or tuple(size)
        native = tuple(side // 4 for side in model.size)
        out = native if self.output_size == "native" else self.output_size or size
        mode = self.upsample or model.mode
        return replace(self, input_size=size, output_size=out, upsample=mode)


# -------------------------------------------------------------------------------- Sec. 3.1, folding


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d | None) -> tuple[np.ndarray, np.ndarray]:
    """W' = g W,  b' = beta + g (b - mu)  with  g = gamma / sqrt(var + eps), in double.

    bn: with the running statistics; None: nothing to fold. Returns W' (out, in/groups, k, k) and
    b' (out,) as float64.
    """
    W = _double(conv.weight)
    b = np.zeros(len(W)) if conv.bias is None else _double(conv.bias)
    if bn is None:
        return W, b
    g = _double(bn.weight) / np.sqrt(_double(bn.running_var) + bn.eps)
    return W * g.reshape(-1, 1, 1, 1), _double(bn.bias) + g * (b - _double(bn.running_mean))


def _double(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


# ------------------------------------------------------------------------------ Sec. 4.5, the graph


FLOAT = "kept_in_float"  # scope of the operations that --format int8 does not quantise


def _graph(tf, model: LiteDepth, layout: Layout, image):
    """`LiteDepth.forward` of a network in eval mode, operation by operation, NHWC."""
    decoder = model.decoder
    if layout.input_type == "uint8":
        image = tf.cast(image, tf.float32)
    x, taps = _stem(tf, model, layout.normalization, image), []
    for i, stage in enumerate(model.encoder.blocks):
        for block in stage:
            x = _block(tf, x, block)
        if i != 2:  # stages 2 and 3 share a resolution: only the later one is tapped
            taps.append(x)
    s1, s2, s3, s4 = taps
    x = tf.nn.relu(_layer(tf, s4, decoder.fuse4))
    for layer, skip in ((decoder.fuse3, s3), (decoder.fuse2, s2), (decoder.fuse1, s1)):
        x = tf.concat([_resize(tf, x, skip.shape[1:3], "corners"), skip], 3)
        x = tf.nn.relu(_layer(tf, x, layer))
    with tf.name_scope(FLOAT):
        return _enlarge(tf, decoder.depth, layout, x)


def _stem(tf, model: LiteDepth, normalization: str, image):
    """Picture (1, H, W, 3), raw -> the stem's output (1, h/2, w/2, 16) at network size (h, w).

    normalization, two places for Eq. 1, both exact to the border:
    "weights": Eq. 3-6, in the stem's weights and bias; the stem pads with the mean;
    "graph": the paper's network without MIN (Table 3): (I_r - m) / s on the whole picture.
    """
    stem, bn = model.encoder.conv_stem, model.encoder.bn1
    if normalization == "graph":
        m, s = _double(model.mean).astype(np.float32), _double(model.std).astype(np.float32)
        x = _resize(tf, (image - m) / s, model.size, "bilinear")
        return tf.nn.relu(_layer(tf, x, stem, bn))
    with tf.name_scope(FLOAT):
        x = _resize(tf, image, model.size, "bilinear")
    # SAME padding at stride 2 on even sizes (one column right, one row below), filled with the mean
    # m; why: see merge_normalization. Concatenated constants are exact for any m and stay in
    # XNNPACK's partition; PADV2 takes one scalar (wrong for unequal means) and cuts the graph.
    stem = merge_normalization(model).encoder.conv_stem
    fill, (h, w) = _double(stem.fill).astype(np.float32), model.size
    x = tf.concat([x, np.broadcast_to(fill, (1, h, 1, 3))], 2)
    x = tf.concat([x, np.broadcast_to(fill, (1, 1, w + 1, 3))], 1)
    return tf.nn.relu(_layer(tf, x, stem, bn, "VALID"))


def _block(tf, x, block: nn.Module):
    """DepthwiseSeparable (no `conv_pwl`, no skip) or InvertedResidual."""
    if not hasattr(block, "conv_pwl"):
        y = tf.nn.relu(_layer(tf, x, block.conv_dw, block.bn1))
        return _layer(tf, y, block.conv_pw, block.bn2)
    y = tf.nn.relu(_layer(tf, x, block.conv_pw, block.bn1))
    y = tf.nn.relu(_layer(tf, y, block.conv_dw, block.bn2))
    y = _layer(tf, y, block.conv_pwl, block.bn3)
    return x + y if block.skip else y


def _layer(tf, x, conv: nn.Conv2d, bn=None, padding: str = "SAME"):
    """A convolution of the network with BatchNorm folded in; (1, h, w, in) -> (1, h', w', out).

    ConvSame follows TensorFlow's SAME rule, and so does nn.Conv2d in the decoder, at stride 1.
    """
    W, b = fold_batchnorm(conv, bn)
    return _conv(tf, x, W, b, conv.stride[0], padding, depthwise=conv.groups > 1)


def _conv(tf, x, W: np.ndarray, b: np.ndarray, stride=1, padding="VALID", depthwise=False):
    """W (out, in/groups, k, k), b (out,)."""
    if depthwise:
        kernel = W.transpose(2, 3, 0, 1).astype(np.float32)  # (k, k, channels, 1)
        x = tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), padding)
    else:
        x = tf.nn.conv2d(x, W.transpose(2, 3, 1, 0).astype(np.float32), stride, padding)
    return tf.nn.bias_add(x, b.astype(np.float32))


def _resize(tf, x, size: tuple[int, int], mode: str):
    """`model.upsample` for (1, h, w, C) -> (1, *size, C); the same three modes."""
    (h, w), (H, W) = tuple(x.shape[1:3]), tuple(size)
    if (h, w) == (H, W):
        return x
    if mode != "nearest":
        corners = mode == "corners"
        return tf.raw_ops.ResizeBilinear(
            images=x, size=(H, W), align_corners=corners, half_pixel_centers=not corners
        )
    if H % h == 0 and W % w == 0:  # half-pixel centres: no float product is near a whole number
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=(H, W), half_pixel_centers=True)
    for axis, n, N in ((1, h, H), (2, w, W)):
        if n != N:
            x = tf.gather(x, (np.arange(N) * n // N).astype(np.int32), axis=axis)
    return x


def _enlarge(tf, depth: nn.Conv2d, layout: Layout, x):
    """The decoder's last convolution and the last resize: (1, h, w, C) -> (1, *output_size, 1).

    last_resize "plain": TFLite's own resize of one channel, which no vector unit helps.
    "fast", exact too: first along W as a matrix product (for a whole nearest ratio the last
    convolution just gives every pixel as many times as it is wide), then along H with the row of
    pixels as channels: a copy of whole rows.
    """
    W, b = fold_batchnorm(depth, None)
    (h, w), (H, width), mode = tuple(x.shape[1:3]), layout.output_size, layout.upsample
    plain = layout.last_resize == "plain" or (h, w) == (H, width)
    n = width // w if mode == "nearest" and width % w == 0 and not plain else 1
    x = tf.nn.relu(_conv(tf, x, np.repeat(W, n, 0), np.repeat(b, n)))
    if plain:
        return _resize(tf, x, (H, width), mode)
    x = tf.reshape(x, (1, h, 1, n * w))
    if n * w != width:
        # A row of w pixels times this (w, width) is `model.upsample`'s row of `width` pixels.
        matrix = upsample(torch.eye(w).view(w, 1, 1, w), (1, width), mode)[None, :, 0, 0].numpy()
        x = tf.nn.conv2d(x, matrix[None], 1, "VALID")
    if mode == "bilinear":
        x = _resize(tf, x, (H, 1), mode)
    elif H % h == 0:
        x = _copies(tf, x, H // h)
    else:  # outside XNNPACK, but a copy of whole rows, and the last operation
        return _resize(tf, tf.reshape(x, (1, h, width, 1)), (H, width), mode)
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


# ---------------------------------------------------------------------------- Sec. 4.5, the formats


def tensorflow():
    """TensorFlow, quiet and without the GPU (with one it lays the graph out differently)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with hushed():
            import tensorflow as tf
    except ImportError as error:
        raise UserError(f"export needs TensorFlow: pip install tensorflow ({error})") from error
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:  # TensorFlow already runs in this process: its devices are settled
        pass
    return tf


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
    tf, pictures = tensorflow(), list(pictures) if precision == "int8" else []
    if precision == "int8" and not pictures:
        raise UserError("int8 needs training pictures for its ranges: give --data ROOT")
    model = calibrate(model, PER_METRE[layout.unit], 0.0)
    source = tf.TensorSpec((1, *layout.input_size, 3), layout.input_type, name="image")

    @tf.function(input_signature=[source], autograph=False)
    def litedepth(image):
        return tf.identity(_graph(tf, model, layout, image), name="depth")

    concrete = [litedepth.get_concrete_function()]
    plain, quantised = (
        tf.lite.TFLiteConverter.from_concrete_functions(concrete, litedepth) for _ in range(2)
    )
    quantised.optimizations = [tf.lite.Optimize.DEFAULT]

    def ranges():
        return ([picture[None].astype(layout.input_type)] for picture in pictures)

    # The warnings are of TensorFlow's own interpreter, inside its own quantiser.
    with warnings.catch_warnings(), hushed():
        warnings.simplefilter("ignore")
        if precision == "fp16":
            quantised.target_spec.supported_types = [tf.float16]
            return bytes(quantised.convert())
        plain = plain.convert()
        if precision == "fp32":
            return bytes(plain)
        if precision == "int8-dynamic":
            return _float_depthwise(quantised.convert(), plain)
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
    lite = interpreter(content, "the float graph", 1)
    names = {t["index"]: t["name"] for t in lite.get_tensor_details()}
    ops = [op for op in lite._get_ops_details() if op["op_name"] != DELEGATE]
    outputs = [names[op["outputs"][0]] for op in ops]
    return [name for name in outputs if FLOAT in name or name == outputs[-1]]


def _float_depthwise(content: bytes, plain: bytes) -> bytes:
    """An int8-dynamic file with the depthwise kernels of the float file `plain` put back.

    XNNPACK has no such depthwise convolution: each one would cut the graph (8 partitions, twice
    the time), for 3 % of the weights. The converter offers no choice by operation here, but both
    files have the same operations in the same order.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    small, full = (
        flatbuffer_utils.convert_bytearray_to_object(bytearray(c)) for c in (content, plain)
    )
    graph, source = small.subgraphs[0], full.subgraphs[0]
    for a, b in zip(graph.operators, source.operators, strict=True):
        code = small.operatorCodes[a.opcodeIndex].builtinCode
        if code == schema.BuiltinOperator.DEPTHWISE_CONV_2D:
            kernel, original = graph.tensors[a.inputs[1]], source.tensors[b.inputs[1]]
            kernel.type, kernel.quantization = original.type, original.quantization
            small.buffers[kernel.buffer].data = full.buffers[original.buffer].data
    return bytes(flatbuffer_utils.convert_object_to_bytearray(small))


# ------------------------------------------------------------------------------- Sec. 4.1, parity


@torch.inference_mode()
def reference(model: LiteDepth, layout: Layout, picture: np.ndarray) -> np.ndarray:
    """PyTorch's depth, Eq. 1 and BatchNorm as trained: (H, W, 3) RGB u8 -> (h, w) metres."""
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    d_hat = model.network(upsample(image, model.size, "bilinear"))
    return upsample(d_hat, layout.output_size, layout.upsample)[0, 0].numpy()


def compare(
    cards: list[Card], files: dict[str, Callable], pictures: Iterable[tuple], max_depth: float
) -> dict[str, float] | None:
    """Runs every file beside PyTorch over all pictures: how far it is from that goes into its card,
    and its metrics too. Returns PyTorch's own; None where no truth is known.

    files: "PyTorch" and each card's format -> RGB u8 (H, W, 3) to metres (h, w). pictures: RGB and
    the truth, (H, W) metres, or None for a test picture.
    """
    tallies = {name: Tally(max_depth) for name in files}
    for rgb, d in pictures:
        outputs = {name: file(rgb) for name, file in files.items()}
        for card in cards:
            parity = card.tests if d is None else card.real
            parity.add(outputs["PyTorch"], outputs[card.format])
        for name, d_hat in outputs.items() if d is not None else ():
            tallies[name].add("", resize_depth(d_hat, d.shape, "nearest"), d)
    known = {name: len(tally.rows) > tally.empty for name, tally in tallies.items()}
    means = {name: tally.mean() if known[name] else None for name, tally in tallies.items()}
    for card in cards:
        card.metrics = means[card.format]
    return means["PyTorch"]


# ------------------------------------------------------------------------------------ the command


def tflite_name(text: str) -> Path:
    """An argparse type: a path that ends in .tflite (so that no checkpoint is overwritten)."""
    if Path(text).suffix != ".tflite":
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME.tflite")
    return Path(text)


def format_list(text: str) -> list[str]:
    """An argparse type: "fp32,int8" -> ["fp32", "int8"], each once."""
    names = list(dict.fromkeys(text.replace(" ", "").split(",")))
    if not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r}: the formats are {', '.join(FORMATS)}")
    return names


def file_name(out: Path, precision: str) -> str:
    """model.tflite -> the name of a format's file: model.tflite, model.int8.tflite, model.onnx."""
    if precision == "onnx":
        return f"{out.stem}.onnx"
    return out.name if precision == "fp32" else f"{out.stem}.{precision}.tflite"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="export.py",
        description="Merge the normalisation (Eq. 3-6), fold BatchNorm, write a TFLite file per "
        "format, compare each with PyTorch and time it on this host.",
        epilog="exit code: 0 written, every format within its tolerance; 2 an error, in one line; "
        "3 a format broke its tolerance: it is named, its file written as NAME.failed.tflite (an "
        "older NAME.tflite stays as it was), and all others and report.json as usual",
    )
    files = parser.add_argument_group("files").add_argument
    files("--checkpoint", type=Path, metavar="FILE",
        help="trained student (default: the newer of runs/student/best.pt and "
        "runs/distilled/best.pt; last.pt where there is no best.pt)")  # fmt: skip
    files("--out", type=tflite_name, metavar="NAME.tflite",
        help="file to write; missing folders are made (default: model.tflite beside the "
        "checkpoint). The other formats are NAME.fp16.tflite, ..., and report.json lies "
        "beside them")  # fmt: skip
    files("--format", type=format_list, default=["fp32"], metavar="F,F,...", dest="formats",
        help="any of fp32, fp16 (half the size, same time), int8-dynamic (a third of the size; "
        "faster than fp32 where the CPU has int8 dot products, as a Raspberry Pi 5 and recent "
        "phones have, slower on a Pi 4), int8 (the same size, in integers but for the "
        "two resizes and the last convolution, for accelerators; wants --data), onnx (pip install "
        "onnx onnxruntime onnxscript; NCHW, as its users expect). Default fp32")  # fmt: skip
    files("--calibration", type=Path, metavar="FILE",
        help="scale and shift of evaluate.py --calibrate or predict.py --measured, fitted on this "
        "checkpoint, taken into the last convolution (default: none)")  # fmt: skip
    for group in (Layout, Comparison, Limits, Timing):
        add(parser, group)
    return parser


def newest_student() -> Path:
    """best.pt of the newer of the two runs; last.pt where there is no best. Raises UserError."""
    try:
        return newest_model(("best.pt",))
    except UserError:
        return newest_model(("last.pt",))


def open_student(
    checkpoint: Path, calibration: Path | None
) -> tuple[LiteDepth, tuple[int, int], dict]:
    """-> the network, a calibration taken in; the size of its training pictures; and what the file
    is to say of where it is from. Raises UserError: a teacher, a calibration of another network."""
    stored = read_checkpoint(checkpoint)
    model, digest = build(stored, checkpoint).eval(), sha256(checkpoint)
    if not isinstance(model, LiteDepth):
        raise UserError(
            f"{checkpoint}: this is a teacher ({model.model_args['model']}), and only the student "
            "is exported: distil it into one with python distill.py --teacher FILE"
        )
    about = {
        "mean": model.mean.tolist(), "std": model.std.tolist(), "network": model.model_args,
        "calibration": None, "git": git_state(),
        "checkpoint": {"file": checkpoint.name, "sha256": digest}
        | {name: stored.get(name) for name in ("epoch", "step")},
    }  # fmt: skip
    if calibration:
        fitted = read_calibration(calibration, checkpoint)
        model = calibrate(model, fitted["scale"], fitted["shift_m"])
        names = ("scale", "shift_m", "split", "pairs")
        about["calibration"] = {name: fitted.get(name) for name in names}
    return model, stored.get("image_size") or (480, 640), about


def write(model: LiteDepth, layout: Layout, path: Path, about: dict, ranges: Iterable) -> Card:
    """One file, in the format that about["precision"] names, and what is in it; see `convert`."""
    if about["precision"] == "onnx":
        scaled = calibrate(model, PER_METRE[layout.unit], 0.0)
        scaled.mode = layout.upsample
        content = onnx.convert(scaled, about)
    else:
        content = seal(convert(model, layout, about["precision"], ranges), about)
    path.write_bytes(content)
    card = Card(about["precision"], path)
    card.describe(content)
    return card


def load(path: Path, threads: int) -> Predictor:
    """A written file, ready to predict."""
    with hushed():  # the runtime announces XNNPACK
        return (onnx.load if path.suffix == ".onnx" else load_tflite)(path, threads, "nearest")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    args = make_parser().parse_args(argv)
    if "onnx" in args.formats:  # said before the other formats take their time
        onnx.require()
    checkpoint = args.checkpoint or newest_student()
    model, size, about = open_student(checkpoint, args.calibration)
    layout, on = take(args, Layout).of(model, size), take(args, Comparison).of(checkpoint)
    limits, timing = take(args, Limits), take(args, Timing)
    tell_shape(checkpoint, layout.input_size, size)
    about |= {
        "input": {"size": layout.input_size, "dtype": layout.input_type, "layout": "NHWC",
                  "channels": "RGB", "range": [0, 255], "trained_on": size},
        "output": {"size": layout.output_size, "dtype": "float32", "layout": "NHWC",
                   "unit": layout.unit},
    }  # fmt: skip
    out = args.out or checkpoint.with_name("model.tflite")
    out.parent.mkdir(parents=True, exist_ok=True)
    # The final names are for files that passed: other scripts pick them up without asking.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export.") as folder:
        cards, files = [], {"PyTorch": functools.partial(reference, model, layout)}
        for name in progress(args.formats, len(args.formats), "export"):
            ranges = on.read(on.train_split, on.range_pictures, layout.input_size)
            path, told = Path(folder, file_name(out, name)), {"precision": name} | about
            card = write(model, layout, path, told, (rgb for rgb, _ in ranges))
            predictor = load(path, timing.threads or usable_cores())
            card.time(predictor, timing)
            cards.append(card)
            files[name] = predictor.native
        patterns = ((p, None) for p in pattern_pictures(layout.input_size))
        real = on.read(on.split, on.pictures, layout.input_size)
        pytorch = compare(cards, files, itertools.chain(patterns, real), on.max_depth)
        for card in cards:
            card.judge(limits, pytorch)
            if pytorch:
                card.score = score(card.metrics["si_rmse"], card.ms["p50"] / 1e3, timing.C)
            name = f"{card.path.stem}{'.failed' * bool(card.broken)}{card.path.suffix}"
            card.path = card.path.replace(out.with_name(name))
    report = {
        "checkpoint": checkpoint, "layout": asdict(layout), "metadata": about,
        "compared": asdict(on), "pytorch": pytorch, "files": [asdict(card) for card in cards],
        "tolerance": asdict(limits), "timing": asdict(timing), "host": machine(Path("/")),
    }  # fmt: skip
    write_json(out.with_name("report.json"), report)
    print(printed(report, cards))
    for card in cards:
        if card.broken:
            say(f"export.py: {card.format} does NOT equal PyTorch within its tolerance: "
                f"{', '.join(card.broken)}; written as {card.path}")  # fmt: skip
    return 3 if any(card.broken for card in cards) else 0


if __name__ == "__main__":
    sys.exit(run_main(main, "export.py"))
