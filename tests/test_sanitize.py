"""csrc/ built with AddressSanitizer and UBSan: passes the kernels' tests without a report, and does
report what is planted.

The tests run in a process of their own, whose every allocation has red zones. LITEDEPTH_SANITIZED
(set for that process) is the folder of the sanitized build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import litedepth_kernels
import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = 40  # of each property; the plain run has more
FOLDER = os.environ.get("LITEDEPTH_SANITIZED")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that runs the sanitized kernels, which are built here. The
    sanitizers must be loaded first, as the interpreter itself is not sanitized, and the C++ library
    too: its throw must have been found before the extension calls it."""
    compiler = os.environ.get("CXX", "g++")
    if not sys.platform.startswith("linux") or not shutil.which(compiler):
        pytest.skip(f"needs Linux and {compiler}")
    libraries = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        asked = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_file():
            pytest.skip(f"{compiler} has no {name}")
        libraries.append(str(Path(path).resolve()))
    folder = tmp_path_factory.mktemp("sanitized")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    command += ["-C", "cmake.define.LITEDEPTH_SANITIZE=ON", "./csrc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return os.environ | {
        "LITEDEPTH_SANITIZED": str(folder),
        "LITEDEPTH_EXAMPLES": str(EXAMPLES),
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), str(ROOT / "tests")]),
        "LD_PRELOAD": " ".join(libraries),
        # Leaks: the interpreter never frees its own at exit, and they would be all one sees.
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99",
    }


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


def test_this_process_has_the_kernels_it_should() -> None:
    assert litedepth_kernels.sanitized == hasattr(litedepth_kernels, "undefined") == bool(FOLDER)
    if FOLDER:
        assert Path(litedepth_kernels.__file__).parent == Path(FOLDER)


@pytest.mark.skipif(bool(FOLDER), reason="builds what this process runs")
def test_the_kernels_tests_pass_without_a_report(sanitized: dict[str, str], counted) -> None:
    tests = ["tests/test_kernels.py", "tests/test_sanitize.py"]
    done = run(sanitized, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-6000:]
    assert "Sanitizer" not in text and "runtime error" not in text, text[-6000:]
    count = int(re.search(r"(\d+) passed", text)[1])
    assert count >= 110, text[-6000:]
    counted("kernel tests under AddressSanitizer and UBSan: no report", count)


# A view that lies about its size takes a kernel out of its array; no plain check can see that.
PLANTED = {
    "one byte read beyond an input": (
        "K.masked_gradient(longer(d, (4, 8)), *(np.zeros((4, 8), t) for t in 'ff??'))",
        "AddressSanitizer: heap-buffer-overflow", "READ of size",
    ),
    "one row read before an input": (
        "K.masked_gradient(longer(d[::-1], (5, 7)), *(np.zeros((5, 7), t) for t in 'ff??'))",
        "AddressSanitizer: heap-buffer-overflow", "READ of size",
    ),
    "one row written beyond an output": (
        "K.masked_gradient(np.ones((5, 7), 'f'), longer(d, (5, 7)),"
        " *(np.zeros((5, 7), t) for t in 'f??'))",
        "AddressSanitizer: heap-buffer-overflow", "WRITE of size",
    ),
    "an integer that overflows": (
        "K.undefined(2.0**31 - 1)", "runtime error: signed integer overflow", "bindings.cpp",
    ),
    "a number cast to an integer that cannot hold it": (
        "K.undefined(1e300)", "runtime error: 1e+300 is outside the range", "bindings.cpp",
    ),
}  # fmt: skip
PLANT = """
import numpy as np, litedepth_kernels as K
def longer(a, shape):
    return np.lib.stride_tricks.as_strided(a, shape, a.strides)
d = np.ones((4, 7), np.float32)
print("planted", flush=True)
{}
print("survived")
"""


@pytest.mark.skipif(bool(FOLDER), reason="builds what this process runs")
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_reported(sanitized: dict[str, str], fault: str, counted) -> None:
    statement, *reports = PLANTED[fault]
    done = run(sanitized, "-c", PLANT.format(statement))
    assert done.returncode == 99 and done.stdout == "planted\n", done.stdout + done.stderr
    assert all(text in done.stderr for text in reports), done.stderr
    counted("faults planted in the kernels: reported by the sanitizers", 1)
