"""tests/bench/bench_arm.py: what it lets pass and what not, and insn_count.c by a hand count."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plumbing.files import UserError, run_main
from plumbing.report import pattern_pictures
from plumbing.runtime import seal

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
pytest.importorskip("ai_edge_litert")
import arm_guest  # noqa: E402
import bench_arm  # noqa: E402

SIZE = (48, 64)


def test_one_run_is_the_median_without_what_the_marks_cost():
    counts = [100, 1150, 2000, 3050, 4000, 9000, 9500, 9550]  # spans 1050, 1050, 5000; nothing 50
    assert bench_arm.per_run(counts, 3) == 1000
    with pytest.raises(UserError, match="7 marks"):
        bench_arm.per_run(counts[1:], 3)


# --------------------------------------------------------------- the whole way, ARM played by us


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A small network, sealed, as fp32 in mm, int8-dynamic and int8."""
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    kernels = [rng.normal(0, s, (3, 3, i, o)) for s, i, o in ((0.002, 3, 64), (0.05, 64, 64))]
    last = np.abs(rng.normal(0, 0.3, (1, 1, 64, 1)))

    @tf.function(input_signature=[tf.TensorSpec((1, *SIZE, 3), tf.float32)], autograph=False)
    def network(x):
        for kernel in kernels:
            x = tf.nn.relu(tf.nn.conv2d(x, kernel.astype(np.float32), 1, "SAME"))
        return tf.nn.conv2d(x, last.astype(np.float32), 1, "SAME")

    def pictures():
        for picture in pattern_pictures(SIZE):
            yield [picture[None].astype(np.float32)]

    folder, paths = tmp_path_factory.mktemp("files"), {}
    for name, unit in (("fp32", "mm"), ("int8-dynamic", "m"), ("int8", "m")):
        graph = network.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], network)
        converter.optimizations = [] if name == "fp32" else [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = pictures if name == "int8" else None
        source = {"size": SIZE, "dtype": "float32", "layout": "NHWC", "channels": "RGB",
                  "range": [0, 255]}  # fmt: skip
        target = {"size": SIZE, "dtype": "float32", "layout": "NHWC", "unit": unit}
        about = {"precision": name, "input": source, "output": target}
        paths[name] = folder / f"{name}.tflite"
        paths[name].write_bytes(seal(converter.convert(), about))
    return paths


@pytest.fixture
def arm(monkeypatch, tmp_path):
    """In place of the emulator this very Python; `arm.spoil` is done to the outputs it gives."""

    def emulated(folder, arguments, what, *, cpu="cortex-a72", qemu=()):
        if Path(arguments[0]).name == "predict.py":
            return bench_arm.call([sys.executable, *arguments], what)
        job = Path(arguments[1])
        arm_guest.main(job, 0)
        np.save(job / "outputs.npy", emulated.spoil(np.load(job / "outputs.npy")))

    emulated.spoil = lambda outputs: outputs
    (tmp_path / "arm64").mkdir()
    about = {"wheels": bench_arm.wanted(), "python": "3.11"}
    (tmp_path / "arm64/arm.json").write_text(json.dumps(about))
    monkeypatch.setattr(bench_arm, "emulated", emulated)
    monkeypatch.setattr(bench_arm, "qemu_version", lambda: "7.2")
    emulated.run = lambda *arguments: run_main(
        lambda: bench_arm.main(
            [*map(str, arguments), "--folder", str(tmp_path / "arm64"), "--no_count"]
        ), "bench_arm.py",
    )  # fmt: skip
    return emulated


def test_equal_files_pass_and_are_reported(files, arm, tmp_path, capsys):
    report, scene = tmp_path / "report.json", bench_arm.ROOT / "docs/scene.jpg"
    assert arm.run(*files.values(), "--json", report, "--predict", scene) == 0
    out = capsys.readouterr().out
    assert out.count("all bits equal") == out.count("| 0 mm | passed |") == 3
    rows = json.loads(report.read_text())["files"]
    assert [r["precision"] for r in rows] == ["fp32", "int8-dynamic", "int8"]
    assert all(r["passed"] and r["same_bits"] and r["pictures"] == 6 for r in rows)
    assert rows[1]["largest"] == pytest.approx(1000 * rows[0]["largest"], rel=0.1)  # in metres
    assert rows[0]["limit"] == pytest.approx(1e-5 * max(1, rows[0]["largest"]))
    assert rows[2]["limit"] == 0 < rows[0]["limit"] < rows[1]["limit"]  # the echo


@pytest.mark.parametrize(
    "name, by, code, close",
    [("fp32", 900, 0, 6), ("fp32", 1100, 3, 5), ("fp32", np.nan, 3, 5), ("int8", 1e-4, 3, 6)],
)
def test_one_wrong_value_in_one_picture(files, arm, name, by, code, close, capsys):
    """by: times the tolerance of 1e-5 m, in mm for fp32; an integer file is held to the bit."""

    def spoil(outputs):
        place = np.unravel_index(np.abs(outputs).argmin(), outputs.shape)  # finest steps of float
        outputs[place] += by * 1e-5
        return outputs

    arm.spoil = spoil
    assert arm.run(files[name]) == code
    assert f"{close} of 6" in capsys.readouterr().out


def test_dynamic_files_may_differ_by_their_echo_only(files, arm, tmp_path):
    report = tmp_path / "report.json"
    assert arm.run(files["int8-dynamic"], "--json", report) == 0
    [row] = json.loads(report.read_text())["files"]
    pictures = np.stack(pattern_pictures(SIZE))
    lite = arm_guest.interpreter(files["int8-dynamic"].read_bytes())
    here = arm_guest.outputs(lite, pictures)
    echo = [
        np.abs(arm_guest.outputs(lite, np.float32(pictures * (1 + k / 2**20))) - here).max()
        for k in (-4, -3, -2, -1, 1, 2, 3, 4)
    ]
    assert row["limit"] == pytest.approx(max(echo), rel=1e-6)
    for factor, code in ((0.9, 0), (1.1, 3)):
        arm.spoil = lambda outputs, by=factor * row["limit"]: outputs + np.float32(by)
        assert arm.run(files["int8-dynamic"]) == code


def test_errors_name_the_cure(files, arm, tmp_path, capsys):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(files["fp32"].read_bytes()[:3000])
    assert arm.run() == 2 and "--prepare" in capsys.readouterr().err
    assert arm.run(damaged) == 2 and "copy it anew" in capsys.readouterr().err
    (tmp_path / "arm64/arm.json").write_text('{"wheels": {"numpy": "1.0"}}')
    assert arm.run(files["fp32"]) == 2 and "'numpy': '1.0'" in capsys.readouterr().err
    (tmp_path / "arm64/arm.json").rename(tmp_path / "arm64/thesis.tex")
    assert arm.run("--prepare") == 2 and "something else" in capsys.readouterr().err
    assert arm.run(files["fp32"]) == 2 and "--prepare" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- with qemu


def arm_program(loops: int) -> bytes:
    """A static aarch64 executable, written by hand: mark, count down from `loops`, mark, exit."""
    mark = [0xD2800000 | 173 << 5 | 8, 0xD4000001]  # mov x8, #173 (getppid); svc #0
    body = [0xD2800000 | loops << 5, 0xD1000400, 0xB5FFFFE0]  # mov x0; sub x0, x0, #1; cbnz x0, -4
    leave = [0xD2800000 | 93 << 5 | 8, 0xD2800000, 0xD4000001]  # exit(0)
    code = struct.pack(f"<{len(mark) * 2 + len(body) + len(leave)}I", *mark, *body, *mark, *leave)
    base, head = 0x400000, 64 + 56
    elf = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 183, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = head + len(code)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


@pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("cc")), reason="needs qemu-user and gcc"
)
def test_plugin_counts_what_is_counted_by_hand(tmp_path):
    program, counter, counts = (tmp_path / name for name in ("program", "count.so", "counts"))
    bench_arm.plugin(counter)
    for loops in (1, 65535):
        program.write_bytes(arm_program(loops))
        program.chmod(0o755)
        qemu = ["qemu-aarch64", "-plugin", f"{counter},counts={counts}"]
        subprocess.run([*qemu, program], check=True)
        first, second = map(int, counts.read_text().split())
        assert second - first == 1 + 2 * loops + 2  # mov; sub and cbnz, `loops` times; mov, svc


@pytest.mark.skipif(
    not (bench_arm.default_folder() / "arm.json").is_file() or not shutil.which("qemu-aarch64"),
    reason="needs tests/bench/bench_arm.py --prepare",
)
def test_emulated_arm_gives_the_same_depth(files, capsys):
    assert bench_arm.main([str(files["fp32"]), str(files["int8"]), "--no_count"]) == 0
    assert capsys.readouterr().out.count("| passed |") == 2
