"""Exported files on an emulated ARM core: the same depth as here, and how many instructions.

    python tests/bench/bench_arm.py --prepare                       once: an aarch64 Python, 0.3 GB
    python tests/bench/bench_arm.py model.tflite model.int8.tflite  table; exit code 3: they differ
    python tests/bench/bench_arm.py model.tflite --predict photo.jpg  also predict.py itself

Each file runs under qemu's user emulation of a Cortex-A72 (the core of a Raspberry Pi 4) and on
this host, on the same pictures: export.py's test pictures (hard borders, noise) and those of
--pictures. A file that computes in integers only must give the same bits, others the same depth to
--tolerance. An int8-dynamic file chooses its scales while it runs: one rounding that falls the
other way on another machine moves the entire depth a little. It may differ by as much as it does
here, on one machine, for a change of the picture that nobody can see (`nudged`).

Instructions are counted for one run with one thread, without copies in and out, by insn_count.c.
They are exact and repeatable, but they are not time: cores differ in how many they finish per
cycle, and in how long memory keeps them waiting.

Needs Linux with apt-get (Debian, Ubuntu) and, as root, once: apt-get install qemu-user gcc
Exit code: 0 = all passed, 2 = an error, in one line, 3 = a difference too large.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
sys.path[:0] = [str(ROOT), str(BENCH)]
import arm_guest  # noqa: E402

from plumbing.files import UserError, cache_root, run_main, write_json  # noqa: E402
from plumbing.flags import Parser, count, positive  # noqa: E402
from plumbing.pictures import cv2, read_picture, resize_picture  # noqa: E402
from plumbing.report import pattern_pictures  # noqa: E402
from plumbing.runtime import read_metadata  # noqa: E402
from predict import collect  # noqa: E402

DEBS = ("python3", "python3-minimal", "libstdc++6", "libgomp1")  # libc6 and the rest come with them
GLIBC = ("2_28", "2_27", "2_17")
# What a device has, and what it has not.
SMOKE = """import importlib.util, numpy, cv2, ai_edge_litert.interpreter
assert not any(map(importlib.util.find_spec, ("torch", "tensorflow", "tflite_runtime")))"""


# ------------------------------------------------------------------------ the aarch64 environment


def wanted() -> dict[str, str]:
    """requirements-device.txt: package -> version. OpenCV comes without windows: they would need
    libraries of a desktop, and there is none here."""
    text = (ROOT / "requirements-device.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.M))
    return {name.replace("opencv-python", "opencv-python-headless"): pins[name] for name in pins}


def tool(name: str, package: str) -> str:
    """Its path. Raises UserError that names the package to install."""
    path = shutil.which(name)
    if path is None:
        raise UserError(f"{name} is missing: install it first (as root: apt-get install {package})")
    return path


def call(command: list, what: str, **options) -> str:
    """stdout of a command. Raises UserError with what failed and its last words."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or [""]
        raise UserError(f"{what} (exit code {done.returncode}): {words[-1].strip()}")
    return done.stdout


def prepare(folder: Path) -> None:
    """An aarch64 Python with numpy, OpenCV and LiteRT under `folder`, which is replaced.

    Debian packages are unpacked, not installed, and wheels likewise: no root, and nothing outside
    of folder is touched. Raises UserError; an older folder is then as it was.
    """
    if folder.exists() and not (folder / "arm.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else: choose another --folder")
    tool("dpkg", "dpkg: prepare on Debian, Ubuntu or a container of one")
    tool("qemu-aarch64", "qemu-user")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        aside = Path(name)
        new, loads = aside / "new", aside / "loads"
        for path in ("lists/partial", "cache/archives/partial", "wheels"):
            (loads / path).mkdir(parents=True)
        new.mkdir()
        (loads / "status").touch()  # nothing is installed; apt puts its locks beside this file
        settings = {
            "APT::Architecture": "arm64", "APT::Architectures": "arm64",
            "APT::Sandbox::User": "root",  # another user could not write here
            "Dir::State::Lists": loads / "lists", "Dir::State::status": loads / "status",
            "Dir::Cache": loads / "cache",
        }  # fmt: skip
        get = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
        print(f"packages: {', '.join(DEBS)} for arm64, from this host's own sources", flush=True)
        call([*get, "update"], "apt-get update for arm64")
        load = [*get, "install", "--yes", "--no-install-recommends", "--download-only", *DEBS]
        call(load, "apt-get download for arm64")
        for deb in sorted((loads / "cache/archives").glob("*.deb")):
            call(["dpkg", "-x", deb, new / "sys"], f"dpkg -x {deb.name}")
        if not (new / "sys/lib").exists():  # distributions that have everything under /usr
            (new / "sys/lib").symlink_to("usr/lib")
        version = python_of(new).name.removeprefix("python")
        print(f"wheels: {', '.join(f'{k} {v}' for k, v in wanted().items())} for its Python "
              f"{version}", flush=True)  # fmt: skip
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
        pip += [f"--platform=manylinux_{glibc}_aarch64" for glibc in GLIBC]
        pip += ["--platform=manylinux2014_aarch64", "--python-version", version]
        pip += ["--implementation=cp", f"--abi=cp{version.replace('.', '')}"]
        pip += ["--abi=abi3", "--abi=none", "-d", loads / "wheels"]
        pip += [f"{name}=={number}" for name, number in wanted().items()]
        call(pip, "pip download for aarch64")
        for wheel in sorted((loads / "wheels").glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(new / "site")
        about = {"wheels": wanted(), "python": version}
        (new / "arm.json").write_text(json.dumps(about, indent=1) + "\n")
        emulated(new, ["-c", SMOKE], "the new Python")
        shutil.rmtree(new / "pycache", ignore_errors=True)  # of paths that are about to change
        if folder.exists():
            folder.rename(aside / "old")
        new.rename(folder)
    size = sum(p.lstat().st_size for p in folder.rglob("*"))
    print(f"ready: {folder}, {size / 1e6:.0f} MB")


def check(folder: Path) -> dict:
    """What `folder` holds. Raises UserError unless it was prepared, with today's versions."""
    try:
        about = json.loads((folder / "arm.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"no aarch64 Python in {folder}: make it with --prepare") from None
    if about["wheels"] != wanted():
        raise UserError(f"{folder} has {about['wheels']}, wanted {wanted()}: --prepare it again")
    return about


def default_folder() -> Path:
    return cache_root() / "arm64"


def python_of(folder: Path) -> Path:
    names = (p for p in (folder / "sys/usr/bin").iterdir() if re.fullmatch(r"python3\.\d+", p.name))
    return next(names)


def emulated(
    folder: Path, arguments: list, what: str, *, cpu: str = "cortex-a72", qemu: tuple = ()
) -> str:
    """stdout of the emulated Python with `arguments`. Raises UserError.

    It sees the packages in folder/site alone, and no setting of this host's environment.
    """
    environment = {
        "PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/"),
        "LC_ALL": "C.UTF-8", "PYTHONPATH": str(folder / "site"),
        "PYTHONPYCACHEPREFIX": str(folder / "pycache"), "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    command = [tool("qemu-aarch64", "qemu-user"), "-cpu", cpu, "-L", folder / "sys", *qemu]
    # -S -s: no dist-packages of a Python of this host that has the same version.
    return call([*command, python_of(folder), "-S", "-s", *arguments], what, env=environment)


def qemu_version() -> str:
    said = call([tool("qemu-aarch64", "qemu-user"), "--version"], "qemu-aarch64 --version")
    return re.search(r"version (\S+)", said)[1]


def plugin(target: Path) -> None:
    """insn_count.c, compiled for this host's qemu. Raises UserError."""
    api = 1 if int(qemu_version().split(".")[0]) < 9 else 2
    command = [tool("cc", "gcc"), "-shared", "-fPIC", "-O2", f"-DPLUGIN_API={api}"]
    call([*command, "-o", target, BENCH / "insn_count.c"], "compiling insn_count.c")


# -------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Result:
    """One file on both machines; depths in metres."""

    file: str
    megabytes: float
    precision: str
    instructions: int | None  # of one run, one thread; None: not counted
    pictures: int
    close: int  # so many of them differ by no more than --tolerance allows
    largest: float  # depth on this host
    difference: float  # largest absolute one
    limit: float  # 0 = the same bits are asked for
    same_bits: bool
    predict_mm: int | None = None  # largest difference between predict.py's PNGs

    @property
    def passed(self) -> bool:
        fine = self.difference <= self.limit if self.limit else self.same_bits  # NaN: not fine
        return fine and (self.predict_mm is None or self.predict_mm <= 1 + 1000 * self.limit)


def only_integers(content: bytes) -> bool:
    """Whether no operation has floats both in and out, so that every machine must give one result.

    (QUANTIZE and DEQUANTIZE have floats on one side: one rounded product per value.)
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    runner = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    floats = {t["index"] for t in runner.get_tensor_details() if t["dtype"] == np.float32}
    return not any(
        floats & set(op["inputs"]) and floats & set(op["outputs"])
        for op in runner._get_ops_details()
    )


def differences(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Largest absolute difference of each picture: (n, values) twice -> (n,) float64.

    NaN where one of the two is not finite, so that no limit passes it.
    """
    with np.errstate(invalid="ignore"):  # inf - inf: the NaN that is wanted
        error = np.abs(here.astype(np.float64) - there).max(axis=1)
    return np.where(np.isfinite(error), error, np.nan)


def nudged(pictures: np.ndarray, dtype: type) -> Iterator[np.ndarray]:
    """The pictures eight times, with changes nobody can see: some millionths brighter or darker, or
    (an input of integers cannot be) every 97th value off by one. Several, for a change that turns
    no rounding tells nothing."""
    places = np.arange(pictures[0].size).reshape(pictures.shape[1:])
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):
        if dtype == np.float32:
            yield pictures * np.float32(1 + k * 2**-20)
        else:
            yield pictures ^ (places % 97 == k + 4).astype(np.uint8)


def per_run(counts: list[int], runs: int) -> int:
    """Instructions of one run, from the counts at the marks of arm_guest.main; the median.

    The last pair brackets nothing and is subtracted. Raises UserError if marks are missing.
    """
    if len(counts) != 2 * (runs + 1):
        raise UserError(f"{len(counts)} marks counted in place of {2 * (runs + 1)}")
    *spans, nothing = (b - a for a, b in zip(counts[::2], counts[1::2]))
    return round(statistics.median(spans)) - nothing


def compare(
    path: Path, photos: list[Path], args: argparse.Namespace, counter: Path | None
) -> Result:
    """One file on both machines, on the test pictures and photos. counter: insn_count.c, compiled;
    None = do not count. Raises UserError, OSError."""
    content = path.read_bytes()
    metadata = read_metadata(content, str(path))
    size, metre = tuple(metadata["input"]["size"]), {"m": 1, "mm": 1000}[metadata["output"]["unit"]]
    pictures = pattern_pictures(size)
    pictures = np.stack(pictures + [resize_picture(read_picture(photo), size) for photo in photos])
    lite = arm_guest.interpreter(content)
    here = arm_guest.outputs(lite, pictures)
    with tempfile.TemporaryDirectory() as name:
        job = Path(name)
        (job / "model.tflite").write_bytes(content)
        np.save(job / "pictures.npy", pictures)
        qemu = ("-plugin", f"{counter},counts={job / 'counts'}") if counter else ()
        emulated(
            args.folder, [BENCH / "arm_guest.py", job, args.runs if counter else 0],
            f"{path} on the emulated {args.cpu}", cpu=args.cpu, qemu=qemu,
        )  # fmt: skip
        there = np.load(job / "outputs.npy")
        counts = list(map(int, (job / "counts").read_text().split())) if counter else []
        mm = predict_both(path, args.predict, args.folder, args.cpu, job) if args.predict else None
    error, largest = differences(here, there) / metre, float(np.abs(here).max()) / metre
    tolerance = args.tolerance * max(1.0, largest)
    limit = 0.0 if only_integers(content) else tolerance
    if metadata["precision"] == "int8-dynamic":
        for changed in nudged(pictures, np.dtype(metadata["input"]["dtype"])):
            echo = differences(here, arm_guest.outputs(lite, changed)).max()
            limit = max(limit, float(echo) / metre)
    return Result(
        file=str(path), megabytes=len(content) / 1e6, precision=metadata["precision"],
        instructions=per_run(counts, args.runs) if counter else None, pictures=len(pictures),
        close=int((error <= tolerance).sum()), largest=largest, difference=float(error.max()),
        limit=limit, same_bits=here.tobytes() == there.tobytes(), predict_mm=mm,
    )  # fmt: skip


def predict_both(model: Path, picture: Path, folder: Path, cpu: str, job: Path) -> int:
    """Largest difference in mm of the depth that predict.py writes here and when emulated."""
    depths = []
    for machine in ("here", "there"):
        arguments = [ROOT / "predict.py", picture.resolve(), "--model", model.resolve()]
        arguments += ["--out", job / machine]
        if machine == "here":
            call([sys.executable, *arguments], "predict.py here")
        else:
            emulated(folder, arguments, f"predict.py on the emulated {cpu}", cpu=cpu)
        written = job / machine / f"{picture.stem}_depth.png"
        depths.append(cv2.imread(str(written), cv2.IMREAD_UNCHANGED))
    return int(np.abs(depths[0].astype(int) - depths[1]).max())


def table(results: list[Result], cpu: str) -> str:
    """Markdown, one row per file."""
    head = ["file", "MB", "precision", f"M instructions, {cpu}", "largest difference"]
    head += ["pictures within tolerance", "allowed"]
    predicted = any(r.predict_mm is not None for r in results)
    head += ["predict.py"] * predicted + ["verdict"]
    rows = [head, ["---"] * len(head)]
    for r in results:
        row = [r.file, f"{r.megabytes:.3f}", r.precision]
        row += ["" if r.instructions is None else f"{r.instructions / 1e6:.2f}"]
        row += ["none, all bits equal" if r.same_bits else f"{r.difference:.1e} m"]
        row += [f"{r.close} of {r.pictures}", f"{r.limit:.1e} m" if r.limit else "none"]
        row += [f"{r.predict_mm} mm"] * predicted
        rows.append([*row, "passed" if r.passed else "FAILED"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# ------------------------------------------------------------------------------------------- main


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="bench_arm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = p.add_argument
    add("files", nargs="*", type=Path, metavar="FILE.tflite",
        help="written by export.py; give fp32, fp16 and int8 side by side")  # fmt: skip
    add("--prepare", action="store_true",
        help="make the aarch64 Python first: arm64 packages with apt-get from this\n"
        "host's own sources, wheels with pip; under a minute, 0.3 GB, no root")  # fmt: skip
    add("--folder", type=Path, default=default_folder(), metavar="DIR",
        help="where that Python is or will be (default %(default)s)")  # fmt: skip
    add("--cpu", default="cortex-a72",
        help="what qemu emulates: cortex-a72 is a Raspberry Pi 4 (default), cortex-a76 a\n"
        "Raspberry Pi 5, whose int8 dot products save int8 files instructions")  # fmt: skip
    add("--pictures", type=Path, metavar="DIR",
        help="compare on these pictures too, resized to the file's size. Some twenty\n"
        "real ones say more about int8 than the test pictures do")  # fmt: skip
    add("--tolerance", type=positive, default=1e-5, metavar="M",
        help="largest difference of a file that computes in floats, in metres; times the\n"
        "largest depth where that exceeds 1 m (default 1e-5, float rounding)")  # fmt: skip
    add("--runs", type=count, default=3, metavar="N",
        help="counted runs, the median is printed; they hardly differ (default 3)")  # fmt: skip
    add("--no_count", action="store_true",
        help="compare only: for a host without a C compiler or a qemu without plugins")  # fmt: skip
    add("--predict", type=Path, metavar="PICTURE",
        help="also run predict.py on this picture, emulated and here; the two depth\n"
        "PNGs may be 1 mm (of rounding) further apart than the depths")  # fmt: skip
    add("--json", type=Path, metavar="FILE",
        help="also write the results there, with the versions they were made with")  # fmt: skip
    return p


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    args.folder = args.folder.absolute()
    if args.prepare:
        prepare(args.folder)
    elif not args.files:
        raise UserError("give .tflite files, or --prepare the aarch64 Python first")
    if not args.files:
        return 0
    about = check(args.folder)
    photos = collect([str(args.pictures)]) if args.pictures else []
    with tempfile.TemporaryDirectory() as name:
        counter = None
        if not args.no_count:
            counter = Path(name) / "insn_count.so"
            plugin(counter)
        results = [compare(path, photos, args, counter) for path in args.files]
    print(table(results, args.cpu))
    versions = {"qemu": qemu_version(), "Python": about["python"], **about["wheels"]}
    print("\none thread; " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if args.json:
        files = [asdict(r) | {"passed": r.passed} for r in results]
        write_json(args.json, {"cpu": args.cpu, "environment": versions, "files": files})
    return 0 if all(r.passed for r in results) else 3


if __name__ == "__main__":
    sys.exit(run_main(main, "bench_arm.py"))
