"""tests/bench_arm.py: what it lets pass and what not, and insn_count.c against a hand count."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from plumbing.runtime import seal

TESTS = Path(__file__).resolve().parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

pytest.importorskip("ai_edge_litert")
import arm_guest  # noqa: E402
import bench_arm  # noqa: E402

SIZE = (48, 64)


def result(**changes) -> bench_arm.Result:
    values = {
        "file": "x.tflite", "megabytes": 1.0, "precision": "fp32", "instructions": 12_378_383,
        "pictures": 6, "close": 6, "largest": 5.0, "difference": 1e-6, "limit": 5e-5,
        "same_bits": False,
    }  # fmt: skip
    return bench_arm.Result(**(values | changes))


# ------------------------------------------------------------------------------- logic, by hand


def test_differences_are_absolute_and_per_picture():
    here = np.float32([[1, 2, 3], [0, 0, 0], [4, 4, 4]])
    there = np.float32([[1, 2.5, 2.75], [0, 0, 0], [4, 3, 5]])  # the last one's mean is 0
    assert bench_arm.differences(here, there).tolist() == [0.5, 0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(bad):
    broken = np.float32([[1, bad], [1, 2]])
    for here, there in ((broken, np.ones((2, 2), np.float32)), (broken, broken)):
        error = bench_arm.differences(here, there)
        assert np.isnan(error[0]) and np.isfinite(error[1])
    assert not result(difference=float("nan")).passed


def test_other_shapes_are_an_error():
    with pytest.raises(bench_arm.ArmError, match="4 values|, 4"):
        bench_arm.differences(np.zeros((1, 4)), np.zeros((1, 3)))


def test_verdicts():
    assert result().passed
    assert not result(difference=6e-5).passed
    assert result(limit=0.0, same_bits=True, difference=0.0).passed
    assert not result(limit=0.0, difference=0.0).passed  # -0.0 for 0.0 is not the same bits
    assert result(predict_mm=1).passed and not result(predict_mm=2).passed
    assert result(limit=0.02, predict_mm=20).passed  # an int8-dynamic file's echo, and rounding


def test_one_run_is_the_median_without_what_the_marks_cost():
    counts = [100, 1150, 2000, 3050, 4000, 9000, 9500, 9550]  # spans 1050, 1050, 5000; nothing 50
    assert bench_arm.per_run(counts, 3) == 1000
    with pytest.raises(bench_arm.ArmError, match="7 marks"):
        bench_arm.per_run(counts[1:], 3)


def test_nudges_are_small_and_all_different():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3)).astype(np.uint8)
    floats = list(bench_arm.nudged(pictures, np.float32))
    assert all(0 < np.abs(changed - pictures).max() <= 255 * 4e-6 for changed in floats)
    integers = list(bench_arm.nudged(pictures, np.uint8))
    for changed in integers:
        moved = np.abs(changed.astype(int) - pictures)
        assert moved.max() == 1
        assert all(np.count_nonzero(one) in (95, 96) for one in moved)  # 9216 values, one of 97
    for changed in (floats, integers):
        assert len({pictures.tobytes() for pictures in changed}) == 8


def test_table_names_units_and_instructions():
    rows = bench_arm.table(
        [result(), result(limit=0.0, same_bits=True), result(precision="foreign", difference=1.0)],
        "cortex-a72",
    ).splitlines()
    assert "M instructions, cortex-a72" in rows[0] and "predict.py" not in rows[0]
    assert "12.38 | 1.0e-06 m | 6 of 6 | 5.0e-05 m | passed" in rows[2]
    assert "none, all bits equal | 6 of 6 | none | passed" in rows[3]
    assert "1.0e+00 | 6 of 6 | 5.0e-05 | FAILED" in rows[4]


def test_versions_are_those_of_a_device():
    wanted = bench_arm.wanted()
    lines = (bench_arm.ROOT / "requirements-device.txt").read_text()
    assert set(wanted) == {"numpy", "ai-edge-litert", "opencv-python-headless"}
    for name, version in wanted.items():
        assert f"\n{name.removesuffix('-headless')}=={version}" in lines


class Fake:
    """An interpreter that doubles its input; `index` 0 is the input, 1 the output."""

    def __init__(self, dtype):
        self.dtype = dtype

    def get_input_details(self):
        return [{"index": 0, "dtype": self.dtype}]

    def get_output_details(self):
        return [{"index": 1}]

    def set_tensor(self, index, value):
        assert index == 0 and value.dtype == self.dtype
        self.value = value

    def invoke(self):
        self.result = 2 * self.value.astype(np.int32)

    def get_tensor(self, index):
        return self.result


@pytest.mark.parametrize("dtype, shift", [(np.float32, 0), (np.uint8, 0), (np.int8, 128)])
def test_pictures_become_what_the_input_takes(dtype, shift):
    pictures = np.uint8([[[0, 127]], [[128, 255]]])
    expected = 2 * (pictures.reshape(2, 2).astype(int) - shift)
    assert (arm_guest.outputs(Fake(dtype), pictures) == expected).all()


# --------------------------------------------------------------- the whole way, ARM played by us


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A small network, sealed, as fp32 in m and in mm, int8-dynamic and int8."""
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    kernels = [rng.normal(0, s, (3, 3, i, o)) for s, i, o in ((0.002, 3, 64), (0.05, 64, 64))]
    last = np.abs(rng.normal(0, 0.3, (1, 1, 64, 1)))

    @tf.function(input_signature=[tf.TensorSpec((1, *SIZE, 3), tf.float32)], autograph=False)
    def network(x):
        for kernel in kernels:
            x = tf.nn.relu(tf.nn.conv2d(x, kernel.astype(np.float32), 1, "SAME"))
        return tf.nn.conv2d(x, last.astype(np.float32), 1, "SAME")

    def convert(**options) -> bytes:
        graph = network.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], network)
        for name, value in options.items():
            setattr(converter, name, value)
        return converter.convert()

    def pictures():
        for _ in range(4):
            yield [rng.integers(0, 256, (1, *SIZE, 3)).astype(np.float32)]

    small = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    contents = {
        "fp32": convert(), "mm": convert(), "int8-dynamic": convert(**small),
        "int8": convert(**small, representative_dataset=pictures),
    }  # fmt: skip
    folder, paths = tmp_path_factory.mktemp("files"), {}
    for name, content in contents.items():
        metadata = {
            "precision": name.replace("mm", "fp32"),
            "input": {"size": SIZE, "dtype": "float32", "layout": "NHWC", "channels": "RGB",
                      "range": [0, 255]},
            "output": {"size": SIZE, "dtype": "float32", "layout": "NHWC",
                       "unit": "mm" if name == "mm" else "m"},
        }  # fmt: skip
        paths[name] = folder / f"{name}.tflite"
        paths[name].write_bytes(seal(content, metadata))
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
    versions = {"wheels": bench_arm.wanted(), "python": "3.11"}
    (tmp_path / "arm64").mkdir()
    (tmp_path / "arm64/arm.json").write_text(json.dumps(versions))
    monkeypatch.setattr(bench_arm, "emulated", emulated)
    monkeypatch.setattr(bench_arm, "environment", lambda folder: {"qemu": "7.2"})
    emulated.run = lambda *arguments: bench_arm.main(
        [*map(str, arguments), "--folder", str(tmp_path / "arm64"), "--no_count"]
    )
    return emulated


def test_only_integer_graphs_are_held_to_the_bit(files):
    exact = {name: bench_arm.only_integers(path.read_bytes()) for name, path in files.items()}
    assert exact == {"fp32": False, "mm": False, "int8-dynamic": False, "int8": True}


def test_equal_files_pass_and_are_reported(files, arm, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert arm.run(*files.values(), "--json", report) == 0
    out = capsys.readouterr().out
    assert out.count("all bits equal") == out.count("| passed |") == 4
    rows = json.loads(report.read_text())["files"]
    assert [r["precision"] for r in rows] == ["fp32", "fp32", "int8-dynamic", "int8"]
    assert all(r["passed"] and r["same_bits"] and r["pictures"] == 6 for r in rows)
    here = [r["largest"] for r in rows]
    assert here[0] == pytest.approx(1000 * here[1])  # both in metres
    assert rows[0]["limit"] == pytest.approx(1e-5 * max(1, here[0]))
    assert rows[3]["limit"] == 0 < rows[0]["limit"] < rows[2]["limit"]  # the echo


@pytest.mark.parametrize(
    "name, by, code, close",
    [("fp32", 0.5, 0, 6), ("fp32", 1.5, 3, 5), ("fp32", np.nan, 3, 5), ("mm", 900, 0, 6),
     ("mm", 1100, 3, 5), ("int8", 1e-4, 3, 6)],
)  # fmt: skip
def test_one_wrong_value_in_one_picture(files, arm, name, by, code, close, capsys):
    """by: times the tolerance of 1e-5 times the largest depth; a mm file's limit is 1e-5 m."""

    def spoil(outputs):
        place = np.unravel_index(np.abs(outputs).argmin(), outputs.shape)  # finest steps of float
        outputs[place] += by * 1e-5 * (1.0 if name == "mm" else max(1.0, np.abs(outputs).max()))
        return outputs

    arm.spoil = spoil
    assert arm.run(files[name], "--seed", 1) == code
    assert f"{close} of 6" in capsys.readouterr().out


def test_dynamic_files_may_differ_by_their_echo_only(files, arm, tmp_path):
    export = pytest.importorskip("export")
    report = tmp_path / "report.json"
    arm.run(files["int8-dynamic"], "--json", report)
    [row] = json.loads(report.read_text())["files"]
    pictures = np.stack(list(export.pattern_pictures(SIZE, 0).values()))
    runner = arm_guest.interpreter(files["int8-dynamic"].read_bytes())
    here = arm_guest.outputs(runner, pictures)
    echo = [
        np.abs(arm_guest.outputs(runner, np.float32(pictures * (1 + k / 2**20))) - here).max()
        for k in (-4, -3, -2, -1, 1, 2, 3, 4)
    ]
    assert row["limit"] == pytest.approx(max(echo), rel=1e-6)
    assert row["limit"] > 2e-5 * row["largest"]  # it is the echo, not the tolerance, that shows
    for factor, code in ((0.9, 0), (1.1, 3)):
        arm.spoil = lambda outputs, by=factor * row["limit"]: outputs + np.float32(by)
        assert arm.run(files["int8-dynamic"]) == code


def test_predict_runs_on_both(files, arm, tmp_path, capsys):
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (60, 80, 3)))
    assert arm.run(files["fp32"], "--predict", picture) == 0
    assert "| 0 mm | passed |" in capsys.readouterr().out


def test_damaged_and_foreign_files_are_refused(files, arm, tmp_path, capsys):
    content = bytearray(files["fp32"].read_bytes())
    content[3000] ^= 1
    path = tmp_path / "damaged.tflite"
    path.write_bytes(content)
    assert arm.run(path) == 2 and "checksum" in capsys.readouterr().err
    path.write_bytes(content[: content.index(b"litedepth.json") - 30])
    assert arm.run(path) == 2 and "write it again" in capsys.readouterr().err
    assert arm.run(tmp_path / "none.tflite") == 2 and "no such file" in capsys.readouterr().err


def test_foreign_files_are_compared_when_asked(files, arm, tmp_path, capsys):
    content = files["int8"].read_bytes()
    path = tmp_path / "other.tflite"
    path.write_bytes(content[: content.index(b"litedepth.json") - 30])
    assert arm.run(path, "--foreign") == 0
    assert "| foreign |" in capsys.readouterr().out


# --------------------------------------------------------------------------------- what is missing


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("bench_arm.py: error: ") and error.count("\n") == 1
    return error


def test_errors_name_the_cure(files, arm, tmp_path, capsys, monkeypatch):
    model = str(files["fp32"])
    assert bench_arm.main([]) == 2 and "--prepare" in one_line(capsys)
    nowhere = str(tmp_path / "nowhere")
    assert bench_arm.main([model, "--folder", nowhere]) == 2
    assert f"--prepare --folder {nowhere}" in one_line(capsys)
    (tmp_path / "arm64/arm.json").write_text('{"wheels": {"numpy": "1.0"}}')
    assert arm.run(model) == 2 and "'numpy': '1.0'" in one_line(capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    assert bench_arm.main(["--prepare", "--folder", str(tmp_path / "full")]) == 2
    assert "something else" in one_line(capsys) and (tmp_path / "full/thesis.tex").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench_arm.main(["--prepare", "--folder", nowhere]) == 2
    assert "Debian" in one_line(capsys)
    for name, package in (("qemu-aarch64", "qemu-user"), ("cc", "gcc")):
        with pytest.raises(bench_arm.ArmError, match=f"apt-get install {package}"):
            bench_arm.tool(name, package)


def test_a_failed_command_is_told_in_its_last_words():
    broken = [sys.executable, "-c", "import sys; sys.exit('first\\nlast')"]
    with pytest.raises(bench_arm.ArmError, match="^trying: last$"):
        bench_arm.call(broken, "trying")
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(bench_arm.ArmError, match="killed by signal 9"):
        bench_arm.call(killed, "trying")


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
@pytest.mark.parametrize("loops", [1, 1000, 65535])
def test_plugin_counts_what_is_counted_by_hand(tmp_path, loops):
    program, counter = tmp_path / "program", tmp_path / "insn_count.so"
    program.write_bytes(arm_program(loops))
    program.chmod(0o755)
    bench_arm.plugin(counter)
    counts = tmp_path / "counts"
    qemu = ["qemu-aarch64", "-plugin", f"{counter},counts={counts}"]
    subprocess.run([*qemu, program], check=True)
    first, second = map(int, counts.read_text().split())
    assert second - first == 1 + 2 * loops + 2  # mov; sub and cbnz, `loops` times; mov, svc


@pytest.mark.skipif(
    not (bench_arm.default_folder() / "arm.json").is_file() or not shutil.which("qemu-aarch64"),
    reason="needs tests/bench_arm.py --prepare",
)
def test_emulated_arm_gives_the_same_depth(files, capsys):
    assert bench_arm.main([str(files["fp32"]), str(files["int8"]), "--no_count"]) == 0
    assert capsys.readouterr().out.count("| passed |") == 2
