"""Sec. 3.1 (Eq. 3-6) and Sec. 4.5: the exported file equals PyTorch, to the last border pixel."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import export
from model import LiteDepth, load, merge_normalization, save

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


def parity(model: LiteDepth, content: bytes, size: tuple[int, int]) -> export.Parity:
    pictures = list(export.pattern_pictures(size).values())
    outputs = export.run_tflite(content, pictures)
    return export.compare(export.run_torch(model, pictures), outputs, TOLERANCE)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are ten times slower where other work fills the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def paper():
    """(network, file, image size) of the paper: 128x160 inside, 480x640 outside, mix, nearest."""
    model = random_network()
    return model, export.convert(model, (480, 640)), (480, 640)


@pytest.fixture(scope="module")
def small():
    """The same for unequal means and a picture that is no multiple of the depth map."""
    model = random_network(size=(64, 96), **UNEQUAL)
    return model, export.convert(model, (120, 200)), (120, 200)


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


def check_parity(model, content, size):
    result = parity(model, content, size)
    assert result.depth[1] - result.depth[0] > 0.5  # a constant would prove nothing
    assert result.max_abs <= TOLERANCE and result.border <= result.max_abs and result.passed


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
    check_parity(model, export.convert(model, size), size)


def zero_fill(model: LiteDepth) -> LiteDepth:
    """Eq. 6 as printed: the merged stem pads raw zeros."""
    merged = merge_normalization(model)
    merged.encoder.conv_stem.fill.zero_()
    return merged


def test_eq6_zero_padding_is_seen(small):
    model, _, size = small
    result = parity(model, export.convert(zero_fill(model), size), size)
    assert not result.passed and result.border > 10 * result.limit


def test_sec45_input_output_and_graph(paper):
    model, content, _ = paper
    runner = export.interpreter(content, 1)
    [source], [target] = runner.get_input_details(), runner.get_output_details()
    assert tuple(source["shape"]) == (1, 480, 640, 3) and source["dtype"] == np.float32
    assert tuple(target["shape"]) == (1, 480, 640, 1) and target["dtype"] == np.float32
    ops, partitions = export.operations(content)
    assert partitions == 1
    assert ops == {  # no TRANSPOSE, no BatchNorm's MUL, no normalisation
        "CONV_2D": 27, "DEPTHWISE_CONV_2D": 11, "ADD": 6, "CONCATENATION": 5,
        "RESIZE_BILINEAR": 4, "RESIZE_NEAREST_NEIGHBOR": 1,
    }  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    assert len(content) < 4.1 * parameters  # fp32 once, and little else


def test_convert_rejects_other_padding(small):
    merged = merge_normalization(small[0])
    merged.decoder.fuse1.padding = (0, 0)
    with pytest.raises(export.ExportError, match="padding"):
        export.convert(merged, (64, 96))


# ------------------------------------------------------------------------------------ comparison


def test_compare_is_maximum_absolute_not_signed_mean():
    reference = np.full((4, 6), 2.0, np.float32)
    output = reference.copy()
    output[1, 1] += 0.5
    output[2, 2] -= 0.5
    assert (output - reference).mean() == 0
    result = export.compare([reference, reference], [reference, output], TOLERANCE)
    assert not result.passed and result.pictures == 2
    assert result.max_abs == 0.5 and result.border == 0
    assert result.mean_abs == pytest.approx(1 / 48)
    output = reference.copy()
    output[3, 2] += 0.25
    assert export.compare([reference], [output], TOLERANCE).border == 0.25


def test_compare_limit_nan_and_misuse():
    ones = np.ones((4, 6), np.float32)
    assert export.compare([0.5 * ones], [0.5 * ones + 1.5e-4], 1e-4).limit == 1e-4
    assert export.compare([20 * ones], [20 * ones + 1.5e-3], 1e-4).passed  # range 20 m
    assert not export.compare([0.5 * ones], [0.5 * ones + 1.5e-4], 1e-4).passed
    assert not export.compare([ones, ones], [np.nan * ones, ones], 1e-4).passed
    with pytest.raises(ValueError, match="no pictures"):
        export.compare([], [], 1e-4)
    with pytest.raises(ValueError, match=r"\(6, 4\)"):
        export.compare([ones], [ones.T], 1e-4)
    with pytest.raises(ValueError):
        export.compare([ones, ones], [ones], 1e-4)


def test_pattern_pictures():
    pictures = export.pattern_pictures((40, 50), seed=3)
    assert {"noise", "gradient", "black", "white", "frame", "checker"} == set(pictures)
    assert all(p.shape == (40, 50, 3) and p.dtype == np.uint8 for p in pictures.values())
    assert np.array_equal(pictures["noise"], export.pattern_pictures((40, 50), seed=3)["noise"])


# ---------------------------------------------------------------------------------- the command


QUICK = ["--image_size", "120x200", "--runs", "2", "--warmup", "0", "--threads", "1"]


def test_command_writes_and_reports(checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "x.tflite"
    command = ["--checkpoint", str(checkpoint), "--out", str(out), *QUICK, "--threads", "2"]
    assert export.main(command) == 0
    assert [f.name for f in out.parent.iterdir()] == ["x.tflite"]  # no part file is left
    printed = capsys.readouterr().out
    for text in ("best.pt", "x.tflite", "1 partition", "1 thread ", "2 threads", "passed"):
        assert text in printed
    check_parity(load(checkpoint), out.read_bytes(), (120, 200))


def test_command_exit_3_when_not_equal(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(export, "merge_normalization", zero_fill)
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 3
    printed = capsys.readouterr()
    assert "FAILED" in printed.out and "does NOT equal" in printed.err
    failed, final = (checkpoint.with_name(n) for n in ("model.failed.tflite", "model.tflite"))
    assert str(failed) in printed.out and str(failed) in printed.err and "older" not in printed.err
    assert failed.is_file() and not final.exists()  # predict.py would pick that name up
    final.write_bytes(b"an older export")
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 3
    assert f"{final} is still the older file" in capsys.readouterr().err
    assert final.read_bytes() == b"an older export"
    monkeypatch.undo()
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 0
    assert final.stat().st_size > 1e6 and not failed.exists()


def test_command_stopped_before_parity_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "compare", stop)
    with pytest.raises(KeyboardInterrupt):
        export.main(["--checkpoint", str(checkpoint), *QUICK])
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


def test_command_takes_the_checkpoints_image_size(small, tmp_path, monkeypatch, capsys):
    sizes = []
    monkeypatch.setattr(export, "convert", lambda _, size: sizes.append(size) or small[1])
    save(tmp_path / "best.pt", small[0], image_size=[120, 200])
    command = ["--checkpoint", str(tmp_path / "best.pt"), *QUICK[2:], "--threads", "0"]
    assert export.main(command) == 0
    printed = capsys.readouterr().out
    cores = export.usable_cores()
    assert "1x120x200x3" in printed and f"run time, {cores} thread" in printed
    save(tmp_path / "best.pt", small[0])  # an older file: 480x640, which this content is not
    monkeypatch.setattr(export, "run_tflite", lambda *_: iter(()))
    with pytest.raises(ValueError):
        export.main(command)
    assert sizes == [(120, 200), (480, 640)]


def test_command_compares_real_pictures(checkpoint, tmp_path, capsys):
    names = []
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((60, 100, 3), (30, 20, 10 + i), np.uint8))
        cv2.imwrite(str(tmp_path / f"{i}_depth.png"), np.full((60, 100), 2000, np.uint16))
        names.append(f"{i}.png {i}_depth.png\n")
    (tmp_path / "val.txt").write_text("".join(names))
    pictures = export.real_pictures(str(tmp_path), "val", (120, 200), 3)
    assert [tuple(p[0, 0]) for p in pictures] == [(10, 20, 30), (12, 20, 30), (14, 20, 30)]  # RGB
    assert pictures[0].shape == (120, 200, 3) and pictures[0].dtype == np.uint8
    (tmp_path / "args.json").write_text(f'{{"data": "{tmp_path}"}}')  # the run names its data
    assert export.main(["--checkpoint", str(checkpoint), "--pictures", "2", *QUICK]) == 0
    assert "6 test pictures, 2 of" in capsys.readouterr().out
    (tmp_path / "4.png").write_bytes(b"no picture")
    assert export.main(["--checkpoint", str(checkpoint), *QUICK]) == 0  # nobody asked for these
    told = one_line(capsys)
    assert "4.png" in told and "only the test pictures are compared" in told
    assert export.main(["--checkpoint", str(checkpoint), "--data", str(tmp_path), *QUICK]) == 2
    assert "4.png" in one_line(capsys)
    assert export.main(["--checkpoint", str(checkpoint), "--data", "absent", *QUICK]) == 2
    assert "absent" in one_line(capsys)


def test_command_splits(checkpoint, tmp_path, monkeypatch, capsys):
    """The run's --val_split on the run's own data; a run without one is no reason to stop."""
    asked = []

    def real(data_arg, split, size, limit):
        asked.append((data_arg, split))
        raise export.ExportError(f"no split {split!r}")

    monkeypatch.setattr(export, "real_pictures", real)
    own, command = str(tmp_path), ["--checkpoint", str(checkpoint), *QUICK]
    for val_split, flags, expected, code in (
        ("held", [], (own, "held"), 0),
        ("none", [], (own, "val"), 0),
        ("held", ["--split", "train"], (own, "train"), 0),
        ("held", ["--data", own], (own, "held"), 2),
        ("held", ["--data", "other"], ("other", "val"), 2),
    ):
        (tmp_path / "args.json").write_text(json.dumps({"data": own, "val_split": val_split}))
        assert export.main([*command, *flags]) == code
        assert asked[-1] == expected and repr(expected[1]) in one_line(capsys)


@pytest.mark.parametrize("text", ["", "[]", '{"data": 3}', '{"seed": 0}', '{"data": "absent"}'])
def test_training_data_is_optional(tmp_path, text):
    assert export.training_data(tmp_path / "best.pt") is None
    (tmp_path / "args.json").write_text(text)
    assert export.training_data(tmp_path / "best.pt") is None


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
        ["--image_size", "480"], ["--image_size", "0x640"], ["--out", "best.pt"], ["--runs", "0"],
        ["--threads", "x"], ["--tolerance", "nan"], ["--pictures", "-1"], ["--unknown"],
    ],
)  # fmt: skip
def test_command_exit_2_for_bad_flags(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        export.main(flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, checkpoint, capsys):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(export.ExportError, match="pip install ai-edge-litert"):
        export.interpreter(b"", 1)
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
