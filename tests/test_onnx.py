"""The ONNX file equals PyTorch in onnxruntime; needs the onnx and onnxruntime packages."""

import json
import sys

import numpy as np
import pytest
import torch

import export
from model import LiteDepth, calibrate, create, merge_normalization

TOLERANCE = 1e-4
UNEQUAL = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 40.0)}


def random_network(**model_args) -> LiteDepth:
    """As if trained: no BatchNorm at its initial statistics, depth that varies."""
    torch.manual_seed(1)
    network = LiteDepth(**model_args).eval()
    for bn in network.modules():
        if isinstance(bn, torch.nn.BatchNorm2d):
            bn.running_mean.normal_(0, 0.3)
            bn.running_var.uniform_(0.5, 2.0)
            bn.weight.data.uniform_(0.6, 1.4)
            bn.bias.data.normal_(0, 0.3)
    return network


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are ten times slower where other work fills the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize("model_args, size", CASES)
def test_file_equals_pytorch(onnx, model_args, size):
    network = random_network(**model_args)
    pictures = list(export.pattern_pictures(size).values())
    content = export.to_onnx(network, size)
    outputs = export.run_onnx(content, pictures)
    result = export.compare(export.run_torch(network, pictures), outputs, TOLERANCE)
    assert result.depth[1] - result.depth[0] > 0.5  # a constant would prove nothing
    assert result.max_abs <= TOLERANCE and result.passed
    if size == network.size:  # without the input's resize, the rest is at float rounding
        assert result.max_abs <= 1e-5
    merged = export.to_onnx(merge_normalization(network), size)
    assert merged == content == export.to_onnx(network, size)  # and it is deterministic


def test_zero_padding_is_seen(onnx):
    size, network = (120, 200), random_network(size=(64, 96), **UNEQUAL)
    wrong = merge_normalization(network)
    wrong.encoder.conv_stem.fill.zero_()
    pictures = list(export.pattern_pictures(size).values())
    outputs = export.run_onnx(export.to_onnx(wrong, size), pictures)
    result = export.compare(export.run_torch(network, pictures), outputs, TOLERANCE)
    assert result.border > 10 * TOLERANCE


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
    content = export.to_onnx(network, size, output_size=(32, 40), metadata={"unit": "m", "a": [1]})
    file = onnx.load_from_string(content)
    [source], [target] = file.graph.input, file.graph.output
    shapes = [[d.dim_value for d in end.type.tensor_type.shape.dim] for end in (source, target)]
    assert [source.name, target.name] == ["image", "depth"]
    assert shapes == [[1, 3, 480, 640], [1, 1, 32, 40]]
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 13)]
    [prop] = file.metadata_props
    assert prop.key == "litedepth.json" and json.loads(prop.value) == {"unit": "m", "a": [1]}
    kinds = [node.op_type for node in file.graph.node]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "Resize": 4, "Sub": 1, "Conv": 38, "Relu": 27, "Add": 6, "Concat": 3, "Identity": 1,
    }  # fmt: skip
    assert len(content) < 4.1 * sum(p.numel() for p in network.parameters())
    noise = export.pattern_pictures(size)["noise"]
    small, full = (
        next(export.run_onnx(c, [noise])) for c in (content, export.to_onnx(network, size))
    )
    np.testing.assert_array_equal(np.kron(small, np.ones((15, 16), np.float32)), full)


def test_a_calibrated_network(onnx):
    """Millimetres, as `--unit mm` has them: a scale of 1000."""
    size, network = (64, 96), random_network(size=(64, 96))
    picture = export.pattern_pictures(size)["noise"]
    metres, millimetres = (
        next(export.run_onnx(export.to_onnx(n, size), [picture]))
        for n in (network, calibrate(network, 1000.0, 0.0))
    )
    np.testing.assert_allclose(millimetres, 1000 * metres, rtol=1e-5, atol=1e-3)


def test_a_teacher_is_refused(onnx):
    with pytest.raises(export.ExportError, match="teacher"):
        export.to_onnx(create("swin_nano", size=(64, 96)), (64, 96))


def test_missing_packages_are_named(monkeypatch):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(export.ExportError, match="pip install onnx onnxruntime"):
        export.to_onnx(LiteDepth(size=(64, 96)), (64, 96))
    with pytest.raises(export.ExportError, match="pip install onnx onnxruntime"):
        next(export.run_onnx(b"", []))
