"""Runs .tflite files on LiteRT's GPU delegate and says what it refuses and how far it is off.

    python tests/bench/gpu_delegate.py --prepare                # once: a GPU in software, 32 MB
    python tests/bench/gpu_delegate.py runs/student/model.tflite

The delegate is the one of ai-edge-litert's wheel (ML Drift on WebGPU), which reads a graph as the
phone's does; the GPU is any that Vulkan finds, or SwiftShader, Chromium's in software. It stands in
for the converter's analyzer, whose GPU check passes every graph since TensorFlow 2.18. What is not
covered: a phone's GPU computes in half precision, SwiftShader only in float32.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plumbing.files import UserError, cache_root, run_main  # noqa: E402
from plumbing.flags import Parser, nonnegative  # noqa: E402

PACKAGES = {"chromium-common": "libvk_swiftshader.so", "libvulkan1": "libvulkan.so.1"}  # of Debian
REFUSED = re.compile(r"^([A-Z][A-Z0-9_]+): (.+)$", re.M)


def prepare(folder: Path) -> None:
    """Fetches SwiftShader and Vulkan's loader into `folder` with apt-get, installing nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for package, library in PACKAGES.items():
            fetch = subprocess.run(
                ["apt-get", "download", package], cwd=work, capture_output=True, text=True
            )
            files = sorted(Path(work).glob(f"{package}_*.deb"))
            if not files:
                raise UserError(f"{package}: apt-get update first: {fetch.stderr.strip()[-200:]}")
            tree = Path(work) / package
            subprocess.run(["dpkg-deb", "-x", files[-1], tree], check=True)
            found = sorted(tree.rglob(library))
            if not found:
                raise UserError(f"this system's package {package} holds no {library}")
            shutil.copyfile(found[0].resolve(), folder / library)
    icd = {"api_version": "1.1.0", "library_path": str(folder / PACKAGES["chromium-common"])}
    (folder / "icd.json").write_text(json.dumps({"file_format_version": "1.0.0", "ICD": icd}))


def inspect(file: str) -> None:
    """In a process of its own: runs the file on CPU and GPU, prints what came out as JSON."""
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.gpu_options import GpuOptions
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.options import Options

    content = Path(file).read_bytes()
    runner = Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    [source], target = runner.get_input_details(), runner.get_output_details()[0]
    shape, dtype = tuple(source["shape"]), np.dtype(source["dtype"])
    GPU, CPU = HardwareAccelerator.GPU, HardwareAccelerator.CPU
    float32 = GpuOptions(enforce_f32=True)
    try:
        options = Options(hardware_accelerators=GPU, gpu_options=float32)
        model, whole = CompiledModel.from_buffer(content, options=options), True
    except RuntimeError:  # alone it takes all or nothing; is_fully_accelerated() counts XNNPACK in
        options = Options(hardware_accelerators=GPU | CPU, gpu_options=float32)
        try:
            model, whole = CompiledModel.from_buffer(content, options=options), False
        except RuntimeError:  # it took operations that it then cannot build
            print(json.dumps({"whole": False, "max_abs": None, "largest": 0.0}))
            return
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    worst, largest = 0.0, 0.0
    noise = np.random.default_rng(0).integers(0, 256, shape)
    frame = np.full(shape, 255)
    frame[:, 1:-1, 1:-1] = 0
    for picture in (noise, frame):
        picture = picture.astype(dtype)
        runner.set_tensor(source["index"], picture)
        runner.invoke()
        expected = runner.get_tensor(target["index"])
        inputs[0].write(np.ascontiguousarray(picture))
        model.run_by_index(0, inputs, outputs)
        got = outputs[0].read(expected.size, expected.dtype.type).reshape(expected.shape)
        off = np.abs(got.astype(np.float64) - expected)
        worst = max(worst, float(np.nan_to_num(off, nan=np.inf).max()))
        largest = max(largest, float(np.abs(expected.astype(np.float64)).max()))
    print(json.dumps({"whole": whole, "max_abs": worst, "largest": largest}))


def refusals(log: str) -> list[str]:
    """ "OP: why" of each kind of operation that the delegate would not take, from its log."""
    _, found, rest = log.partition("not supported by GPU delegate:\n")
    if not found:
        return []
    lines, _, _ = rest.partition(" operations will run on the GPU")
    return list(dict.fromkeys(f"{op}: {why}" for op, why in REFUSED.findall(lines)))


def check(file: Path, folder: Path) -> dict:
    """What `inspect` found, with "refused". Raises UserError where nothing could be run."""
    if not file.is_file() or file.read_bytes()[4:8] != b"TFL3":
        raise UserError(f"{file}: no such file, or not a TFLite file")
    env = dict(os.environ)
    if (folder / "icd.json").is_file():
        env["VK_ICD_FILENAMES"] = str(folder / "icd.json")
        env["LD_LIBRARY_PATH"] = os.pathsep.join([str(folder), env.get("LD_LIBRARY_PATH", "")])
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += "import gpu_delegate; gpu_delegate.inspect(sys.argv[1])"
    command = [sys.executable, "-c", code, str(file)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if "No adapters found" in result.stderr:
        raise UserError("Vulkan finds no GPU here: --prepare fetches one in software")
    if result.returncode:
        said = result.stderr.strip().splitlines()
        errors = [line for line in said if re.match(r"\w*Error", line)]
        raise UserError(f"{file}: {(errors or said or ['no word'])[-1]}")
    found = json.loads(result.stdout.strip().splitlines()[-1])
    return found | {"refused": refusals(result.stderr)}


def verdict(found: dict, tolerance: float) -> list[str]:
    """What is wrong, in words: one that says it is whole and no other where nothing is."""
    limit = tolerance * max(1.0, found["largest"])
    if found["max_abs"] is None:
        return ["CANNOT BE STARTED there, not even in part", *found["refused"]]
    told = ["whole on the GPU"] if found["whole"] else ["IN PART", *found["refused"]]
    return told + [f"DIFFERS by more than {limit:.1e}"] * (not found["max_abs"] <= limit)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="gpu_delegate.py",
        description="Run .tflite files on LiteRT's GPU delegate and compare with the CPU.",
        epilog="exit code: 0 every file runs whole on the GPU and equal; 2 an error, in one line; "
        "3 operations stay on the CPU, or the result differs",
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.tflite",
        help="files to run; each takes one picture")  # fmt: skip
    parser.add_argument("--prepare", action="store_true",
        help="first fetch SwiftShader (out of Debian's chromium-common) and Vulkan's loader with "
        "apt-get; nothing is installed. Unneeded where Vulkan finds a GPU")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=cache_root() / "swiftshader", metavar="DIR",
        help="where --prepare keeps them (default: swiftshader in the cache folder)")  # fmt: skip
    parser.add_argument("--tolerance", type=nonnegative, default=1e-4, metavar="T",
        help="largest difference allowed, times the largest output where that exceeds 1; full "
        "int8 files want more, the GPU computes them in float (default 1e-4)")  # fmt: skip
    args = parser.parse_args(argv)
    folder, good = args.folder.resolve(), True
    if args.prepare:
        prepare(folder)
    elif not args.files:
        raise UserError("name the files to run (--help explains)")
    print("| file | largest difference from the CPU | GPU delegate |\n|---|--:|---|")
    for file in args.files:
        found = check(file, folder)
        told = verdict(found, args.tolerance)
        good = good and told == ["whole on the GPU"]
        shown = "-" if found["max_abs"] is None else f"{found['max_abs']:.1e}"
        print(f"| {file.name} | {shown} | {'; '.join(told)} |")
    return 0 if good else 3


if __name__ == "__main__":
    sys.exit(run_main(main, "gpu_delegate.py"))
