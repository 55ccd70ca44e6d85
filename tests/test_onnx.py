"""The ONNX file equals PyTorch in onnxruntime; needs the onnx and onnxruntime packages."""

import json
import sys

import numpy as np
import pytest
import test_export
import torch
from test_export import TOLERANCE, UNEQUAL, random_network

import export
from model import LiteDepth, save
from plumbing.files import UserError
from plumbing.report import Parity, compare

one_thread = test_export.one_thread  # fixture


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


CASES = [
    ({}, (480, 640)),
    ({"size": (64, 96), **UNEQUAL}, (120, 200)),  # no whole ratio
    ({"size": (64, 96), "upsample": "bilinear", **UNEQUAL}, (120, 200)),
    ({"size": (64, 96), "decoder": "3x3"}, (123, 201)),
    ({"size": (32, 64), "decoder": "1x1", **UNEQUAL}, (32, 64)),  # no resize at the start
]


def parity(network: LiteDepth, layout: export.Layout) -> Parity:
    """Against `network.forward`, nothing of export.py."""

    @torch.inference_mode()
    def expected(picture: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(picture).permute(2, 0, 1)[None].float())[0, 0].numpy()

    pictures = list(export.pattern_pictures(layout.input_size).values())
    runner = export.OnnxRunner(export.to_onnx(network, layout), layout, 1)
    return compare(map(expected, pictures), map(runner, pictures))


@pytest.mark.parametrize("model_args, size", CASES)
def test_file_equals_pytorch(onnx, model_args, size):
    network = random_network(**model_args)
    layout = export.standard(network, size)
    result = parity(network, layout)
    assert result.depth_max - result.depth_min > 0.5  # a constant would prove nothing
    assert result.max_abs <= TOLERANCE
    if size == network.size:  # without the input's resize, the rest is at float rounding
        assert result.max_abs <= 1e-5
    assert export.to_onnx(network, layout) == export.to_onnx(network, layout)


def test_bytes_in_millimetres_out(onnx):
    network = random_network(size=(64, 96), **UNEQUAL)
    layout = export.standard(network, (120, 200), input_type="uint8", unit="mm")
    assert parity(network, layout).max_abs <= TOLERANCE
    runner = export.OnnxRunner(export.to_onnx(network, layout), layout, 1)
    metres = runner(export.pattern_pictures((120, 200))["noise"])
    assert runner.image.dtype == np.uint8
    np.testing.assert_allclose(runner.invoke()[0, 0], 1000 * metres, 1e-6)


def test_unequal_means_are_seen_at_the_border(onnx, monkeypatch):
    """A mean that is off by one grey level of 255 shows: the comparison is not blind there."""
    network = random_network(size=(64, 96), **UNEQUAL)
    layout = export.standard(network, (120, 200))
    right = network.mean.clone()
    export_of = export.to_onnx

    def wrong(model, *rest):
        model.mean += 1
        content = export_of(model, *rest)
        model.mean.copy_(right)
        return content

    monkeypatch.setattr(export, "to_onnx", wrong)
    assert parity(network, layout).max_abs > 10 * TOLERANCE


@pytest.mark.parametrize("h, w", [(32, 40), (8, 24), (5, 7)])
def test_nearest_reads_the_right_cell(onnx, h, w):
    """Whole ratios up to 64 and ratios that are not whole, against integers."""
    import onnxruntime

    cells = np.arange(h * w, dtype=np.float32).reshape(1, 1, h, w)
    ratios = [(r * h, (r % 5 + 1) * w) for r in (1, 2, 3, 15, 41, 47, 55, 61, 64)]
    for H, W in [*ratios, (h + 1, 3 * w), (2 * h, 3 * w - 1), (480, 640), (469, 621)]:
        graph = export.OnnxGraph(onnx.helper, onnx.numpy_helper)
        graph.node("Identity", graph.resize("image", 1, (h, w), (H, W), "nearest"), output="depth")
        ends = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, *size])
            for name, size in (("image", (h, w)), ("depth", (H, W)))
        ]
        made = onnx.helper.make_graph(graph.nodes, "g", ends[:1], ends[1:], graph.constants)
        opset = [onnx.helper.make_opsetid("", 13)]
        content = onnx.helper.make_model(made, opset_imports=opset, ir_version=7)
        session = onnxruntime.InferenceSession(content.SerializeToString())
        found = session.run(None, {"image": cells})[0][0, 0]
        expected = cells[0, 0][np.arange(H)[:, None] * h // H, np.arange(W) * w // W]
        np.testing.assert_array_equal(found, expected, err_msg=f"{h}x{w} to {H}x{W}")


def test_ends_metadata_and_operations(onnx):
    size, network = (480, 640), random_network()
    native = export.standard(network, size, output_size=(32, 40))
    about = {"input": {"layout": "NHWC"}, "output": {"unit": "m", "layout": "NHWC"}, "a": [1]}
    content = export.to_onnx(network, native, about)
    file = onnx.load_from_string(content)
    [source], [target] = file.graph.input, file.graph.output
    shapes = [[d.dim_value for d in end.type.tensor_type.shape.dim] for end in (source, target)]
    assert [source.name, target.name] == ["image", "depth"]
    assert shapes == [[1, 3, 480, 640], [1, 1, 32, 40]]
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 13)]
    [prop] = file.metadata_props
    about |= {"input": {"layout": "NCHW"}, "output": {"unit": "m", "layout": "NCHW"}}
    assert prop.key == "litedepth.json" and json.loads(prop.value) == about
    kinds = [node.op_type for node in file.graph.node]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "Resize": 4, "Sub": 1, "Conv": 38, "Relu": 27, "Add": 6, "Concat": 3, "Identity": 1,
    }  # fmt: skip
    assert len(content) < 4.1 * sum(p.numel() for p in network.parameters())
    noise = export.pattern_pictures(size)["noise"]
    small = export.OnnxRunner(content, native, 1)(noise)
    whole = export.standard(network, size)
    full = export.OnnxRunner(export.to_onnx(network, whole), whole, 1)(noise)
    np.testing.assert_array_equal(np.kron(small, np.ones((15, 16), np.float32)), full)


def test_command(onnx, tmp_path, capsys):
    """--format onnx: beside the .tflite, compared and judged like it."""
    save(tmp_path / "best.pt", random_network(size=(64, 96), **UNEQUAL))
    command = ["--checkpoint", str(tmp_path / "best.pt"), "--format", "fp32,onnx"]
    quick = ["--input_size", "120x200", "--runs", "2", "--warmup", "0", "--threads", "1"]
    assert export.main([*command, *quick]) == 0
    names = {f.name for f in tmp_path.iterdir()}
    assert names == {"best.pt", "model.tflite", "model.onnx", "report.json"}
    card = json.loads((tmp_path / "report.json").read_text())["files"][1]
    assert card["format"] == "onnx" and card["tests"]["max_abs"] < TOLERANCE
    assert card["operations"]["Conv"] == 38 and card["partitions"] is card["gpu"] is None
    file = onnx.load(tmp_path / "model.onnx")
    assert json.loads(file.metadata_props[0].value)["precision"] == "onnx"


def test_missing_packages_are_named(monkeypatch, tmp_path, capsys):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    network = LiteDepth(size=(64, 96))
    layout = export.standard(network, (64, 96))
    with pytest.raises(UserError, match="pip install onnx onnxruntime"):
        export.to_onnx(network, layout)
    with pytest.raises(UserError, match="pip install onnx onnxruntime"):
        export.OnnxRunner(b"", layout, 1)
    save(tmp_path / "best.pt", network)
    command = ["--checkpoint", str(tmp_path / "best.pt"), "--format", "onnx"]
    assert export.main([*command, "--input_size", "64x96"]) == 2
    assert "pip install onnx onnxruntime" in capsys.readouterr().err
