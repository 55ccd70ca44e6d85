"""The ONNX file equals PyTorch in onnxruntime; needs onnx, onnxruntime and onnxscript."""

import json
import sys

import numpy as np
import pytest
import test_export
from test_export import QUICK, TOLERANCE, UNEQUAL, command, distance, random_network, whole_network

import export
from model import save
from plumbing.report import pattern_pictures

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
one_thread = test_export.one_thread  # fixture


def written(tmp_path, network, size, **changes):
    """(layout, file) of `network` for pictures of `size`, by way of `export.write`."""
    layout = export.Layout(input_size=size, **changes).of(network)
    about = {
        "precision": "onnx", "input": {"size": size, "dtype": layout.input_type, "layout": "NHWC"},
        "output": {"size": layout.output_size, "unit": layout.unit, "layout": "NHWC"}, "a": [1],
    }  # fmt: skip
    export.write(network, layout, tmp_path / "x.onnx", about, ())
    return layout, tmp_path / "x.onnx"


@pytest.mark.parametrize(
    "model_args, size, changes",
    [
        ({}, (480, 640), {}),  # whole ratios: copies of pixels
        ({}, (720, 1280), {}),  # 720 is no multiple of 32 rows
        ({"size": (64, 96), **UNEQUAL}, (123, 201), {"upsample": "bilinear"}),
        ({"size": (64, 96), **UNEQUAL}, (120, 200), {"input_type": "uint8", "unit": "mm"}),
    ],
)
def test_file_equals_pytorch(tmp_path, model_args, size, changes):
    network = random_network(**model_args)
    layout, file = written(tmp_path, network, size, **changes)
    predictor, pictures = export.load(file, 1), pattern_pictures(size)
    expected = map(whole_network(network, layout), pictures)
    result = distance(expected, map(predictor.native, pictures))
    assert result.depth_max - result.depth_mean > 0.25  # a constant would prove nothing
    assert result.max_abs <= TOLERANCE
    if layout.unit == "mm":
        metres = predictor.native(pictures[0])
        np.testing.assert_allclose(predictor.invoke()[0][0, 0], 1000 * metres, 1e-6)
    elif size == (480, 640):  # every cell of 32x40 fifteen times down, sixteen times across
        small = export.load(written(tmp_path, network, size, output_size="native")[1], 1)
        cells = np.kron(small.native(pictures[0]), np.ones((15, 16), np.float32))
        np.testing.assert_array_equal(cells, predictor.native(pictures[0]))


def test_ends_metadata_and_operations(tmp_path):
    network = random_network()
    file = written(tmp_path, network, (480, 640))[1]
    content = file.read_bytes()
    assert written(tmp_path, network, (480, 640))[1].read_bytes() == content  # reproducible
    assert str(test_export.ROOT).encode() not in content  # nothing of this machine
    assert len(content) < 4.3 * sum(p.numel() for p in network.parameters())
    graph = onnx.load(file)
    [source], [target] = graph.graph.input, graph.graph.output
    shapes = [[d.dim_value for d in end.type.tensor_type.shape.dim] for end in (source, target)]
    assert [source.name, target.name] == ["image", "depth"]
    assert shapes == [[1, 3, 480, 640], [1, 1, 480, 640]]
    [prop] = graph.metadata_props
    about = json.loads(prop.value)
    assert prop.key == "litedepth.json" and about["precision"] == "onnx" and about["a"] == [1]
    assert about["input"]["layout"] == about["output"]["layout"] == "NCHW"
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"GatherND", "Gather", "BatchNormalization", "ScatterND", "Transpose"}


def test_command(tmp_path, capsys, monkeypatch):
    """--format onnx: beside the .tflite, compared and judged like it."""
    network = random_network(size=(64, 96), **UNEQUAL)
    save(tmp_path / "best.pt", network, image_size=[120, 200])
    told = ["--checkpoint", tmp_path / "best.pt", "--format", "fp32,onnx", *QUICK]
    assert command(*told) == 0
    assert not capsys.readouterr().err
    names = {f.name for f in tmp_path.iterdir()}
    assert names == {"best.pt", "model.tflite", "model.onnx", "report.json"}
    card = json.loads((tmp_path / "report.json").read_text())["files"][1]
    assert card["format"] == "onnx" and card["tests"]["max_abs"] < TOLERANCE
    assert card["operations"]["Conv"] == 38 and card["partitions"] is card["gpu"] is None
    for package in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
        assert command(*told) == 2
        assert "pip install onnx onnxruntime onnxscript" in capsys.readouterr().err
