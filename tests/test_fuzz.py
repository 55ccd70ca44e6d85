"""Broken files: every one is refused in one line or read as something valid (tests/fuzz.py)."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz
import pytest

from plumbing.files import UserError

KINDS = fuzz.make_kinds()


def test_every_broken_file_is_refused_or_valid(pytestconfig, counted):
    """In a process of its own: a reader that crashes or hangs is told like any other failure."""
    count = pytestconfig.getoption("--mutations")
    tallies, failures = fuzz.run(count, 0, list(KINDS))
    assert not failures, "\n".join(failures[:5])
    done = sum(sum(tally.values()) for tally in tallies.values())
    assert done >= count
    for name, tally in tallies.items():  # one that never gets past the first check tests nothing
        sealed = name in ("depth", "tflite")  # by their own checksums
        if sum(tally.values()) >= 200:
            assert tally["refused"] > 10 and (tally["valid"] > 5 or sealed), (name, tally)
    counted("damaged files read: refused or valid", done)


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_valid(tmp_path, name, monkeypatch):
    """Else every refusal above would be one of the file that it was made from."""
    monkeypatch.setattr(fuzz, "damaged", lambda rng, kind, kinds: kind.good[0])
    path = fuzz.write_case(KINDS, name, 0, 0, tmp_path)
    for content in KINDS[name].good:
        path.write_bytes(content)
        if name == "rgb" and content in KINDS[name].good[3:4]:  # half the size of its depth
            continue
        assert fuzz.attempt(KINDS[name], path) == "valid"


@pytest.mark.parametrize("name", KINDS)
def test_a_case_is_the_same_every_time(tmp_path, name):
    """(seed, kind, number) decide: a failure on one machine is seen on another."""
    for number in range(4):
        made = []
        for attempt in "ab":
            path = fuzz.write_case(KINDS, name, number, 11, tmp_path / attempt)
            made.append(path.read_bytes() if path.is_file() else None)
        assert made[0] == made[1]


# -------------------------------------------------------------------------- what the fuzzer sees

BAD_READER = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import fuzz
import numpy as np

def read(path):
    answers.append(1)
    number = len(answers) - 1
    if number == 1:
        raise KeyError("another exception")
    if number == 2:
        raise fuzz.UserError(f"{{path}}: two\\nlines")
    if number == 3:
        raise fuzz.UserError("which file?")
    if number == 4:
        raise fuzz.UserError(str(path) + "x" * 5000)
    if number == 5:
        np.ones(1 << 34)
    if number == 6:
        assert False, "not as promised"
    if number == 7:
        {end}
    raise fuzz.UserError(f"{{path}}: refused")

answers = []
fuzz.HANG, fuzz.PROGRAM = 2.0, __file__
fuzz.make_kinds = lambda: {{"rgb": KIND, "depth": KIND}}
KIND = fuzz.Kind("a.png", [b"whole"], read, (fuzz.UserError,))
sys.exit(fuzz.main())
"""
END = {"crash": "os.kill(os.getpid(), signal.SIGSEGV)", "hang": "time.sleep(60)"}


@pytest.mark.parametrize("end", END)
def test_the_fuzzer_sees_what_readers_must_not_do(tmp_path, monkeypatch, end):
    program = tmp_path / "bad_reader.py"
    program.write_text(BAD_READER.format(tests=str(Path(fuzz.__file__).parent), end=END[end]))
    monkeypatch.setattr(fuzz, "PROGRAM", program)
    tallies, failures = fuzz.run(10, 5, ["rgb"])
    told = ("KeyError: 'another", "two\nlines", "which file?", "xxx", "Memory", "as promised",
            "crashed or hung")  # fmt: skip
    assert [failure.split(":")[1] for failure in failures] == [str(n) for n in range(1, 8)]
    for number, (failure, why) in enumerate(zip(failures, told), 1):
        assert why in failure
        assert f"again: python tests/fuzz.py --case rgb:{number} --seed 5" in failure
    assert tallies["rgb"] == {"refused": 1}  # the one before them; nothing came after


def test_a_single_case_is_seen_again(tmp_path, monkeypatch, capsys):
    """--case makes the file, says where it is, and lets the reader's own error out."""
    number = next(
        n for n in range(100)
        if fuzz.damaged(random.Random(f"0:calibration:{n}"), KINDS["calibration"], KINDS) == b""
    )  # fmt: skip
    monkeypatch.setattr(fuzz.sys, "argv", ["fuzz.py", "--case", f"calibration:{number}"])
    with pytest.raises(UserError, match="calibration.json: not readable"):
        fuzz.main()
    assert Path(capsys.readouterr().out.strip()).read_bytes() == b""
