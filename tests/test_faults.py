"""Faults on purpose: every one ends in a clear message, and nothing is lost.

Whatever hits a run, its checkpoints stay readable and `--resume` gives the bits of a run that was
left alone. `--kills N` sets how often a run is killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import flags, rows, write_pairs

import data
import losses
import model
import plumbing.files
import plumbing.run
import train
from evaluate import Validator
from plumbing.checkpoints import CheckpointError, read_checkpoint
from plumbing.files import UserError
from plumbing.pairs import DataError
from plumbing.run import FILES, run_folder, write_log

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, limits and mounts of POSIX")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(root, "train", 12)
    write_pairs(root, "val", 3)
    return root


def one_thread(root: Path, out: Path, *more: str) -> list[str]:
    """Three steps an epoch, on one thread: runs are compared bit for bit."""
    return flags(root, out, "--threads", "1", "--workers", "1", *more)


def content(path: Path) -> dict:
    return read_checkpoint(path)


def same_run(a: Path, b: Path) -> None:
    """Weights, running statistics, Adam's moments, loss weights and log, bit for bit."""
    for name in ("last.pt", "best.pt"):
        if not (a / name).exists():
            assert not (b / name).exists()
            continue
        one, two = content(a / name), content(b / name)
        for k, v in one["model"].items():
            assert torch.equal(v, two["model"][k]), (name, k)
        for k, v in one["objective"].items():
            assert torch.equal(v, two["objective"][k]), (name, k)
        for i, moments in one["optimizer"]["state"].items():
            for k, v in moments.items():
                assert torch.equal(v, two["optimizer"]["state"][i][k]), (name, i, k)
        assert all(one[k] == two[k] for k in ("epoch", "batch", "step", "best")), name
    timing = ("images_per_s", "val_s")
    logs = [[{k: v for k, v in r.items() if k not in timing} for r in rows(p)] for p in (a, b)]
    assert logs[0] == logs[1]


class Zygote:
    """Runs of train.py that start in no time; see zygote.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/zygote.py")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def start(self, args: list[str], limit: int | None = None) -> int:
        """The number of a process that runs train.py; `end` must be called before the next."""
        order = {"args": args, "out": str(self.folder / "told"), "limit": limit}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Its exit code (-9: killed) and all that it printed, when it has ended."""
        code = int(self.process.stdout.readline())
        return code, (self.folder / "told").read_text()

    def run(self, args: list[str], limit: int | None = None) -> tuple[int, str]:
        self.start(args, limit)
        return self.end()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory) -> Iterator[Zygote]:
    z = Zygote(tmp_path_factory.mktemp("zygote"))
    yield z
    z.process.stdin.close()
    z.process.wait(timeout=30)


@pytest.fixture(scope="module")
def alone(root, zygote, tmp_path_factory) -> Callable[..., Path]:
    """alone(flags ...): the folder of a run that is left alone; each is made once. Look only."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*more: str) -> Path:
        if more not in made:
            out = tmp_path_factory.mktemp("alone") / "run"
            code, told = zygote.run(one_thread(root, out, *more))
            assert code == 0, told
            made[more] = out
        return made[more]

    return run


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of that size, mounted on `folder`; skips where this may not be done."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting wants root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def is_one_clear_line(told: str, *words: str) -> bool:
    """An error of train.py's own, no traceback, that says all of `words`."""
    (line,) = [s for s in told.splitlines() if s.startswith("train.py: error: ")] or [""]
    return "Traceback" not in told and all(word in line for word in words)


def all_readable(out: Path) -> int:
    """How many checkpoints there are in a folder; each of them must be whole."""
    found = list(out.glob("[!.]*.pt"))
    for path in found:
        assert content(path)["optimizer"]["state"] is not None
    return len(found)


# ------------------------------------------------------------------------------------------ killed


def test_kill_9_at_random_moments(root, tmp_path, zygote, alone, request, counted):
    """Within half a second of its start, packing included, or of its first save: while it trains,
    saves, validates or logs. A round ends when the run does."""
    kills, rng = request.config.getoption("--kills"), random.Random(6)
    more = ("--epochs", "24", "--save_minutes", "0.001", "--dynamic_weights")
    whole = alone(*more)
    done = seen = rounds = 0
    while done < kills:
        out, code = tmp_path / f"run{rounds}", None
        command = one_thread(root, out, *more, "--cache", str(tmp_path / f"cache{rounds}"))
        while code != 0:
            begun = age(out / "last.pt")
            pid = zygote.start([*command, "--resume"])
            if done < kills:
                late, deadline = rng.random() < 0.7, time.time() + 120
                while late and age(out / "last.pt") == begun:
                    assert time.time() < deadline
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.5))
                os.kill(pid, signal.SIGKILL)  # not yet waited for: its number is still its own
            code, told = zygote.end()
            assert code in (0, -9), told
            done += code == -9
            seen += all_readable(out)
            assert (out / "last.pt").exists() or not (out / "log.jsonl").exists()
        same_run(whole, out)
        # nothing half written is left
        assert {p.name for p in out.iterdir()} - {".run.lock"} == set(FILES)
        rounds += 1
    assert seen >= kills / 2  # checkpoints of killed runs that were looked at
    counted("kill -9: no checkpoint unreadable, resume bit-identical", done)


def age(path: Path) -> int:
    """When a file was last written, 0 for none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def test_sigterm_at_random_moments(root, tmp_path, zygote, alone, counted):
    rng = random.Random(7)
    more = ("--epochs", "12")
    whole, out, done, code = alone(*more), tmp_path / "run", 0, None
    while code != 0:
        pid = zygote.start([*one_thread(root, out, *more), "--resume"])
        if done < 4:
            time.sleep(rng.uniform(0.3, 1.2))
            os.kill(pid, signal.SIGTERM)
        code, told = zygote.end()
        assert code in (0, 143, -15) and "Traceback" not in told  # -15: before it trains
        assert code != 143 or "to go on" in told
        done += code != 0
        all_readable(out)
    same_run(whole, out)
    counted("SIGTERM: saved in mid-epoch, resume bit-identical", done)


@pytest.mark.parametrize("where", ["after the steps", "after best.pt", "after the log"])
def test_killed_between_two_files(root, tmp_path, alone, monkeypatch, where, counted):
    """At an epoch's end four files are written one after the other."""
    whole = alone("--epochs", "3")

    class Killed(Exception):
        pass

    def kill(*_: object) -> None:
        raise Killed

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        save = model.save

        def hit(path: Path, *args: object, **state: object) -> None:
            save(path, *args, **state)
            if path.name == "best.pt" and where == "after best.pt" and state["epoch"] == 2:
                kill()

        patch.setattr(model, "save", hit)
        scores = iter([0.5, 0.4])
        real = Validator.__call__
        if where == "after the steps":
            patch.setattr(Validator, "__call__", kill)
        elif where == "after best.pt":
            patch.setattr(Validator, "__call__", lambda self, epoch: real(self, epoch) | {
                "si_rmse": next(scores)})  # fmt: skip
        else:
            write = write_log
            patch.setattr(plumbing.run, "write_log", lambda *a: (write(*a), kill()))
        with pytest.raises(Killed):
            train.main(one_thread(root, out, "--epochs", "3"))
    assert train.main(one_thread(root, out, "--epochs", "3", "--resume")) == 0
    if where == "after best.pt":  # its scores are made up
        assert [r["epoch"] for r in rows(out)] == [1, 2, 3]
        theirs, ours = (content(p / "last.pt")["model"] for p in (whole, out))
        assert all(torch.equal(v, ours[k]) for k, v in theirs.items())
    else:
        same_run(whole, out)
    counted("stopped between two files of an epoch's end", 1)


# ------------------------------------------------------------------------------------- disk, folder


@pytest.mark.parametrize("limit", [100_000, 1_000_000, 3_000_000, 4_700_000])
def test_no_room_for_a_checkpoint(root, tmp_path, zygote, alone, limit, counted):
    """No file may grow beyond `limit`: the checkpoint of 4.9 MB breaks off there."""
    out, more = tmp_path / "run", ("--epochs", "2")
    shutil.copytree(alone("--epochs", "1"), out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    code, told = zygote.run(one_thread(root, out, *more, "--resume"), limit)
    assert code == 2 and is_one_clear_line(told, "last.pt: cannot be written", "whole"), told
    for name in ("last.pt", "best.pt", "log.jsonl"):
        assert (out / name).read_bytes() == before[name]
    assert zygote.run(one_thread(root, out, *more, "--resume"))[0] == 0
    last = str(alone("--epochs", "1") / "last.pt")
    theirs, ours = (content(p / "last.pt") for p in (alone(*more, "--resume", last), out))
    assert ours["step"] == 6 == theirs["step"]
    assert all(torch.equal(v, ours["model"][k]) for k, v in theirs["model"].items())
    counted("disk full while a checkpoint is saved", 1)


@pytest.mark.parametrize("size", ["40k", "2m", "6m", "12m"])
def test_a_full_disk(root, tmp_path, zygote, alone, size, counted):
    """A real one, too small for args.json, for last.pt, for its successor, for best.pt as well."""
    with small_disk(tmp_path / "disk", size) as disk:
        out = disk / "run"
        if size == "40k":
            (disk / "full").write_bytes(bytes(36 << 10))
        code, told = zygote.run(one_thread(root, out, "--epochs", "3"))
        assert code == 2 and is_one_clear_line(told, "No space left", str(out)), told
        all_readable(out)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        (disk / "full").unlink(missing_ok=True)
        assert zygote.run(one_thread(root, out, "--epochs", "3", "--resume"))[0] == 0
        same_run(alone("--epochs", "3"), out)
    counted("disk full while a run writes (real file system)", 1)


def test_a_full_disk_for_the_cache(root, tmp_path, zygote, counted):
    with small_disk(tmp_path / "disk", "512k") as disk:  # the pack has 0.7 MB
        command = one_thread(root, tmp_path / "run", "--epochs", "1", "--cache", str(disk))
        code, told = zygote.run(command)
        assert code == 2 and is_one_clear_line(told, "no room for the decoded pairs", "--cache")
        assert not list(disk.glob("[!.]*")) and not (tmp_path / "run").exists()
    code, told = zygote.run(
        one_thread(root, tmp_path / "run", "--epochs", "1", "--cache", str(tmp_path / "c")), 300_000
    )
    assert code == 2 and is_one_clear_line(told, "no room for the decoded pairs", "--cache")
    assert not list((tmp_path / "c").glob("[!.]*"))
    counted("disk full while the cache is packed", 2)


def test_a_folder_that_cannot_be_written(root, tmp_path, zygote, counted):
    (tmp_path / "file").touch()
    count = 0
    for out in (tmp_path / "file", tmp_path / "file/run", Path("/proc/self/run")):
        code, told = zygote.run(one_thread(root, out, "--epochs", "1"))
        assert code == 2 and is_one_clear_line(told, f"--out {out}: cannot be written"), told
        assert "packing" not in told and "cache:" not in told  # before any work
        count += 1
    counted("read-only or impossible output folder", count)
    with small_disk(tmp_path / "disk", "64m") as disk:
        assert zygote.run(one_thread(root, disk / "run", "--epochs", "1"))[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for more in ([], ["--resume"]):
            code, told = zygote.run(one_thread(root, disk / "run", "--epochs", "2", *more))
            assert code == 2 and is_one_clear_line(told, "cannot be written (Read-only"), told
            count += 1
        assert all_readable(disk / "run") == 2
    counted("read-only or impossible output folder", 2)


def test_two_runs_into_one_folder(root, tmp_path, zygote, alone, counted):
    """The second is refused, whatever it wants there; the first does not notice."""
    out, few = tmp_path / "run", ("--epochs", "12")
    whole = alone(*few)
    zygote.start(one_thread(root, out, *few))
    deadline = time.time() + 60
    while not (out / "last.pt").exists() and time.time() < deadline:
        time.sleep(0.01)
    for more in ([], ["--resume"]):
        with pytest.raises(UserError, match="another run writes there"):
            train.main(one_thread(root, out, *few, *more))
    code, told = zygote.end()
    assert code == 0, told
    same_run(whole, out)
    assert not list(tmp_path.glob("run.*"))  # was not moved aside
    counted("second run into a folder in use", 2)


def test_the_folder_is_held_while_an_earlier_run_is_moved_aside(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    for earlier in range(2):
        with run_folder(out, keep=False):
            (out / "last.pt").write_text(str(earlier))
            with pytest.raises(UserError, match="another run"), run_folder(out, True):
                pass
    assert (tmp_path / "run.1/last.pt").read_text() == "0"
    monkeypatch.setattr(plumbing.files, "fcntl", None)  # as on Windows: told, and on
    with run_folder(out, keep=True):
        assert "no locks" in capsys.readouterr().err


def test_what_another_run_saved_meanwhile_is_not_undone(root, tmp_path, monkeypatch, counted):
    """A run that is just ending saves after the second one has read, and before it may write."""
    out = tmp_path / "run"
    assert train.main(one_thread(root, out, "--epochs", "2")) == 0
    newer = (out / "last.pt").read_bytes()
    assert train.main(one_thread(root, out, "--epochs", "2", "--resume", str(out / "best.pt"))) == 0
    real = train.open_data

    def late(*args: object) -> tuple[list, list]:
        (out / "last.pt").write_bytes(newer)
        return real(*args)

    before = (out / "log.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(train, "open_data", late)
        with pytest.raises(UserError, match="last.pt is newer than what was read"):
            train.main(one_thread(root, out, "--epochs", "3", "--resume"))
    assert (out / "last.pt").read_bytes() == newer and (out / "log.jsonl").read_bytes() == before
    assert train.main(one_thread(root, out, "--epochs", "3", "--resume")) == 0
    counted("second run that read before the first one ended", 1)


def test_a_best_that_is_alone_is_moved_aside_too(root, tmp_path):
    out, few = tmp_path / "run", ("--epochs", "1", "--val_split", "none")
    out.mkdir()
    (out / "best.pt").write_text("kept")
    assert train.main(one_thread(root, out, *few)) == 0
    assert (tmp_path / "run.1/best.pt").read_text() == "kept"


def test_the_folder_one_stands_in_is_not_moved_aside(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--epochs", "1", "--val_split", "none", "--cache", "none")
    assert train.main(one_thread(root, Path("."), *few)) == 0
    with pytest.raises(UserError, match="--out .: holds an earlier run and cannot be moved"):
        train.main(one_thread(root, Path("."), *few))


# ------------------------------------------------------------------------------------ damaged files


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert train.main(one_thread(root, out, "--epochs", "2")) == 0
    return out


def damages(whole: bytes, flips: int) -> Iterator[tuple[str, bytes]]:
    for k in range(20):
        yield f"cut at {5 * k} %", whole[: len(whole) * k // 20]
    rng = np.random.default_rng(0)
    for at in [*range(0, 64, 8), *rng.integers(0, len(whole), flips), len(whole) - 1]:
        bit = 1 << int(rng.integers(8))
        yield f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]


def test_damaged_checkpoints(root, trained, tmp_path, counted):
    """Cut at every 5 % and with flipped bits: refused by name, or unharmed. Bits that are nobody's
    (a date in the archive's list) may be flipped: then the weights must be the same."""
    whole = (trained / "last.pt").read_bytes()
    weights = content(trained / "last.pt")["model"]
    bad = tmp_path / "bad.pt"
    count = refused = 0
    for what, damaged in damages(whole, 100):
        bad.write_bytes(damaged)
        count += 1
        try:
            loaded = model.load(bad).state_dict()
        except CheckpointError as error:
            assert str(bad) in str(error), what
            refused += 1
        else:
            assert "cut" not in what
            assert all(torch.equal(v, loaded[k]) for k, v in weights.items()), what
    assert refused >= count - 10
    counted("checkpoint cut or with a flipped bit", count)


def test_damaged_checkpoints_are_not_resumed_and_best_is_offered(root, trained, tmp_path, counted):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    whole = (out / "last.pt").read_bytes()
    few = one_thread(root, out, "--epochs", "3")
    for at in range(len(whole) // 10, len(whole), len(whole) // 5):
        (out / "last.pt").write_bytes(whole[:at])
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        with pytest.raises(UserError, match=r"last.pt: .*cut.*best.pt is whole.*--resume"):
            train.main([*few, "--resume"])
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        counted("resume from a cut checkpoint", 1)
    assert train.main([*few, "--resume", str(out / "best.pt")]) == 0
    (out / "last.pt").write_bytes(whole[:1000])
    (out / "best.pt").write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="last.pt"):
        train.main([*few, "--resume"])


# ------------------------------------------------------------------------------- threads, processes


@pytest.mark.parametrize(
    "error",
    [DataError("depth/7.png: gone"), MemoryError(), OSError(5, "Input/output error"),
     ZeroDivisionError("by design")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_a_loader_thread_that_throws(root, tmp_path, alone, monkeypatch, error, counted):
    """In the second epoch's second batch: the run ends, and is saved as it stands."""
    few = one_thread(root, tmp_path / "run", "--epochs", "3")
    real = data.Loader._by_kernels

    def fail(self: data.Loader, epoch: int, memory: object, number: int) -> dict:
        if (epoch, number) == (1, 1):
            raise error
        return real(self, epoch, memory, number)

    with monkeypatch.context() as patch:
        patch.setattr(data.Loader, "_by_kernels", fail)
        with pytest.raises(UserError, match=r"\(after step 4\)\. .*last.pt holds") as told:
            train.main(few)
    for word in (str(error) or type(error).__name__, "--resume"):
        assert word in str(told.value)
    if isinstance(error, ZeroDivisionError):  # a fault of the program's: it says where
        assert "ZeroDivisionError" in str(told.value) and "test_faults.py:" in str(told.value)
    state = content(tmp_path / "run/last.pt")
    assert (state["epoch"], state["batch"]) == (1, 1)
    assert train.main([*few, "--resume"]) == 0
    same_run(alone("--epochs", "3"), tmp_path / "run")
    counted("loader thread that throws", 1)


def test_a_loader_that_throws_at_once_saves_nothing(root, tmp_path, monkeypatch):
    def fail(*_: object) -> dict:
        raise DataError("all gone")

    monkeypatch.setattr(data.Loader, "_by_kernels", fail)
    with pytest.raises(UserError, match="all gone.*Nothing was trained yet"):
        train.main(one_thread(root, tmp_path / "run", "--epochs", "1"))
    assert not list((tmp_path / "run").glob("*.pt"))


RANKS = """
import os, sys, time
import torch
import data, losses, train
from plumbing.files import run_main
from plumbing.pairs import DataError
out, what, args = sys.argv[1], sys.argv[2], sys.argv[3:]
rank = int(os.environ["RANK"])
open(f"{out}/pid{rank}", "w").write(str(os.getpid()))
calls = 0
forward, make = train.Supervised.forward, data.Loader._by_kernels

def slow(self, batch):
    global calls
    calls += 1
    if what == "nan" and rank == 1 and calls in (3, 8):
        loss, terms = forward(self, batch)
        return loss * float("nan"), terms
    if what == "nans" and rank == 1 and calls >= 5:
        loss, terms = forward(self, batch)
        return loss + float("inf"), terms
    if what == "kill":
        time.sleep(0.1)
    return forward(self, batch)

def throw(self, epoch, slot, number):
    if what == "throw" and rank == 1 and (epoch, number) == (1, 1):
        raise DataError("rank 1's picture is gone")
    return make(self, epoch, slot, number)

train.Supervised.forward, data.Loader._by_kernels = slow, throw
fit = train.fit

def spy(objective, *a, **k):
    log = fit(objective, *a, **k)
    torch.save(dict(objective.module.state_dict()), f"{out}/rank{rank}.pt")
    return log

train.fit = spy
sys.exit(run_main(lambda: train.main(args), "train.py"))
"""


def torchrun(tmp_path: Path, what: str, args: list[str]) -> subprocess.Popen:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    for old in tmp_path.glob("pid*"):
        old.unlink()
    port = str(21000 + random.SystemRandom().randrange(8000))
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
         port, str(script), str(tmp_path), what, *args],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sys.path])),
            "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip


def test_what_pytorch_says_of_other_processes_is_not_lost(tmp_path, monkeypatch):
    """Two processes on one GPU, say: nobody has ended."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_: None)

    def fail(*_: object, **__: object) -> int:
        raise RuntimeError("NCCL error:\nDuplicate GPU detected")

    monkeypatch.setattr(train, "prepare", fail)
    with pytest.raises(UserError, match="PyTorch says: NCCL error: Duplicate GPU detected$"):
        train.main(["--device", "cpu", "--out", str(tmp_path)])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies(root, tmp_path, victim, counted):
    """torchrun: the other one ends with an error that says so, in seconds, not after a timeout."""
    out = tmp_path / "run"
    args = one_thread(root, out, "--epochs", "400", "--val_split", "none")
    process = torchrun(tmp_path, "kill", args)
    deadline = time.time() + 90
    while not (out / "last.pt").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / f"pid{victim}").read_text()), signal.SIGKILL)
    killed = time.time()
    told, _ = process.communicate(timeout=90)
    assert process.returncode != 0 and time.time() - killed < 60
    assert f"process {1 - victim} of 2 ends, because another one of this run has ended" in told
    assert "go on with --resume" in told
    assert all_readable(out) == 1
    counted("rank killed under torchrun: the other ends with an error", 1)


def test_a_rank_whose_loader_throws(root, tmp_path, counted):
    args = one_thread(root, tmp_path / "run", "--epochs", "4", "--val_split", "none")
    process = torchrun(tmp_path, "throw", args)
    told, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "rank 1's picture is gone" in told and "nothing was trained" not in told
    assert "process 0 of 2 ends, because another one" in told
    assert content(tmp_path / "run/last.pt")["epoch"] == 1
    counted("rank whose loader throws: the other ends with an error", 1)


# -------------------------------------------------------------------------------------- not finite


def poison(monkeypatch, when: Callable[[dict], bool], how: str = "loss") -> list[int]:
    """Makes the loss NaN for batches that `when` picks; how: "loss", "gradient" (the loss stays
    finite) or "input" (the network sees NaN, and so do its running statistics)."""
    real, hits = train.Supervised.forward, []

    def forward(self: train.Supervised, batch: dict) -> tuple[torch.Tensor, dict]:
        if not when(batch):
            return real(self, batch)
        hits.append(len(hits))
        if how == "input":
            return real(self, batch | {"image": batch["image"] * float("nan")})
        loss, terms = real(self, batch)
        if how == "gradient":
            weight = self.network.decoder.depth.bias
            return loss + (weight - weight.detach()).abs().sqrt().sum(), terms  # slope inf at 0
        return loss * float("nan"), terms

    monkeypatch.setattr(train.Supervised, "forward", forward)
    return hits


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("how", ["loss", "gradient", "input"])
def test_a_step_that_is_not_finite_changes_nothing(
    root, tmp_path, monkeypatch, capsys, how, optimizer, counted
):
    """Stopped after step 4, with and without a bad fourth step: all but its number is as after
    step 3, the running statistics and Adam's step count too; the epoch's mean is of the others."""
    states = []
    for bad in (False, True):
        out, count = tmp_path / f"{bad}", []

        def when(batch: dict, bad=bad, count=count) -> bool:
            count.append(1)
            if len(count) == (4 if bad else 3):
                os.kill(os.getpid(), signal.SIGTERM)
            return bad and len(count) == 4

        with monkeypatch.context() as patch:
            poison(patch, when, how)
            few = one_thread(root, out, "--epochs", "4", "--optimizer", optimizer)
            assert train.main([*few, "--val_split", "none", "--dynamic_weights"]) == 143
        states.append(content(out / "last.pt"))
    before, after = states
    assert (before["step"], after["step"]) == (3, 4)
    assert (after["sums"]["skipped_steps"], after["sums"]["loss"]) == (1, 0)
    for part in ("model", "objective"):
        for k, v in before[part].items():
            assert torch.equal(v, after[part][k]), k
            assert v.isfinite().all()
    for i, moments in before["optimizer"]["state"].items():
        assert all(torch.equal(v, after["optimizer"]["state"][i][k]) for k, v in moments.items())
    with monkeypatch.context() as patch:
        poison(patch, lambda _: False)
        assert train.main([*few, "--val_split", "none", "--dynamic_weights", "--resume"]) == 0
    log = rows(out)
    assert [r["skipped_steps"] for r in log] == [0, 1, 0, 0]
    assert all(np.isfinite(v) for r in log for k, v in r.items() if v is not None)
    assert "epoch 2: 1 of 3 steps skipped" in capsys.readouterr().err
    counted("step with a loss or gradient that is not finite", 1)


def test_the_run_ends_after_k_in_a_row_and_names_the_pair(root, tmp_path, monkeypatch, counted):
    """Pair 5 is rotten; from epoch 2 on it is made to be in every batch."""
    few = one_thread(root, tmp_path / "run", "--epochs", "9", "--max_skipped", "2")
    real = data.Loader.order

    def order(self: data.Loader, epoch: int) -> np.ndarray:
        pairs = real(self, epoch).copy()
        pairs[pairs == 5] = 6
        if epoch > 0:
            pairs[:, 0] = 5
        return pairs

    monkeypatch.setattr(data.Loader, "order", order)
    poison(monkeypatch, lambda batch: bool((batch["index"] == 5).any()))
    with pytest.raises(UserError, match="steps 4 to 5, which were skipped") as told:
        train.main(few)
    assert f"not finite by themselves are {root / 'train/rgb/5.png'}." in str(told.value)
    assert "last.pt holds the run up to there" in str(told.value)
    state = content(tmp_path / "run/last.pt")
    assert state["step"] == 5 and all(v.isfinite().all() for v in state["model"].values())
    counted("K steps in a row not finite: the run ends and names the pair", 1)


def test_a_network_that_has_diverged_is_told_from_a_bad_pair(root, tmp_path, monkeypatch):
    few = one_thread(root, tmp_path / "run", "--epochs", "9", "--max_skipped", "2")
    poison(monkeypatch, lambda batch: True)
    with pytest.raises(UserError, match="steps 1 to 2.*no pair alone has a finite loss"):
        train.main(few)
    state = content(tmp_path / "run/last.pt")
    assert all(v.isfinite().all() for v in state["model"].values())


def test_an_epoch_of_skipped_steps_ends_no_run_but_the_last(root, tmp_path, monkeypatch):
    """One batch an epoch: K counts over epochs. What was skipped is not validated."""
    few = ("--epochs", "4", "--batch_size", "12", "--max_skipped", "3")
    count: list[int] = []
    with monkeypatch.context() as patch:
        poison(patch, lambda batch: (count.append(1), len(count) in (2, 3))[1])
        assert train.main(one_thread(root, tmp_path / "run", *few)) == 0
    assert [r["skipped_steps"] for r in rows(tmp_path / "run")] == [0, 1, 1, 0]
    assert [r["loss"] is None for r in rows(tmp_path / "run")] == [False, True, True, False]
    assert ["si_rmse" in r for r in rows(tmp_path / "run")] == [True, False, False, True]
    count.clear()
    poison(monkeypatch, lambda batch: (count.append(1), len(count) > 3)[1])
    with pytest.raises(UserError, match="not finite in any step of the last epoch.*last.pt"):
        train.main(one_thread(root, tmp_path / "end", *few))


def test_a_rank_with_a_bad_step_skips_it_on_all(root, tmp_path, counted):
    args = one_thread(root, tmp_path / "run", "--epochs", "4", "--val_split", "none")
    process = torchrun(tmp_path, "nan", args)
    told, _ = process.communicate(timeout=180)
    assert process.returncode == 0, told
    one, two = (torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1))
    for name, value in one.items():
        assert value.isfinite().all(), name
        if "running" not in name:  # each rank's own, as released
            assert torch.equal(value, two[name]), name
    assert [r["skipped_steps"] for r in rows(tmp_path / "run")] == [1, 0, 1, 0]
    counted("step not finite on one of two ranks: skipped on both", 2)


def test_ranks_give_up_together(root, tmp_path, counted):
    args = one_thread(root, tmp_path / "run", "--epochs", "9", "--val_split", "none")
    process = torchrun(tmp_path, "nans", [*args, "--max_skipped", "4"])
    told, _ = process.communicate(timeout=180)
    assert process.returncode != 0
    assert told.count("steps 5 to 8, which were skipped") == 2
    state = content(tmp_path / "run/last.pt")
    assert state["step"] == 8 and all(v.isfinite().all() for v in state["model"].values())
    counted("K steps not finite on one of two ranks: both end", 1)


# ------------------------------------------------------------------------------------ saved in time


def test_save_minutes_saves_in_mid_epoch(root, tmp_path, monkeypatch):
    saves = []
    real = model.save
    monkeypatch.setattr(
        model, "save", lambda *a, **k: (saves.append((k["epoch"], k["batch"])), real(*a, **k))
    )
    few = ("--epochs", "2", "--val_split", "none")
    assert train.main(one_thread(root, tmp_path / "a", *few, "--save_minutes", "0")) == 0
    assert saves == [(1, 0), (2, 0)]
    saves.clear()
    assert train.main(one_thread(root, tmp_path / "b", *few, "--save_minutes", "1e-9")) == 0
    assert saves == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    same_run(tmp_path / "a", tmp_path / "b")


def test_an_epochs_steps_outlive_a_validation_that_fails(root, tmp_path, alone, monkeypatch):
    """Resuming repeats the validation, not the steps: row and best.pt are those of a run that was
    left alone."""
    few = one_thread(root, tmp_path / "run", "--epochs", "3")
    with monkeypatch.context() as patch:

        def fail(self: Validator, epoch: int) -> dict:
            raise DataError("val/rgb/1.png: gone")

        patch.setattr(Validator, "__call__", fail)
        with pytest.raises(DataError, match="gone"):
            train.main(few)
    state = content(tmp_path / "run/last.pt")
    assert (state["epoch"], state["batch"], state["step"]) == (0, 3, 3)
    assert train.main([*few, "--resume"]) == 0
    same_run(alone("--epochs", "3"), tmp_path / "run")


def test_losses_are_not_asked_twice(root, tmp_path, monkeypatch):
    """A skipped step costs no more than a step: Eq. 11 once a step, also with the look inside."""
    calls = []
    real = losses.CellLoss.terms
    monkeypatch.setattr(
        losses.CellLoss, "terms", lambda *a: (calls.append(1), real(*a))[1]
    )
    assert train.main(one_thread(root, tmp_path, "--epochs", "1", "--val_split", "none")) == 0
    assert len(calls) == 3
