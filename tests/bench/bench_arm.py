"""Exported files on an emulated ARM core: the same depth as here, and how many instructions.

    python tests/bench_arm.py --prepare                        once: an aarch64 Python, 0.3 GB
    python tests/bench_arm.py model.tflite model.int8.tflite   table, exit code 3 if one differs
    python tests/bench_arm.py model.tflite --predict photo.jpg     also predict.py itself

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

import predict
from plumbing.files import UserError, cache_root, write_file
from plumbing.flags import Parser
from plumbing.pictures import cv2, read_picture, resize_picture
from plumbing.runtime import read_metadata

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]


DEBS = ("python3", "python3-minimal", "libstdc++6", "libgomp1")  # libc6 and the rest come with them
# An aarch64 Python has no libGL: OpenCV comes without windows there.
GLIBC = ("2_28", "2_27", "2_17")
# What a device has, and what it has not.
SMOKE = """import importlib.util, numpy, cv2, ai_edge_litert.interpreter
assert not any(map(importlib.util.find_spec, ("torch", "tensorflow", "tflite_runtime")))"""


class ArmError(ValueError):
    """Something the user can mend; the message says what."""


# ------------------------------------------------------------------------ the aarch64 environment


def wanted() -> dict[str, str]:
    """requirements-device.txt: package -> version. OpenCV comes without windows: they would need
    libraries of a desktop, and there is none here."""
    text = (ROOT / "requirements-device.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.M))
    return {name.replace("opencv-python", "opencv-python-headless"): pins[name] for name in pins}


def tool(name: str, package: str) -> str:
    """Its path. Raises ArmError that names the package to install."""
    path = shutil.which(name)
    if path is None:
        raise ArmError(f"{name} is missing: install it first (as root: apt-get install {package})")
    return path


def call(command: list, what: str, **options) -> str:
    """stdout of a command. Raises ArmError with what failed and its last words."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode:
        words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        code = f"exit code {done.returncode}"
        if done.returncode < 0:  # a Python's last words would be a warning, not the reason
            words = [f"killed by signal {-done.returncode}"]
        raise ArmError(f"{what}: {words[-1] if words else code}")
    return done.stdout


def prepare(folder: Path) -> None:
    """An aarch64 Python with numpy, OpenCV and LiteRT under `folder`, which is replaced.

    Debian packages are unpacked, not installed, and wheels likewise: no root, and nothing outside
    of folder is touched. Raises ArmError; an older folder is then as it was.
    """
    if folder.exists() and not (folder / "arm.json").is_file() and any(folder.iterdir()):
        raise ArmError(f"{folder} holds something else: choose another --folder")
    for name in ("apt-get", "dpkg"):
        if shutil.which(name) is None:
            raise ArmError(f"{name} is missing: prepare on Debian, Ubuntu or a container of one")
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


def check(folder: Path) -> None:
    """Raises ArmError unless `folder` was prepared, with today's versions."""
    try:
        about = json.loads((folder / "arm.json").read_text())
    except (OSError, ValueError):
        again = f" --folder {folder}" if folder != default_folder() else ""
        raise ArmError(
            f"no aarch64 Python in {folder}: make it with bench_arm.py --prepare{again}"
        ) from None
    if about["wheels"] != wanted():
        has = f"{folder} has {about['wheels']}"
        raise ArmError(f"{has}, requirements-device.txt {wanted()}: --prepare it again")


def default_folder() -> Path:
    return cache_root() / "arm64"


def python_of(folder: Path) -> Path:
    names = (p for p in (folder / "sys/usr/bin").iterdir() if re.fullmatch(r"python3\.\d+", p.name))
    return next(names)


def emulated(
    folder: Path, arguments: list, what: str, *, cpu: str = "cortex-a72", qemu: tuple = ()
) -> str:
    """stdout of the emulated Python with `arguments`. Raises ArmError.

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


def plugin(target: Path) -> None:
    """insn_count.c, compiled for this host's qemu. Raises ArmError."""
    about = call([tool("qemu-aarch64", "qemu-user"), "--version"], "qemu-aarch64 --version")
    major = int(re.search(r"version (\d+)", about)[1])
    api = 1 if major < 9 else 2
    command = [tool("cc", "gcc"), "-shared", "-fPIC", "-O2", f"-DPLUGIN_API={api}"]
    call([*command, "-o", target, TESTS / "insn_count.c"], "compiling insn_count.c")


# -------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Result:
    """One file on both machines. Depths in metres (a foreign file's in its own unit)."""

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

    NaN where one of the two is not finite, so that no limit passes it. Raises ArmError for
    outputs of different shapes.
    """
    if here.shape != there.shape:
        raise ArmError(f"this host gives {here.shape} values, the emulated one {there.shape}")
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

    The last pair brackets nothing and is subtracted. Raises ArmError if marks are missing.
    """
    if len(counts) != 2 * (runs + 1):
        raise ArmError(f"{len(counts)} marks counted in place of {2 * (runs + 1)}")
    *spans, nothing = (b - a for a, b in zip(counts[::2], counts[1::2]))
    return round(statistics.median(spans)) - nothing


def pictures_for(shape: tuple[int, ...], photos: list[Path], seed: int) -> np.ndarray:
    """(n, *shape) u8: export.py's test pictures and photos; noise if shape is no (H, W, 3)."""
    if len(shape) != 3 or shape[2] != 3:
        return np.random.default_rng(seed).integers(0, 256, (2, *shape)).astype(np.uint8)
    import export

    pictures = list(export.pattern_pictures(shape[:2], seed).values())
    for path in photos:
        try:
            rgb = read_picture(path)
        except UserError as error:
            raise ArmError(f"{path}: {error}") from error
        pictures.append(resize_picture(rgb, shape[:2]))
    return np.stack(pictures)


def compare(
    path: Path, photos: list[Path], args: argparse.Namespace, counter: Path | None
) -> Result:
    """One file on both machines, on the test pictures and photos. counter: insn_count.c, compiled;
    None = do not count. Raises ArmError, predict.UserError, OSError."""
    import arm_guest

    content = path.read_bytes()
    if args.foreign:
        precision, metre = "foreign", 1.0
    else:
        metadata = read_metadata(content, str(path))
        precision = metadata["precision"]
        metre = {"m": 1.0, "mm": 1000.0}[metadata["output"]["unit"]]
    try:
        runner = arm_guest.interpreter(content)
        integers = only_integers(content)
    except (ValueError, RuntimeError) as error:
        raise ArmError(f"{path}: LiteRT cannot run it here: {error}") from error
    sources = runner.get_input_details()
    if len(sources) != 1:
        raise ArmError(f"{path}: has {len(sources)} inputs, wanted one picture")
    shape = tuple(sources[0]["shape"].tolist())[1:]
    pictures = pictures_for(shape, photos, args.seed)
    here = arm_guest.outputs(runner, pictures)
    with tempfile.TemporaryDirectory() as name:
        job = Path(name)
        (job / "model.tflite").write_bytes(content)
        np.save(job / "pictures.npy", pictures)
        qemu = ("-plugin", f"{counter},counts={job / 'counts'}") if counter else ()
        emulated(
            args.folder, [TESTS / "arm_guest.py", job, args.runs if counter else 0],
            f"{path} on the emulated {args.cpu}", cpu=args.cpu, qemu=qemu,
        )  # fmt: skip
        there = np.load(job / "outputs.npy")
        counts = list(map(int, (job / "counts").read_text().split())) if counter else []
        mm = predict_both(path, args.predict, args.folder, args.cpu, job) if args.predict else None
    error = differences(here, there) / metre
    largest = float(np.abs(here).max()) / metre
    tolerance = args.tolerance * max(1.0, largest)
    limit = 0.0 if integers else tolerance
    if precision == "int8-dynamic":
        for changed in nudged(pictures, sources[0]["dtype"]):
            echo = differences(here, arm_guest.outputs(runner, changed)).max()
            limit = max(limit, float(echo) / metre)
    return Result(
        file=str(path), megabytes=len(content) / 1e6, precision=precision,
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
        unit = "" if r.precision == "foreign" else " m"
        row = [r.file, f"{r.megabytes:.3f}", r.precision]
        row += ["" if r.instructions is None else f"{r.instructions / 1e6:.2f}"]
        row += ["none, all bits equal" if r.same_bits else f"{r.difference:.1e}{unit}"]
        row += [f"{r.close} of {r.pictures}", f"{r.limit:.1e}{unit}" if r.limit else "none"]
        row += [f"{r.predict_mm} mm"] * predicted
        rows.append([*row, "passed" if r.passed else "FAILED"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# ------------------------------------------------------------------------------------------- main


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def absolute(text: str) -> Path:
    """An argparse type: an absolute path."""
    return Path(text).absolute()


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="bench_arm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("files", nargs="*", type=Path, metavar="FILE.tflite",
        help="written by export.py; give fp32, fp16 and int8 side by side")  # fmt: skip
    p.add_argument("--prepare", action="store_true",
        help="make the aarch64 Python first: arm64 packages with apt-get from this\n"
        "host's own sources, wheels with pip; under a minute, 0.3 GB, no root")  # fmt: skip
    p.add_argument("--folder", type=absolute, default=default_folder(), metavar="DIR",
        help="where that Python is or will be (default %(default)s)")  # fmt: skip
    p.add_argument("--cpu", default="cortex-a72",
        help="what qemu emulates: cortex-a72 is a Raspberry Pi 4 (default), cortex-a76 a\n"
        "Raspberry Pi 5, whose int8 dot products save int8 files instructions")  # fmt: skip
    p.add_argument("--pictures", type=Path, metavar="DIR",
        help="compare on these pictures too, resized to the file's size. Some twenty\n"
        "real ones say more about int8 than the test pictures do")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, metavar="N",
        help="of the noise among the test pictures (default 0)")  # fmt: skip
    p.add_argument("--tolerance", type=positive, default=1e-5, metavar="M",
        help="largest difference of a file that computes in floats, in metres; times the\n"
        "largest depth where that exceeds 1 m (default 1e-5, float rounding)")  # fmt: skip
    p.add_argument("--runs", type=int, default=3, metavar="N",
        help="counted runs, the median is printed; they hardly differ (default 3)")  # fmt: skip
    p.add_argument("--no_count", action="store_true",
        help="compare only: for a host without a C compiler or a qemu without plugins")  # fmt: skip
    p.add_argument("--predict", type=Path, metavar="PICTURE",
        help="also run predict.py on this picture, emulated and here; the two depth\n"
        "PNGs may be 1 mm (of rounding) further apart than the depths")  # fmt: skip
    p.add_argument("--foreign", action="store_true",
        help="take files that export.py did not write, such as another project's. Nothing\n"
        "is verified, and their outputs are compared in their own unit")  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE",
        help="also write the results there, with the versions they were made with")  # fmt: skip
    return p


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        return run(args)
    except (ArmError, UserError, OSError) as error:
        print(f"bench_arm.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """`main` without the handling of errors."""
    if not (args.files or args.prepare):
        raise ArmError("give .tflite files, or --prepare the aarch64 Python first")
    if args.runs < 1:
        raise ArmError(f"--runs must be 1 or more, got {args.runs}")
    if args.foreign and args.predict:
        raise ArmError("--predict is for files of export.py, so not with --foreign")
    if args.prepare:
        prepare(args.folder)
    if not args.files:
        return 0
    for path in [*args.files, *([args.predict] if args.predict else [])]:
        if not path.is_file():
            raise ArmError(f"{path}: no such file")
    check(args.folder)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    photos = predict.collect([str(args.pictures)]) if args.pictures else []
    with tempfile.TemporaryDirectory() as name:
        counter = None
        if not args.no_count:
            counter = Path(name) / "insn_count.so"
            plugin(counter)
        results = []
        for path in args.files:
            print(f"{path} ...", file=sys.stderr, flush=True)
            results.append(compare(path, photos, args, counter))
    print(table(results, args.cpu))
    about = environment(args.folder)
    print("\none thread; " + ", ".join(f"{name} {version}" for name, version in about.items()))
    if args.json:
        everything = [asdict(r) | {"passed": r.passed} for r in results]
        report = {"cpu": args.cpu, "environment": about, "files": everything}
        write_file(args.json, (json.dumps(report, indent=1) + "\n").encode())
    return 0 if all(r.passed for r in results) else 3


def environment(folder: Path) -> dict[str, str]:
    """What the results depend on: name -> version."""
    qemu = call([tool("qemu-aarch64", "qemu-user"), "--version"], "qemu-aarch64 --version")
    about = json.loads((folder / "arm.json").read_text())
    return {
        "qemu": re.search(r"version (\S+)", qemu)[1], "Python": about["python"], **about["wheels"],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
