"""tests/bench/bench_device.py: what it counts and computes; nothing here is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from model import LiteDepth
from plumbing.files import run_main

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
import bench_device  # noqa: E402
from bench_device import Row  # noqa: E402


def exported(model: LiteDepth, size: tuple[int, int]) -> bytes:
    """The plain graph: whatever else export.py can do to a last resize is no network's MAC."""
    model = model.eval()
    return export.convert(model, export.Layout(input_size=size, last_resize="plain").of(model))


@pytest.fixture(scope="module")
def paper() -> bytes:
    torch.manual_seed(0)
    return exported(LiteDepth(), (480, 640))


def test_macs_of_the_papers_network_equal_pytorchs_hooks(paper):
    """Output pixels times the filter's numbers, layer by layer."""
    total, model = [], LiteDepth().eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, _, y: total.append(y[0, 0].numel() * layer.weight.numel())
            )
    with torch.no_grad():
        model(torch.zeros(1, 3, 480, 640))
    row = Row("paper", paper + b"an archive behind the flatbuffer", peer=False)
    assert row.macs == sum(total) == 26_735_360  # at 128x160: Sec. 3.1's network
    assert row.size == (480, 640) and row.partitions == 1
    assert row.ops["CONV_2D"] == 27 and row.ops["DEPTHWISE_CONV_2D"] == 11


@pytest.mark.parametrize(
    "op, inputs, output, expected",
    [  # what a peer's file may hold, each with its count by hand
        ("TRANSPOSE_CONV", [[4], [5, 2, 2, 3], [1, 4, 6, 3]], [1, 8, 12, 5], 4 * 6 * 3 * 2 * 2 * 5),
        ("FULLY_CONNECTED", [[32, 40], [7, 40]], [32, 7], 32 * 40 * 7),
        ("BATCH_MATMUL", [[2, 3, 4], [2, 4, 5]], [2, 3, 5], 2 * 3 * 4 * 5),
        ("BATCH_MATMUL", [[2, 4, 3], [2, 4, 5]], [2, 3, 5], 2 * 3 * 4 * 5),  # stored transposed
        ("RESIZE_BILINEAR", [[1, 8, 8, 3], [2]], [1, 16, 16, 3], 0),
    ],
)
def test_macs_of_other_operations(op, inputs, output, expected):
    assert bench_device.op_macs(op, inputs, output) == expected


def made_row(name: str, peer: bool, *rounds: list[float], dtype=np.float32) -> Row:
    row = Row.__new__(Row)
    row.name, row.peer, row.content = name, peer, b"12345678"
    row.rounds = [np.array(ms) for ms in rounds]
    row.input = {"shape": np.array([1, 4, 6, 3]), "dtype": dtype}
    row.output = {"shape": np.array([1, 4, 6, 1]), "dtype": np.float32}
    row.ops, row.partitions, row.macs = bench_device.Counter(CONV_2D=2), 1, 10**6
    return row


def test_statistics_and_ratios_by_hand():
    assert bench_device.floor_ms(26_700_000, 100.0) == pytest.approx(0.534)
    a = made_row("a", False, [1.0, 2.0, 9.0], [2.0, 2.0, 2.0])
    b = made_row("b", False, [1.0, 1.0, 1.0], [0.5, 1.0, 4.0])
    peer = made_row("p", True, [100.0], [400.0])
    found = bench_device.report([a, b, peer], 100.0, 2 * 10**6)
    assert found[0]["ms"]["median"] == 2 and found[0]["timed"] == 6
    assert found[2]["ms"]["p10"] == 130
    assert found[1]["faster_than"]["a"] == {"ratio": 2, "p10": 2, "p90": 2}
    against = found[1]["faster_than"]["p"]  # 100 and 400 in the two rounds, 250 over all
    assert against["ratio"] == 250 and (against["p10"], against["p90"]) == (130, 370)
    assert found[1]["floor_ms"] == pytest.approx(0.04)
    assert found[1]["over_floor"] == pytest.approx(1 / 0.04)
    assert found[2]["floor_ms"] == pytest.approx(0.02)  # a peer's is its own
    lines = bench_device.table(found).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "| b |" in lines[3] and "2.00 (2.00-2.00)" in lines[3]
    assert "| - | - |" in bench_device.table(bench_device.report([a], None, None))


QUICK = ["--rounds", "2", "--runs", "2", "--peer_runs", "1"]


def test_files_in_turn(paper, tmp_path, capsys):
    torch.manual_seed(0)
    small, big, out = (tmp_path / name for name in ("small.tflite", "big.tflite", "out.json"))
    small.write_bytes(exported(LiteDepth(size=(32, 32)), (48, 64)))
    big.write_bytes(paper)
    argv = [f"a={small}", str(small), "--peer", f"b={small}", *QUICK]
    assert bench_device.main([*argv, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(r["name"], r["timed"]) for r in found["rows"]] == [("a", 4), ("small", 4), ("b", 2)]
    assert list(found["rows"][0]["faster_than"]) == ["a", "b"]
    if found["peak_gops"]:  # there is a compiler
        assert all(1 < rate < 1000 for rate in found["peak_gops"].values())  # as any core's
    assert "| small |" in capsys.readouterr().out
    readme = bench_device.ROOT / "README.md"
    for argv, said in (
        ([], "no files"),
        ([f"a={small}", f"a={small}"], "of one name"),
        ([f"{small}", "--peer", f"p={big}"], "unequal size"),
        ([f"x={readme}"], "x is no .tflite file"),
        (["--checkpoint", f"{readme}"], "README.md"),
    ):
        assert run_main(lambda argv=argv: bench_device.main([*argv, *QUICK]), "bench") == 2
        assert said in capsys.readouterr().err
