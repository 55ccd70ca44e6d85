"""Sec. 3.1 (Eq. 3-6) and Sec. 4.5: the exported file equals PyTorch, to the last border pixel."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch

import export
import plumbing.report
import predict
from model import LiteDepth, Teacher, load, merge_normalization, save
from plumbing.files import UserError
from plumbing.report import (
    DELEGATE,
    Limits,
    Parity,
    broken,
    compare,
    gpu_compatible,
    hushed,
    interpreter,
    operations,
    tensorflow_quietly,
)
from plumbing.runtime import read_metadata

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
UNEQUAL = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 40.0)}


def random_bn(bn: torch.nn.BatchNorm2d) -> None:
    bn.running_mean.normal_(0, 0.3)
    bn.running_var.uniform_(0.5, 2.0)
    bn.weight.data.uniform_(0.6, 1.4)
    bn.bias.data.normal_(0, 0.3)


def random_network(**model_args) -> LiteDepth:
    """A network as if trained: no BatchNorm at its initial statistics, depth that varies."""
    torch.manual_seed(1)
    model = LiteDepth(**model_args).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            random_bn(module)
    return model


def to_tflite(model: LiteDepth, size: tuple[int, int], **changes) -> tuple[export.Layout, bytes]:
    layout = export.standard(model, size, **changes)
    return layout, export.convert(model, layout)


def parity(model: LiteDepth, layout: export.Layout, content: bytes) -> Parity:
    pictures = list(export.pattern_pictures(layout.input_size).values())
    outputs = map(export.Runner(content, layout, 1), pictures)
    return compare(map(whole_network(model, layout), pictures), outputs)


def whole_network(model: LiteDepth, layout: export.Layout):
    """`model.forward`, and nothing of export.py, on one picture; at another output size or with
    another last resize, torch's own operations."""

    @torch.inference_mode()
    def depth(picture: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        if (layout.output_size, layout.upsample) == (layout.input_size, model.mode):
            return model(image)[0, 0].numpy()
        small = torch.nn.functional.interpolate(image, size=model.size, mode="bilinear")
        d_hat = model.network(small)[0, 0]
        if layout.upsample == "bilinear":
            size = layout.output_size
            return torch.nn.functional.interpolate(d_hat[None, None], size=size, mode="bilinear")[
                0, 0
            ].numpy()
        (h, w), (H, W) = d_hat.shape, layout.output_size
        return np.array([[d_hat[v * h // H, u * w // W] for u in range(W)] for v in range(H)])

    return depth


def within(result: Parity, tolerance: float = TOLERANCE) -> bool:
    limits = Limits(tolerance, 0.0, 0.0, 0.0)
    return not broken("fp32", limits, result, None, None)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are ten times slower where other work fills the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def paper():
    """(network, layout, file) of the paper: 128x160 inside, 480x640 outside, mix, nearest."""
    model = random_network()
    return model, *to_tflite(model, (480, 640))


@pytest.fixture(scope="module")
def small():
    """The same for unequal means and a picture that is no multiple of the depth map."""
    model = random_network(size=(64, 96), **UNEQUAL)
    return model, *to_tflite(model, (120, 200))


@pytest.fixture
def checkpoint(tmp_path, small):
    save(tmp_path / "best.pt", small[0])
    return tmp_path / "best.pt"


# ---------------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("groups, bias", [(1, False), (1, True), (8, False)])
def test_fold_batchnorm_equals_eval_convolution(groups, bias):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 16, 3, groups=groups, bias=bias).double()
    bn = torch.nn.BatchNorm2d(16, eps=1e-3).double().eval()
    random_bn(bn)
    W, b = export.fold_batchnorm(
        conv.weight.detach().numpy(), conv.bias.detach().numpy() if bias else None, bn
    )
    assert W.dtype == b.dtype == np.float64
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    folded = torch.nn.functional.conv2d(x, torch.tensor(W), torch.tensor(b), groups=groups)
    assert (folded - bn(conv(x))).abs().max() < 1e-6


def check_parity(model, layout, content):
    result = parity(model, layout, content)
    assert result.depth_max - result.depth_min > 0.5  # a constant would prove nothing
    assert result.border <= result.max_abs and within(result)
    return result


def test_eq6_sec45_file_equals_pytorch(paper):
    check_parity(*paper)


def test_eq6_unequal_mean_and_std(small):
    check_parity(*small)


@pytest.mark.parametrize(
    "model_args, size",
    [
        ({"size": (64, 96), "upsample": "bilinear", **UNEQUAL}, (120, 200)),
        ({"size": (64, 96), "decoder": "3x3"}, (128, 192)),
        ({"size": (32, 64), "decoder": "1x1", **UNEQUAL}, (32, 64)),  # 1x2 at the deepest
    ],
    ids=["bilinear", "3x3", "1x1, no resize at the start"],
)
def test_table3_other_networks_equal_pytorch(model_args, size):
    model = random_network(**model_args)
    check_parity(model, *to_tflite(model, size))


def zero_fill(model: LiteDepth) -> LiteDepth:
    """Eq. 6 as printed: the merged stem pads raw zeros."""
    merged = merge_normalization(model)
    merged.encoder.conv_stem.fill.zero_()
    return merged


def test_eq6_zero_padding_is_seen(small, monkeypatch):
    model, layout, _ = small
    monkeypatch.setattr(export, "merge_normalization", zero_fill)
    result = parity(model, layout, export.convert(model, layout))
    assert not within(result) and result.border > 10 * TOLERANCE


@pytest.mark.parametrize("normalization", ["weights", "shift", "graph"])
@pytest.mark.parametrize("last_resize", ["fast", "plain"])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_sec31_every_graph_equals_pytorch(normalization, last_resize, upsample):
    """Unequal means show at the border; 120x192 is a whole multiple of the 16x24 map in W only."""
    model = random_network(size=(64, 96), upsample=upsample, **UNEQUAL)
    changes = {"normalization": normalization, "last_resize": last_resize}
    layout, content = to_tflite(model, (120, 192), **changes)
    check_parity(model, layout, content)
    assert ("SUB" in operations(content)[0]) == (normalization != "weights")


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize(
    "output_size", [(16, 24), (32, 48), (41, 53), (10, 7), (16, 96), (48, 24), (112, 24), (208, 48)]
)
def test_sec45_every_output_size(output_size, upsample):
    """The map's own size, whole ratios (7 and 13 too), others, smaller ones, one axis alone."""
    model = random_network(size=(64, 96))
    check_parity(model, *to_tflite(model, (70, 90), output_size=output_size, upsample=upsample))


def test_sec45_uint8_in_millimetres_out(small):
    model = small[0]
    layout, content = to_tflite(model, (120, 200), input_type="uint8", unit="mm")
    check_parity(model, layout, content)
    runner = export.Runner(content, layout, 1)
    assert runner.source["dtype"] == np.uint8 and runner.target["dtype"] == np.float32
    picture = export.pattern_pictures((120, 200))["gradient"]
    metres = whole_network(model, export.standard(model, (120, 200)))(picture)
    runner(picture)
    raw = runner.lite.get_tensor(runner.target["index"])[0, :, :, 0]
    np.testing.assert_allclose(raw, 1000 * metres, atol=0.1)  # millimetres


def test_resize_matrix_is_the_resize():
    row = np.random.default_rng(0).random((1, 1, 3, 40), np.float32)
    for mode in ("nearest", "bilinear"):
        for width in (640, 53, 7):
            expected = export.upsample(torch.from_numpy(row), (3, width), mode).numpy()
            np.testing.assert_allclose(row @ export.resize_matrix(40, width, mode), expected, 1e-6)


def test_sec45_input_output_and_graph(paper):
    model, layout, content = paper
    runner = export.Runner(content, layout, 1)
    assert tuple(runner.source["shape"]) == (1, 480, 640, 3)
    assert tuple(runner.target["shape"]) == (1, 480, 640, 1)
    assert runner.source["dtype"] == runner.target["dtype"] == np.float32
    ops, partitions, outside = operations(content)
    assert partitions == 1 and not outside
    assert ops == {  # no TRANSPOSE, no BatchNorm's MUL, no normalisation, no resize of one channel
        "CONV_2D": 27, "DEPTHWISE_CONV_2D": 11, "ADD": 6, "CONCATENATION": 7,
        "RESIZE_BILINEAR": 4, "RESHAPE": 2,
    }  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    assert len(content) < 4.1 * parameters  # fp32 once, and little else


def test_operations_tell_what_xnnpack_leaves_out(paper):
    model, *_ = paper
    _, plain = to_tflite(model, (480, 640), last_resize="plain")
    assert operations(plain)[1:] == (1, {"RESIZE_NEAREST_NEIGHBOR": 1})
    _, bytes_in = to_tflite(model, (480, 640), input_type="uint8")
    assert operations(bytes_in)[1:] == (1, {"CAST": 1})
    _, odd = to_tflite(model, (480, 640), output_size=(100, 100), last_resize="plain")
    assert operations(odd)[1:] == (1, {"GATHER": 2})
    assert gpu_compatible(odd) == "GATHER"  # once


def test_table2_gpu_compatibility(paper, monkeypatch):
    assert gpu_compatible(paper[2]) == "yes"
    tf = tensorflow_quietly()

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4, 1), tf.uint8)])
    def sums(x):
        rows = tf.reshape(tf.cast(x, tf.float32), (4, 4))
        return tf.raw_ops.SegmentSum(data=rows, segment_ids=[0, 0, 1, 1])

    function = [sums.get_concrete_function()]
    content = tf.lite.TFLiteConverter.from_concrete_functions(function, sums).convert()
    assert gpu_compatible(content) == "CAST from uint8; SEGMENT_SUM"
    told = "GPU COMPATIBILITY WARNING: Not supported op X"  # should the analyzer judge again
    monkeypatch.setattr(tf.lite.experimental.Analyzer, "analyze", lambda **_: print(told))
    assert gpu_compatible(paper[2]) == "Not supported op X"


def test_convert_rejects_other_padding(small):
    model = load_copy(small[0])
    model.decoder.fuse1.padding = (0, 0)
    with pytest.raises(UserError, match="padding"):
        to_tflite(model, (64, 96))


def load_copy(model: LiteDepth) -> LiteDepth:
    copy = LiteDepth(**model.model_args)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


# ---------------------------------------------------------------------------------------- formats


@pytest.fixture(scope="module")
def formats(paper):
    """Format -> file of the paper's graph; int8's ranges from the pictures it is then run on."""
    model, layout, plain = paper
    pictures = list(export.pattern_pictures(layout.input_size).values())
    names = ("fp16", "int8-dynamic", "int8")
    return {"fp32": plain} | {n: export.convert(model, layout, n, pictures) for n in names}


def tensor_types(content: bytes) -> dict[str, list[str]]:
    """Operation -> types of the second input (the weights) of each of its occurrences."""
    runner = interpreter(content, 1)
    types = {t["index"]: t["dtype"].__name__ for t in runner.get_tensor_details()}
    out: dict[str, list[str]] = {}
    for op in runner._get_ops_details():
        if len(op["inputs"]) > 1 and op["op_name"] != DELEGATE:
            out.setdefault(op["op_name"], []).append(types[int(op["inputs"][1])])
    return out


def test_formats_are_one_partition_and_small(formats):
    sizes = {name: len(content) for name, content in formats.items()}
    assert sizes["fp16"] < 0.53 * sizes["fp32"]
    assert max(sizes["int8"], sizes["int8-dynamic"]) < 0.37 * sizes["fp32"]
    for content in formats.values():
        assert operations(content)[1:] == (1, {})
        runner = interpreter(content, 1)
        assert runner.get_input_details()[0]["dtype"] == np.float32
        assert runner.get_output_details()[0]["dtype"] == np.float32


def test_formats_types_of_the_weights(formats):
    assert set(tensor_types(formats["fp32"])["CONV_2D"]) == {"float32"}
    dynamic = tensor_types(formats["int8-dynamic"])
    assert set(dynamic["DEPTHWISE_CONV_2D"]) == {"float32"}  # or XNNPACK would leave them out
    assert dynamic["CONV_2D"].count("int8") > 20
    full = tensor_types(formats["int8"])
    assert set(full["DEPTHWISE_CONV_2D"]) == {"int8"}
    assert full["CONV_2D"] == ["int8"] * 26 + ["float32"]  # the last one is the depth's
    assert full["CONCATENATION"].count("float32") == 2  # the last resize's


def test_formats_keep_to_pytorch(paper, formats):
    """The order of magnitude that 11 bits and 8 bits of weights allow, and no more."""
    model, layout, _ = paper
    errors = {name: parity(model, layout, content) for name, content in formats.items()}
    assert within(errors["fp32"])
    assert 1e-4 < errors["fp16"].max_abs < 5e-3 * errors["fp16"].depth_max
    for name in ("int8-dynamic", "int8"):
        # Random weights quantise worse than trained ones, which stay within the default of 0.05.
        assert errors["fp16"].mean_abs < errors[name].mean_abs < 0.25 * errors[name].depth_mean


def test_int8_scales_are_per_channel(formats):
    runner = interpreter(formats["int8"], 1)
    weights = [t for t in runner.get_tensor_details() if t["dtype"] == np.int8 and len(t["shape"])]
    scales = [len(t["quantization_parameters"]["scales"]) for t in weights]
    assert max(scales) == 576  # the widest depthwise convolution


def test_int8_uint8_millimetres_bilinear(small):
    """All of it at once: ranges come from bytes, the end stays in float."""
    model = small[0]
    changes = {"input_type": "uint8", "unit": "mm", "upsample": "bilinear"}
    layout = export.standard(model, (120, 200), **changes)
    pictures = list(export.pattern_pictures((120, 200)).values())
    content = export.convert(model, layout, "int8", pictures)
    ops, partitions, outside = operations(content)
    assert partitions == 1 and outside == {"CAST": 1} and ops["QUANTIZE"] == ops["DEQUANTIZE"] == 1
    result = parity(model, layout, content)
    assert result.mean_abs < 0.2 * result.depth_mean


@pytest.mark.parametrize("size, normalization", [((120, 200), "weights"), ((64, 96), "graph")])
def test_int8_native_size(small, size, normalization):
    """The last convolution is the graph's last operation then, and alone in float; with a resize
    before it in float, and without."""
    changes = {"normalization": normalization, "output_size": (16, 24)}
    layout = export.standard(small[0], size, **changes)
    pictures = list(export.pattern_pictures(size).values())
    content = export.convert(small[0], layout, "int8", pictures)
    assert tensor_types(content)["CONV_2D"] == ["int8"] * 26 + ["float32"]
    result = parity(small[0], layout, content)
    assert result.mean_abs < 0.2 * result.depth_mean


def test_int8_without_pictures(small):
    with pytest.raises(UserError, match="--data ROOT"):
        export.convert(small[0], small[1], "int8")


# ------------------------------------------------------------------------------------ comparison


def test_compare_is_maximum_absolute_not_signed_mean():
    reference = np.full((4, 6), 2.0, np.float32)
    output = reference.copy()
    output[1, 1] += 0.5
    output[2, 2] -= 0.5
    assert (output - reference).mean() == 0
    result = compare([reference, reference], [reference, output])
    assert not within(result) and result.pictures == 2 and result.pixels == 48
    assert result.max_abs == 0.5 and result.border == 0 and result.over_1cm == 2
    assert result.mean_abs == pytest.approx(1 / 48) and result.depth_mean == 2
    for place in ((0, 2), (3, 2), (1, 0), (1, 5)):  # each side
        output = reference.copy()
        output[place] += 0.25
        assert compare([reference], [output]).border == 0.25


def test_parity_weighs_pixels_of_unequal_pictures():
    parity = Parity()
    parity.add(np.ones((2, 2)), np.ones((2, 2)) + 0.5)
    parity.add(np.full((4, 4), 3.0), np.full((4, 4), 3.0))
    assert parity.mean_abs == pytest.approx(0.1) and parity.depth_mean == pytest.approx(2.6)
    assert (parity.depth_min, parity.depth_max) == (1, 3)


def test_compare_limit_nan_and_misuse():
    ones = np.ones((4, 6), np.float32)
    assert within(compare([0.5 * ones], [0.5 * ones + 0.9e-4]))
    assert not within(compare([0.5 * ones], [0.5 * ones + 1.5e-4]))
    assert within(compare([20 * ones], [20 * ones + 1.5e-3]))  # range 20 m
    for first in (np.nan * ones, ones):  # a NaN is not forgotten over the next picture
        result = compare([ones, ones], [first, np.nan * first])
        assert not within(result) and result.over_1cm >= 24
    with pytest.raises(ValueError, match="no pictures"):
        compare([], [])
    with pytest.raises(ValueError, match=r"\(6, 4\)"):
        compare([ones], [ones.T])
    with pytest.raises(ValueError):
        compare([ones, ones], [ones])


def off(by: float) -> Parity:
    ones = np.full((4, 6), 2.0)
    return compare([ones], [ones + by])


def test_broken_by_format():
    limits = Limits(fp32=1e-4, fp16=5e-3, int8=0.05, si_rmse=0.02)
    told = lambda name, *rest: broken(name, limits, *rest)  # noqa: E731
    assert told("fp32", off(1e-4), None, None) == told("fp16", off(9e-3), off(0), None) == []
    wrong = "max error 3.00e-04 m > 2.00e-04 m on the "
    assert told("fp32", off(0), off(3e-4), None) == [wrong + "data"]
    assert told("fp32", off(3e-4), off(0), None) == [wrong + "test pictures"]
    assert len(told("onnx", off(3e-4), off(3e-4), None)) == 2
    assert told("fp16", off(2e-2), None, None)
    # int8: real pictures count where there are any, the test pictures else
    assert told("int8", off(1.0), off(0.09), None) == [] != told("int8", off(1.0), None, None)
    assert "mean error 1.10e-01 m > 1.00e-01 m" in told("int8-dynamic", off(0), off(0.11), None)
    assert told("int8", off(0), off(0), (0.2039, 0.2)) == []
    assert told("int8", off(0), off(0), (0.2041, 0.2)) == ["si-RMSE 0.2041 > 1.02 x 0.2000"]
    assert told("int8", off(0), off(0), (float("nan"), 0.2))
    assert told("fp32", off(np.nan), None, None)
    assert told("int8", off(np.nan), None, None)
    endless = compare([np.full((4, 6), np.inf)], [np.ones((4, 6))])  # error inf <= inf
    assert told("fp32", endless, None, None) and told("int8", endless, None, None)


def test_mean_leaves_out_pictures_without_depth():
    full, empty = {"si_rmse": 0.2, "rmse": 1.0}, {"si_rmse": np.nan, "rmse": np.nan}
    assert export.mean([full, empty]) == full | {"images": 1}
    assert export.mean([empty])["images"] == 0 and np.isnan(export.mean([empty])["si_rmse"])


def test_pattern_pictures():
    pictures = export.pattern_pictures((40, 50), seed=3)
    assert {"noise", "gradient", "black", "white", "frame", "checker"} == set(pictures)
    assert all(p.shape == (40, 50, 3) and p.dtype == np.uint8 for p in pictures.values())
    assert np.array_equal(pictures["noise"], export.pattern_pictures((40, 50), seed=3)["noise"])


# ---------------------------------------------------------------------------------- the command


QUICK = ["--input_size", "120x200", "--runs", "2", "--warmup", "0", "--threads", "1"]


def test_command_writes_and_reports(checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "x.tflite"
    command = ["--checkpoint", str(checkpoint), "--out", str(out), *QUICK, "--threads", "2"]
    assert export.main(command) == 0
    assert sorted(f.name for f in out.parent.iterdir()) == ["report.json", "x.tflite"]
    printed = capsys.readouterr().out
    for text in ("best.pt", "x.tflite", "ms, 1 thread", "ms, 2 threads", "kept", "metres"):
        assert text in printed
    content = out.read_bytes()
    check_parity(load(checkpoint), export.standard(load(checkpoint), (120, 200)), content)
    about = read_metadata(content, "x")
    assert about["precision"] == "fp32" and about["output"]["unit"] == "m"
    assert about["mean"] == pytest.approx(UNEQUAL["mean"])
    assert about["std"] == pytest.approx(UNEQUAL["std"])
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert about["checkpoint"] == {
        "file": "best.pt", "sha256": digest, "epoch": None, "step": None,
    }  # fmt: skip
    report = json.loads((out.parent / "report.json").read_text())
    [card] = report["files"]
    assert card["format"] == "fp32" and card["path"] == str(out) and card["broken"] == []
    assert set(card["ms"]) == {"1", "2"} and card["ms"]["1"]["p50"] > 0
    assert card["partitions"] == 1 and sum(card["operations"].values()) == 57
    # 120 rows are no multiple of 16
    assert card["outside_xnnpack"] == {"GATHER": 1} and card["gpu"] == "GATHER"
    assert card["megabytes"] == pytest.approx(len(content) / 1e6)
    assert 0 < card["tests"]["max_abs"] < 1e-4 and card["real"] is report["pytorch"] is None
    assert report["tolerance"] == {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.05, "si_rmse": 0.02}
    assert report["host"]["cpu"] in printed


def test_command_every_format_on_real_pictures(checkpoint, tmp_path, capsys):
    """All files, judged on the validation split with its own metrics; predict.py takes each."""
    random = np.random.default_rng(0)
    for split, n in (("train", 3), ("val", 2)):
        names = []
        for i in range(n):
            picture = cv2.resize(random.integers(0, 256, (6, 10, 3), np.uint8), (200, 120))
            cv2.imwrite(str(tmp_path / f"{split}{i}.png"), picture)
            depth = np.full((120, 200), 2000 + 500 * i, np.uint16)
            depth[:, 100:] = 0  # holes
            cv2.imwrite(str(tmp_path / f"{split}{i}_depth.png"), depth)
            names.append(f"{split}{i}.png {split}{i}_depth.png\n")
        (tmp_path / f"{split}.txt").write_text("".join(names))
    out = tmp_path / "x.tflite"
    formats = ["--format", "fp32,fp16,int8-dynamic,int8", "--input_type", "uint8", "--unit", "mm"]
    command = ["--checkpoint", str(checkpoint), "--out", str(out), "--data", str(tmp_path)]
    # for random weights
    loose = ["--tolerance_fp16", "0.05", "--tolerance_int8", "0.5", "--tolerance_si_rmse", "1"]
    assert export.main([*command, *QUICK, *formats, *loose, "--C", "0.5"]) == 0
    files = {"fp32": out} | {
        name: tmp_path / f"x.{name}.tflite" for name in ("fp16", "int8-dynamic", "int8")
    }
    printed = capsys.readouterr()
    assert "6 test pictures, 2 of" in printed.out and "1 + 1 CAST, 1 GATHER" in printed.out
    assert "%|" not in printed.err  # no bars where nobody looks
    report = json.loads((tmp_path / "report.json").read_text())
    assert [card["path"] for card in report["files"]] == [str(f) for f in files.values()]
    network = load(checkpoint)
    rgb = cv2.cvtColor(cv2.imread(str(tmp_path / "val1.png")), cv2.COLOR_BGR2RGB)
    expected = whole_network(network, export.standard(network, (120, 200)))(rgb)
    truth = cv2.imread(str(tmp_path / "val1_depth.png"), cv2.IMREAD_UNCHANGED) / 1000
    for card, path in zip(report["files"], files.values()):
        depth = predict.load_predictor(path)(rgb)  # metres, whatever the file's unit
        assert np.abs(depth - expected).mean() < 0.5 * expected.mean()
        assert card["real"]["pictures"] == 2 and card["metrics"]["images"] == 2
        assert card["score"] == pytest.approx(
            2 ** (-20 * card["metrics"]["si_rmse"]) / (0.5 * card["ms"]["1"]["p50"] / 1000)
        )
    fp32 = report["files"][0]
    assert fp32["metrics"]["si_rmse"] == pytest.approx(report["pytorch"]["si_rmse"], abs=1e-5)
    ratio = np.log(np.maximum(expected, 1e-3) / np.where(truth > 0, truth, 1))[truth > 0]
    names = ["--pictures", "1", "--split", "val"]
    (tmp_path / "val.txt").write_text("val1.png val1_depth.png\n")
    assert export.main([*command, *QUICK, *names]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pytorch"]["si_rmse"] == pytest.approx(ratio.std(), rel=1e-5)
    (tmp_path / "val.txt").unlink()  # int8's ranges need no split to compare on
    capsys.readouterr()
    assert export.main([*command, *QUICK, *loose, "--format", "int8", "--pictures", "0"]) == 0
    assert "6 test pictures; si-RMSE and errors on real" in capsys.readouterr().out


def test_command_exit_3_when_not_equal(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(export, "merge_normalization", zero_fill)
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 3
    printed = capsys.readouterr()
    assert "BROKEN" in printed.out and "fp32 does NOT equal" in printed.err
    failed, final = (checkpoint.with_name(n) for n in ("model.failed.tflite", "model.tflite"))
    assert str(failed) in printed.out and str(failed) in printed.err and "older" not in printed.err
    assert failed.is_file() and not final.exists()  # predict.py would pick that name up
    [card] = json.loads(checkpoint.with_name("report.json").read_text())["files"]
    assert card["path"] == str(failed) and "max error" in card["broken"][0]
    final.write_bytes(b"an older export")
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 3
    assert f"{final} is still the older file" in capsys.readouterr().err
    assert final.read_bytes() == b"an older export"
    monkeypatch.undo()
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 0
    assert final.stat().st_size > 1e6 and not failed.exists()


def test_command_one_broken_format_of_two(checkpoint, capsys):
    command = ["--checkpoint", str(checkpoint), "--format", "fp32,fp16", "--tolerance_fp16", "1e-9"]
    assert export.main([*command, *QUICK]) == 3
    printed = capsys.readouterr()
    assert "fp16 does NOT equal" in printed.err and "fp32" not in printed.err
    assert printed.out.count("kept") == printed.out.count("BROKEN") == 1
    names = {f.name for f in checkpoint.parent.glob("model*")}
    assert names == {"model.tflite", "model.fp16.failed.tflite"}


def test_command_native_size_and_bilinear(checkpoint, tmp_path):
    command = ["--checkpoint", str(checkpoint), *QUICK]
    assert export.main([*command, "--output_size", "native"]) == 0
    about = read_metadata((tmp_path / "model.tflite").read_bytes(), "x")
    assert about["output"]["size"] == [16, 24] and about["input"]["size"] == [120, 200]
    assert export.main([*command, "--output_size", "60x100", "--upsample", "bilinear"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["layout"]["output_size"] == [60, 100]
    assert report["layout"]["upsample"] == "bilinear"


def test_command_flags_of_the_graph(tmp_path, monkeypatch):
    """They reach the file, and so do the checkpoint's own last resize and its place in training."""
    network = random_network(size=(64, 96), upsample="bilinear")
    save(tmp_path / "best.pt", network, epoch=4, step=9)
    seeds, pictures = [], export.pattern_pictures
    monkeypatch.setattr(export, "pattern_pictures", lambda *a: seeds.append(a[1]) or pictures(*a))
    flags = ["--normalization", "shift", "--last_resize", "plain", "--seed", "5"]
    assert export.main(["--checkpoint", str(tmp_path / "best.pt"), *QUICK, *flags]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["layout"]["upsample"] == "bilinear"
    operations = report["files"][0]["operations"]
    assert operations["SUB"] == 1 and operations["RESIZE_BILINEAR"] == 5
    assert operations["CONV_2D"] == 27  # "fast" resizes along W with one more
    about = read_metadata((tmp_path / "model.tflite").read_bytes(), "x")["checkpoint"]
    assert (about["epoch"], about["step"]) == (4, 9)
    assert report["compared"]["seed"] == 5 and seeds == [5]


def test_command_stopped_before_parity_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plumbing.report, "compare", stop)
    with pytest.raises(KeyboardInterrupt):
        export.main(["--checkpoint", str(checkpoint), *QUICK])
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


def test_command_takes_the_checkpoints_image_size(small, tmp_path, monkeypatch, capsys):
    layouts = []

    def stop(_, layout, *__):
        layouts.append(layout)
        raise UserError("enough")

    monkeypatch.setattr(export, "convert", stop)
    command = ["--checkpoint", str(tmp_path / "best.pt"), *QUICK[2:]]
    for stored, flags, size in (
        ({"image_size": [120, 200]}, [], (120, 200)),
        ({}, [], (480, 640)),  # an older file
        ({"image_size": [120, 200]}, ["--image_size", "60x80"], (60, 80)),  # evaluate.py's name
    ):
        save(tmp_path / "best.pt", small[0], **stored)
        assert export.main([*command, *flags]) == 2 and one_line(capsys)
        assert layouts[-1].input_size == layouts[-1].output_size == size


def test_command_unreadable_pictures(checkpoint, tmp_path, capsys):
    names = []
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((60, 100, 3), (30, 20, 10 + i), np.uint8))
        cv2.imwrite(str(tmp_path / f"{i}_depth.png"), np.full((60, 100), 2000, np.uint16))
        names.append(f"{i}.png {i}_depth.png\n")
    (tmp_path / "val.txt").write_text("".join(names))
    pictures = export.Pictures(str(tmp_path), "val", "val", (120, 200), 3, 500.0)
    assert [p[0, 0, 0] for p in pictures.training(2)] == [10, 14]
    rgbs, depths = zip(*pictures.val)
    assert [tuple(p[0, 0]) for p in rgbs] == [(10, 20, 30), (12, 20, 30), (14, 20, 30)]  # RGB
    assert rgbs[0].shape == (120, 200, 3) and rgbs[0].dtype == np.uint8
    assert depths[0].shape == (120, 200) and (depths[0] == 4).all()  # 500 units per metre
    (tmp_path / "args.json").write_text(f'{{"data": "{tmp_path}"}}')  # the run names its data
    assert export.main(["--checkpoint", str(checkpoint), "--pictures", "2", *QUICK]) == 0
    assert "6 test pictures, 2 of" in capsys.readouterr().out
    assert export.main(["--checkpoint", str(checkpoint), "--pictures", "0", *QUICK]) == 0
    assert "6 test pictures; si-RMSE and errors on real pictures: --data" in capsys.readouterr().out
    (tmp_path / "4.png").write_bytes(b"no picture")
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 0  # nobody asked for these
    told = one_line(capsys)
    assert "4.png" in told and "only the test pictures are compared" in told
    assert export.main(["--checkpoint", str(checkpoint), "--data", str(tmp_path), *QUICK]) == 2
    assert "4.png" in one_line(capsys)
    assert export.main(["--checkpoint", str(checkpoint), "--data", "absent", *QUICK]) == 2
    assert "absent" in one_line(capsys)
    (tmp_path / "args.json").unlink()
    assert export.main(["--checkpoint", str(checkpoint), "--format", "int8", *QUICK]) == 2
    assert "--data ROOT" in one_line(capsys)


def test_command_splits(checkpoint, tmp_path, monkeypatch, capsys):
    """The run's splits and scale on the run's own data; a run without one is no reason to stop."""
    asked, cuts, examine = [], [], export.examine

    def pictures(*given):
        asked.append(given)
        raise ValueError(f"no split {given[1]!r}")

    monkeypatch.setattr(export, "Pictures", pictures)
    monkeypatch.setattr(export, "examine", lambda *a: cuts.append(a[-1]) or examine(*a))
    own, command = str(tmp_path), ["--checkpoint", str(checkpoint), *QUICK]
    for val_split, flags, expected, code in (
        ("held", [], (own, "held", "fit"), 0),
        ("none", [], (own, "val", "fit"), 0),
        ("held", ["--split", "train", "--train_split", "a"], (own, "train", "a"), 0),
        ("held", ["--data", own], (own, "held", "fit"), 2),
        ("held", ["--data", "other"], ("other", "val", "train"), 2),
    ):
        run = {"data": own, "val_split": val_split, "split": "fit", "depth_scale": 500.0}
        (tmp_path / "args.json").write_text(json.dumps(run | {"max_depth": 7.5}))
        assert export.main([*command, *flags]) == code
        assert asked[-1] == (*expected, (120, 200), None, 500.0)
        assert repr(expected[1]) in one_line(capsys)
    assert export.main([*command, "--depth_scale", "250", "--max_depth", "3"]) == 0
    assert asked[-1][-1] == 250
    (tmp_path / "args.json").unlink()
    assert export.main(command) == 0
    assert cuts == [7.5, 7.5, 7.5, 3, 40]


def test_interpreter_takes_the_threads(monkeypatch):
    from ai_edge_litert import interpreter

    made = MagicMock()
    monkeypatch.setattr(interpreter, "Interpreter", made)
    assert plumbing.report.interpreter(b"file", 3) is made.return_value
    made.assert_called_once_with(model_content=b"file", num_threads=3)


def test_command_times_as_told(checkpoint, monkeypatch):
    """A first run and the warm-up before the timed ones, each thread count in its own runner."""
    opened, open_runner = [], export.open_runner

    def counting(*given):
        runner = open_runner(*given)
        invoke, line = runner.invoke, {"threads": given[-1], "runs": 0}
        opened.append(line)

        def counted():
            line["runs"] += 1
            invoke()

        runner.invoke = counted
        return runner

    monkeypatch.setattr(export, "open_runner", counting)
    flags = ["--warmup", "3", "--runs", "7", "--threads", "2"]
    assert export.main(["--checkpoint", str(checkpoint), *QUICK, *flags]) == 0
    assert opened[1:] == [{"threads": n, "runs": 1 + 3 + 7} for n in (1, 2)]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"data": 3}', '{"seed": 0}', '{"data": "absent"}', '{"data": "\\u0000"}']
)
def test_trained_on_is_optional(tmp_path, text):
    assert export.trained_on(tmp_path / "best.pt") == {}
    (tmp_path / "args.json").write_text(text)
    assert export.trained_on(tmp_path / "best.pt") == {}


def test_trained_on_takes_sound_facts_only(tmp_path):
    sound = {"data": str(tmp_path), "split": "a", "val_split": "b"}
    sound |= {"depth_scale": 500, "max_depth": 9.5}
    strange = {"data": str(tmp_path), "split": 7, "val_split": ["b"]}
    strange |= {"depth_scale": "abc", "max_depth": float("nan")}
    for run, facts in ((sound, sound), (strange, {"data": str(tmp_path)})):
        (tmp_path / "args.json").write_text(json.dumps(run))
        assert export.trained_on(tmp_path / "best.pt") == facts


def test_command_nan_network(tmp_path, capsys):
    """Every file of it is broken and kept under its other name; the report is JSON all the same."""
    network = random_network(size=(64, 96))
    network.decoder.depth.weight.data[0, 0] = float("nan")
    save(tmp_path / "best.pt", network)
    assert export.main(["--checkpoint", str(tmp_path / "best.pt"), *QUICK]) == 3
    printed = capsys.readouterr()
    assert "max error nan m" in printed.err and printed.err.count("\n") == 1
    assert "| nan " in printed.out  # not the "-" of what was not measured
    report = (tmp_path / "report.json").read_text()
    [card] = json.loads(report, parse_constant=lambda name: pytest.fail(name))["files"]
    assert card["tests"]["max_abs"] is None and card["broken"]


def test_command_dead_network(tmp_path, capsys):
    network = LiteDepth(size=(64, 96))
    network.decoder.depth.weight.data.zero_()
    network.decoder.depth.bias.data.zero_()
    save(tmp_path / "best.pt", network)
    assert export.main(["--checkpoint", str(tmp_path / "best.pt"), *QUICK]) == 0
    assert "WARNING: the reference is 0 m everywhere" in one_line(capsys)


def test_command_teacher(tmp_path, capsys):
    save(tmp_path / "best.pt", Teacher("swin_nano"))
    assert export.main(["--checkpoint", str(tmp_path / "best.pt")]) == 2
    assert "python distill.py --teacher FILE" in one_line(capsys)


def test_in_a_pipe_nothing_but_errors(checkpoint):
    """TensorFlow's and LiteRT's C++ talk past Python's sys.stderr."""
    command = [sys.executable, ROOT / "export.py", "--checkpoint", checkpoint, *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "" and "kept" in done.stdout


def test_hushed_shows_what_led_to_an_exception(capfd):
    with hushed():
        os.write(2, b"chatter\n")
    with pytest.raises(ValueError), hushed():
        os.write(2, b"cause\n")
        raise ValueError
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "cause\nafter\n"


def test_command_calibration(checkpoint, tmp_path, capsys):
    """Scale and shift are in the file and in PyTorch's column alike, and in the metadata."""
    path = tmp_path / "calibration.json"
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    content = {
        "format": "litedepth-calibration-1", "scale": 1.5, "shift_m": 0.25, "split": "calib",
        "pairs": 7, "data": "/somewhere/private", "model": "best.pt", "model_sha256": digest,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    command = ["--checkpoint", str(checkpoint), *QUICK, "--calibration", str(path)]
    assert export.main(command) == 0
    printed = capsys.readouterr()
    assert "1.5 d +0.25 m" in printed.out and not printed.err
    network, content_of = load(checkpoint), (tmp_path / "model.tflite").read_bytes()
    layout = export.standard(network, (120, 200))
    picture = export.pattern_pictures((120, 200))["gradient"]
    before, after = whole_network(network, layout)(picture), export.Runner(content_of, layout, 1)
    seen = before > 0.01
    assert seen.mean() > 0.5
    np.testing.assert_allclose(after(picture)[seen], 1.5 * before[seen] + 0.25, atol=TOLERANCE)
    about = read_metadata(content_of, "x")["calibration"]
    assert about == {"scale": 1.5, "shift_m": 0.25, "split": "calib", "pairs": 7}
    path.write_text(json.dumps(content | {"model_sha256": "0" * 64}))
    assert export.main(command) == 2  # a network trained anew, or a .tflite
    assert "another model file" in one_line(capsys)
    del content["model_sha256"]  # one made by hand
    path.write_text(json.dumps(content))
    assert export.main(command) == 0
    path.write_text("{}")
    assert export.main(command) == 2
    assert "evaluate.py --calibrate" in one_line(capsys)


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_command_exit_2_without_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export.main([]) == 2
    assert "python train.py first, or --checkpoint FILE" in one_line(capsys)
    assert export.main(["--checkpoint", "absent.pt"]) == 2
    assert "absent.pt" in one_line(capsys)
    Path("bad.pt").write_bytes(b"PK no archive")
    assert export.main(["--checkpoint", "bad.pt"]) == 2
    assert "bad.pt" in one_line(capsys)
    assert [f.name for f in tmp_path.iterdir()] == ["bad.pt"]


def test_command_exit_2_for_unwritable_output(checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder.tflite").mkdir()
    for out in (tmp_path / "file" / "x.tflite", tmp_path / "folder.tflite"):
        assert export.main(["--checkpoint", str(checkpoint), "--out", str(out), *QUICK]) == 2
        assert str(out.parent if "x" in out.stem else out) in one_line(capsys)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--input_size", "480"], ["--input_size", "0x640"], ["--out", "best.pt"], ["--runs", "0"],
        ["--threads", "x"], ["--tolerance", "nan"], ["--pictures", "-1"], ["--unknown"],
        ["--format", "fp64"], ["--output_size", "big"], ["--unit", "cm"], ["--depth_scale", "0"],
        ["--out", ".tflite"],
    ],
)  # fmt: skip
def test_command_exit_2_for_bad_flags(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        export.main(flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_missing_packages_and_memory_are_named(monkeypatch, checkpoint, capsys):
    from ai_edge_litert.interpreter import Interpreter

    def no_memory(_):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Interpreter, "allocate_tensors", no_memory)
        assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 2
        assert "--output_size too large?" in one_line(capsys)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match="pip install ai-edge-litert"):
        interpreter(b"", 1)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 2
    assert "pip install tensorflow" in one_line(capsys)


def test_newest_checkpoint(tmp_path):
    for i, name in enumerate(("student/last.pt", "student/best.pt", "distilled/last.pt")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1000 - i, 1000 - i))
    assert export.newest_checkpoint(tmp_path) == tmp_path / "student/best.pt"
    os.utime(tmp_path / "distilled/last.pt", (2000, 2000))
    assert export.newest_checkpoint(tmp_path) == tmp_path / "distilled/last.pt"


# ------------------------------------------------------------------------------------- TensorFlow


def test_import_export_leaves_tensorflow_alone():
    code = "import sys, export; assert not {'tensorflow', 'ai_edge_litert'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_only_export_imports_tensorflow():
    users = set()
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("tensorflow", "keras") for name in names):
                users.add(path.name)
    assert users == {"export.py"}
