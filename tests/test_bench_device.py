"""tests/bench_device.py: what it counts and computes; nothing here is timed."""

from __future__ import annotations

import json

import bench_device
import numpy as np
import pytest
import torch
from bench_device import BenchError, Row

import export
from model import LiteDepth
from plumbing.report import tensorflow_quietly

MACS = {"mix": 26_735_360}  # at 128x160: Sec. 3.1's network, every convolution of it


def exported(model: LiteDepth, size: tuple[int, int]) -> bytes:
    """The plain graph: whatever else export.py can do to a last resize is no network's MAC."""
    layout = export.standard(model.eval(), size, last_resize="plain")
    return export.convert(model, layout)


@pytest.fixture(scope="module")
def paper() -> bytes:
    torch.manual_seed(0)
    return exported(LiteDepth(), (480, 640))


@pytest.fixture(scope="module")
def files(paper, tmp_path_factory):
    """A folder with the paper's file, and a smaller picture's."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "paper.tflite").write_bytes(paper)
    torch.manual_seed(0)
    small = exported(LiteDepth(size=(32, 32)), (48, 64))
    (folder / "small.tflite").write_bytes(small)
    return folder


def convert(tf, function, *shapes) -> bytes:
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    wrapped = tf.function(function, input_signature=specs, autograph=False)
    concrete = wrapped.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], wrapped).convert()


def macs_of(content: bytes) -> int:
    return bench_device.count_macs(bench_device.interpreter("x", content, 1, delegate=False))


def hooked_macs(model: torch.nn.Module, image: torch.Tensor) -> int:
    """The same count by PyTorch: output pixels times the filter's numbers, layer by layer."""
    total = []

    def count(layer, inputs, output):
        total.append(output.shape[2] * output.shape[3] * layer.weight.numel())

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(image)
    return sum(total)


# --------------------------------------------------------------------------------------- counting


def test_macs_of_the_papers_network(paper):
    assert macs_of(paper) == MACS["mix"]


@pytest.mark.parametrize("decoder, size", [("3x3", (64, 96)), ("1x1", (32, 64))])
def test_macs_equal_pytorchs_hooks(decoder, size):
    torch.manual_seed(0)
    model = LiteDepth(decoder=decoder, size=size).eval()
    expected = hooked_macs(model, torch.zeros(1, 3, 48, 64))
    assert macs_of(exported(model, (48, 64))) == expected > 1e6


def test_macs_of_other_operations():
    """What a peer's file may hold, each with its count by hand."""
    tf = tensorflow_quietly()
    rng = np.random.default_rng(0)
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    transposed = convert(
        tf, lambda x: tf.nn.conv2d_transpose(x, f(2, 2, 5, 3), (1, 8, 12, 5), 2), (1, 4, 6, 3)
    )
    assert macs_of(transposed) == 4 * 6 * 3 * 2 * 2 * 5
    dense = convert(tf, lambda x: tf.matmul(x, f(40, 7)), (32, 40))
    assert macs_of(dense) == 32 * 40 * 7
    product = convert(tf, lambda a, b: tf.matmul(a, b), (2, 3, 4), (2, 4, 5))
    assert macs_of(product) == 2 * 3 * 4 * 5
    flipped = convert(tf, lambda a, b: tf.matmul(a, b, adjoint_a=True), (2, 4, 3), (2, 4, 5))
    assert macs_of(flipped) == 2 * 3 * 4 * 5
    grouped = convert(
        tf, lambda x: tf.nn.depthwise_conv2d(x, f(3, 3, 6, 1), (1, 1, 1, 1), "SAME"), (1, 8, 8, 6)
    )
    assert macs_of(grouped) == 8 * 8 * 6 * 9
    idle = convert(tf, lambda x: tf.image.resize(x, (16, 16)) + 1, (1, 8, 8, 3))
    assert macs_of(idle) == 0


def test_a_row_knows_its_file(paper):
    row = Row("paper", paper + b"an archive behind the flatbuffer", peer=False)
    assert row.size == (480, 640) and row.macs == MACS["mix"] and row.partitions == 1
    assert row.ops["CONV_2D"] == 27 and row.ops["DEPTHWISE_CONV_2D"] == 11
    assert "DELEGATE" not in row.ops


def test_a_peers_channels_may_come_first():
    tf = tensorflow_quietly()
    content = convert(tf, lambda x: tf.reduce_mean(x, 1), (1, 3, 48, 64))
    assert Row("peer", content, peer=True).size == (48, 64)
    content = convert(tf, lambda x: x + 1, (1, 48, 64))
    with pytest.raises(BenchError, match="wanted a picture"):
        _ = Row("peer", content, peer=True).size


def test_pictures_suit_the_file(paper):
    row = Row("paper", paper, peer=False)
    ours = bench_device.picture(row, 0)
    assert ours.dtype == np.float32 and ours.max() == 255 and ours.min() == 0
    row.peer = True
    assert np.array_equal(bench_device.picture(row, 0), (ours / 255).astype(np.float32))
    for dtype, low, high in ((np.uint8, 0, 255), (np.int8, -128, 127)):
        row.input = row.input | {"dtype": dtype}
        picture = bench_device.picture(row, 0)
        assert picture.dtype == dtype and (picture.min(), picture.max()) == (low, high)
        assert np.array_equal(picture.astype(int) - low, ours)


# ------------------------------------------------------------------------------------- arithmetic


def test_floor():
    """26.7 M MACs at 100 Gop/s: 53.4 M operations in 0.534 ms."""
    assert bench_device.floor_ms(26_700_000, 100.0) == pytest.approx(0.534)


def made_row(name: str, peer: bool, *rounds: list[float]) -> Row:
    row = Row.__new__(Row)
    row.name, row.peer, row.content = name, peer, b"12345678"
    row.rounds = [np.array(ms) for ms in rounds]
    row.input = {"shape": np.array([1, 4, 6, 3]), "dtype": np.float32}
    row.output = {"shape": np.array([1, 4, 6, 1]), "dtype": np.float32}
    row.ops, row.partitions, row.macs = bench_device.Counter(CONV_2D=2), 1, 10**6
    return row


def test_statistics_and_ratios_by_hand():
    a = made_row("a", False, [1.0, 2.0, 9.0], [2.0, 2.0, 2.0])
    b = made_row("b", False, [1.0, 1.0, 1.0], [0.5, 1.0, 4.0])
    peer = made_row("p", True, [100.0], [400.0])
    found = bench_device.report([a, b, peer], a, 100.0, {"b": 2 * 10**6})
    assert list(found[1]["faster_than"]) == ["a", "p"]
    assert found[0]["ms"]["median"] == 2 and found[0]["ms"]["mean"] == 3
    assert found[0]["ms"]["std"] == pytest.approx((44 / 6) ** 0.5)
    assert found[0]["timed"] == 6 and found[2]["ms"]["p10"] == 130
    assert found[1]["faster_than"]["a"] == {"ratio": 2, "p10": 2, "p90": 2}
    against = found[1]["faster_than"]["p"]  # 100 and 400 in the two rounds, 250 over all
    assert against["ratio"] == 250 and (against["p10"], against["p90"]) == (130, 370)
    assert found[0]["floor_ms"] == pytest.approx(0.02) and found[1]["floor_macs"] == 2 * 10**6
    assert found[1]["over_floor"] == pytest.approx(1 / 0.04)
    lines = bench_device.table(found).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "| b |" in lines[3] and "2.00 (2.00-2.00)" in lines[3]
    bare = bench_device.report([a], a, None, {})
    assert bare[0]["floor_ms"] is None and "| - | - |" in bench_device.table(bare)


def test_busy_seconds_counts_all_but_waiting():
    stat = "cpu  100 20 30 4000 500 6 7 8 90 0\ncpu0 1 1 1 1\n"
    assert bench_device.busy_seconds(stat, 0.01) == pytest.approx(1.71)


def test_the_share_of_others():
    watch = bench_device.Watch()
    readings = iter([(10.0, 3.0, 100.0), (31.0, 23.0, 120.0)])
    watch._read = lambda: next(readings)
    watch.start()
    assert watch.stop() == pytest.approx(5.0)  # 21 s of work, 20 of them ours, in 20 s
    watch._begin, watch._read = (None, 0.0, 0.0), lambda: (None, 1.0, 1.0)
    assert watch.stop() is None


def test_peak_is_the_best_of_all_looks(tmp_path, monkeypatch):
    try:
        peak = bench_device.Peak(tmp_path)
    except BenchError as error:
        pytest.skip(str(error))
    peak.look(0.001)
    assert 4 in peak.gops and set(peak.gops) <= {4, 8, 16}
    assert all(1 < rate < 1000 for rate in peak.gops.values())  # no core is outside that
    assert peak._rate(3, 0.001) == 0
    peak.gops = {}
    for rates in ({4: 5.0, 8: 9.0}, {4: 7.0, 8: 8.0}):
        peak._rate = lambda width, seconds, rates=rates: rates.get(width, 0.0)
        peak.look()
    assert peak.gops == {4: 7.0, 8: 9.0} and peak.best == 9.0
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    with pytest.raises(BenchError, match="gcc"):
        bench_device.Peak(tmp_path)


# ----------------------------------------------------------------------------------- command line


QUICK = ["--rounds", "2", "--runs", "2", "--peer_runs", "1", "--settle", "0"]


def test_files_in_turn(files, tmp_path, capsys):
    small, out = files / "small.tflite", tmp_path / "out.json"
    argv = [f"a={small}", str(small), "--peer", f"b={small}", "--baseline", "small", "--macs", "1"]
    assert bench_device.main([*argv, *QUICK, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(r["name"], r["timed"]) for r in found["rows"]] == [("a", 4), ("small", 4), ("b", 2)]
    assert found["baseline"] == "small" and list(found["rows"][0]["faster_than"]) == ["small", "b"]
    assert [r["floor_macs"] for r in found["rows"]] == [10**6, 10**6, found["rows"][2]["macs"]]
    assert found["rows"][0]["input"] == {"shape": [1, 48, 64, 3], "dtype": "float32"}
    printed = capsys.readouterr().out
    assert "| small |" in printed and "2 rounds of 2 runs" in printed


def test_a_turn_is_settled_and_the_first_round_thrown_away(files, monkeypatch):
    calls = []

    class Counted:
        def __init__(self, name):
            self.name = name

        def set_tensor(self, index, value):
            pass

        def invoke(self):
            calls.append(self.name)

    monkeypatch.setattr(bench_device, "interpreter", lambda name, content, threads: Counted(name))
    rows = [made_row("a", False), made_row("p", True)]
    for row in rows:
        row.input = row.input | {"index": 0}
    bench_device.measure(
        rows, None, rounds=2, runs=3, peer_runs=1, settle=2, threads=1, seed=0,
        clock=bench_device.CLOCKS["cpu"],
    )  # fmt: skip
    assert "".join(calls) == "aaaaappp" * 3
    assert [[len(ms) for ms in row.rounds] for row in rows] == [[3, 3], [1, 1]]


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "no files"),
        (["a={small}", "a={small}"], "two rows are called a"),
        (["{small}", "--peer", "p={paper}"], "unequal size"),
        (["{small}", "--baseline", "b"], "there is small"),
        (["{small}", "--clock", "cpu", "--threads", "2"], "--threads 1"),
        (["x={readme}"], "x is no .tflite file"),
        (["--checkpoint", "{readme}"], "not a readable weights file"),
    ],
)
def test_errors_are_one_line(files, capsys, argv, said):
    names = {"small": files / "small.tflite", "paper": files / "paper.tflite",
             "readme": bench_device.ROOT / "README.md"}  # fmt: skip
    assert bench_device.main([text.format(**names) for text in argv] + QUICK) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert said in printed[-1] and printed[-1].startswith("bench_device.py: ")


def test_arguments(files):
    small = files / "small.tflite"
    parser = bench_device.make_parser()
    args = parser.parse_args([str(small), f"n={small}", "--peer", f"p={small}", "--threads", "2"])
    assert args.files == [("small", small), ("n", small)] and args.peer == [("p", small)]
    assert args.threads == 2 and args.baseline is None
    for wrong in (["none.tflite"], [str(small), "--rounds", "0"], [str(small), "--runs", "x"]):
        with pytest.raises(SystemExit) as error:
            parser.parse_args(wrong)
        assert error.value.code == 2
    for action in parser._actions:
        assert action.help and len(action.help) > 12
