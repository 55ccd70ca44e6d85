"""Sec. 4.1, decoded pairs on disk: a pack is what read() gave, whatever happens to its builder."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import rgbd_picture

import plumbing.batches
import plumbing.files
from plumbing import pack as packing
from plumbing.batches import Reader, Reading, open_reader
from plumbing.files import UserError, why_not_writable
from plumbing.pack import Pack, make_stamp, open_pack, pack_folder, row_of
from plumbing.pairs import DataError, Sample, Source, list_pairs

SIZE = (7, 11)
N = 6
FILES = ["K.npy", "depth.npy", "meta.json", "rgb.npy", "teacher.npy"]


def sample_of(i: int) -> Sample:
    """Pair i; every second one has a teacher's map."""
    rng = np.random.default_rng(i)
    rgb = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    depth, teacher = rng.integers(0, 65536, (2, *SIZE)).astype(np.uint16)
    return Sample(rgb, depth, rng.random(4), None if i % 2 else teacher)


class Disk:
    """read(i) of N pairs, some of which cannot be read, and what it was asked for."""

    def __init__(self, bad: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.bad, self.pause, self.reads = bad, pause, []

    def read(self, i: int) -> Sample:
        self.reads.append(i)
        time.sleep(self.pause)
        if i in self.bad:
            raise DataError(f"pair {i} cannot be read")
        return sample_of(i)


def packed(
    where: Path, read: Callable[[int], Sample] = sample_of, stamp: str = "a", teacher: bool = True,
    quiet: bool = True,
) -> Pack:  # fmt: skip
    where.mkdir(parents=True, exist_ok=True)
    return open_pack(where / "train", stamp, N, row_of(SIZE, teacher), read, 2, quiet)


def check(pack: Pack, left_out: tuple[int, ...] = ()) -> None:
    """pack holds what read() gives, pair by pair."""
    there = [i for i in range(N) if i not in left_out]
    assert len(pack.rgb) == len(pack.depth) == len(pack.K) == len(pack.taught) == len(there)
    for row, i in enumerate(there):
        rgb, depth, K, teacher = sample_of(i)
        np.testing.assert_array_equal(pack.rgb[row], rgb)
        np.testing.assert_array_equal(pack.depth[row], depth)
        np.testing.assert_array_equal(pack.K[row], K)
        if pack.teacher is not None:
            assert pack.taught[row] == (teacher is not None)
            expected = np.zeros(SIZE) if teacher is None else teacher
            np.testing.assert_array_equal(pack.teacher[row], expected)


def left_behind(where: Path) -> list[str]:
    """What stands in a folder of packs beside the pack and its lock."""
    return sorted({p.name for p in where.iterdir()} - {"train", ".train.lock"})


# ------------------------------------------------------------------------------- what a pack holds


def test_holds_what_read_gives_and_is_read_only(tmp_path, capsys):
    disk = Disk()
    pack = packed(tmp_path, disk.read, quiet=False)
    check(pack)
    assert pack.failed == {} and pack.taught.tolist() == [True, False] * 3
    assert (pack.rgb.dtype, pack.depth.dtype, pack.teacher.dtype) == ("u1", "u2", "u2")
    for array in (pack.rgb, pack.depth, pack.teacher):
        assert type(array) is np.ndarray and not array.flags.writeable
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == FILES
    for name in ("rgb", "depth", "K", "teacher"):  # whatever reads .npy reads them
        np.testing.assert_array_equal(np.load(tmp_path / f"train/{name}.npy"), getattr(pack, name))
    path = re.escape(str(tmp_path / "train"))
    said = rf"cache: packing 6 pairs into {path}\ncache: {path}, 0.0 MB \(built in [0-9.]+ s\)\n"
    assert re.fullmatch(said, capsys.readouterr().out) and left_behind(tmp_path) == []
    disk.reads.clear()
    check(packed(tmp_path, disk.read, quiet=False))  # opened, without reading
    assert disk.reads == []
    assert capsys.readouterr().out == f"cache: {tmp_path / 'train'}, 0.0 MB\n"


def test_a_pack_in_use_survives_its_successor(tmp_path):
    pack = packed(tmp_path)
    packed(tmp_path, lambda i: sample_of(i + 1), "b")
    check(pack)
    assert left_behind(tmp_path) == []


# ------------------------------------------------------------------------------- when it is rebuilt


def test_another_stamp_is_packed_anew(tmp_path, capsys):
    packed(tmp_path)
    disk = Disk()
    check(packed(tmp_path, disk.read, "b", quiet=False))
    assert sorted(disk.reads) == list(range(N))
    assert "train in place of one of other files or settings\n" in capsys.readouterr().out


def shorter(name: str, by: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, (path / name).stat().st_size - by)


DAMAGES = {
    "no meta.json": lambda path: (path / "meta.json").unlink(),
    "another meta.json": lambda path: (path / "meta.json").write_text('{"stamp": "a"}'),
    "no rgb": lambda path: (path / "rgb.npy").unlink(),
    "rgb cut": shorter("rgb.npy", 1),
    "K of fewer pairs": lambda path: np.save(path / "K.npy", np.ones((N - 1, 4))),
    "a file": lambda path: (shutil.rmtree(path), path.write_text("x")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_pack_is_packed_anew(tmp_path, name):
    packed(tmp_path)
    DAMAGES[name](tmp_path / "train")
    check(packed(tmp_path))
    check(packed(tmp_path, None))  # opened: nothing to read


def test_the_stamp_is_of_names_sizes_times_order_and_settings(tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(4)]
    for file in files[:3]:
        file.write_bytes(bytes(5))
    later = files[1].stat().st_mtime_ns + 1000  # file systems keep 100 ns at least

    def stamp(*numbers: int, K: int = 2) -> str:
        return make_stamp(tmp_path, [files[k] for k in numbers], {"K": (1, K)})

    before = stamp(0, 1)
    assert before == stamp(0, 1)
    others = [stamp(1, 0), stamp(0), stamp(0, 2), stamp(0, 1, 3), stamp(0, 1, K=3)]
    os.utime(files[1], ns=(later, later))
    others.append(stamp(0, 1))
    files[1].write_bytes(bytes(9))
    os.utime(files[1], ns=(later, later))
    others.append(stamp(0, 1))
    assert len({before, *others}) == 8


# -------------------------------------------------------------------------- pairs that are no pairs


def test_pairs_that_cannot_be_read_have_no_row_and_are_tried_again(tmp_path):
    """As after a chmod, or with a disk that was away: the stamp knows nothing of it."""
    pack = packed(tmp_path, Disk(bad=(1, 4)).read)
    check(pack, left_out=(1, 4))
    assert pack.failed == {1: "pair 1 cannot be read", 4: "pair 4 cannot be read"}
    assert json.loads((tmp_path / "train/meta.json").read_text()) == {
        "stamp": "a", "files": ["rgb", "depth", "K", "teacher"],
        "taught": [True, True, False, False],
        "failed": {"1": "pair 1 cannot be read", "4": "pair 4 cannot be read"},
    }  # fmt: skip
    still = Disk(bad=(1, 4))
    check(packed(tmp_path, still.read), left_out=(1, 4))
    assert sorted(still.reads) == [1, 4]
    check(packed(tmp_path, Disk(bad=(1,)).read), left_out=(1,))
    check(packed(tmp_path))


def test_not_one_readable_pair(tmp_path):
    with pytest.raises(DataError, match="not one of 6 pairs can be read; the first: pair 0 cannot"):
        packed(tmp_path, Disk(bad=tuple(range(N))).read)
    assert left_behind(tmp_path) == [] and not (tmp_path / "train").exists()


# ----------------------------------------------------------------------------------- ends too early


@pytest.mark.parametrize("old", [False, True])
def test_a_build_that_ends_early_leaves_the_folder_as_it_was(tmp_path, old):
    if old:
        packed(tmp_path, stamp="b")

    def read(i):
        if i == 3:
            raise KeyboardInterrupt
        return sample_of(i)

    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path, read)
    assert left_behind(tmp_path) == [] and (tmp_path / "train").exists() == old
    if old:
        check(packed(tmp_path, None, "b"))
    check(packed(tmp_path))


def test_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut must not leave a whole name over missing pictures."""
    called = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (called.append(n), f(*a))[1])
    packed(tmp_path)
    assert called == ["fsync"] * len(FILES) + ["replace"]


def build_and_hang(where: Path, started) -> None:
    def read(i: int) -> Sample:
        if i == 3:
            started.set()
            time.sleep(60)
        return sample_of(i)

    packed(where, read)


def test_killed_in_the_middle_nothing_is_taken_for_whole(tmp_path):
    """kill -9: no pack, the lock is free at once, and the next build removes what was left."""
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    child = fork.Process(target=build_and_hang, args=(tmp_path, started))
    child.start()
    assert started.wait(30)
    child.kill()
    child.join()
    assert left_behind(tmp_path) == [".train.unfinished"] and not (tmp_path / "train").exists()
    check(packed(tmp_path))
    assert left_behind(tmp_path) == []


# ------------------------------------------------------------------------------------ no room, no


def test_no_room_is_told_before_the_work(tmp_path, monkeypatch):
    need = N * row_of(SIZE, True).itemsize
    room = SimpleNamespace(total=10**9, used=0, free=need - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    disk = Disk()
    with pytest.raises(UserError) as error:
        packed(tmp_path, disk.read)
    assert str(error.value) == (
        f"{tmp_path}: no room for the decoded pairs: 0.0 MB needed, 0.0 MB free; make room, or: "
        f"{packing.CURE}"
    )
    assert disk.reads == [] and left_behind(tmp_path) == []
    room.free = need
    check(packed(tmp_path))
    room.total = room.free = 0  # some network file systems know neither
    check(packed(tmp_path, stamp="b"))


def test_a_pack_that_fits_no_more_makes_room(tmp_path, monkeypatch):
    packed(tmp_path, stamp="b")
    monkeypatch.setattr(
        shutil, "disk_usage",
        lambda path: SimpleNamespace(
            total=10**9, free=0 if (tmp_path / "train").exists() else 10**8
        ),
    )  # fmt: skip
    check(packed(tmp_path))


def pack_under_a_limit(where: Path, out) -> None:
    limit = 128 + 3 * 2 * SIZE[0] * SIZE[1] + 10  # within the fourth depth map
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        packed(where)
    except UserError as error:
        out.send((str(error), left_behind(where)))


def test_a_disk_that_fills_up_in_the_middle_is_one_line(tmp_path):
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=pack_under_a_limit, args=(tmp_path / "c", theirs))
    child.start()
    assert ours.poll(30)
    text, left = ours.recv()
    child.join()
    assert "no room for the decoded pairs (File too large): " in text and "\n" not in text
    assert left == [] and not (tmp_path / "c/train").exists()


def test_what_the_folder_refuses_is_one_line(tmp_path, monkeypatch):
    """As a read-only one does, for root too."""
    real = open

    def refused(path, mode="r", *more):
        if "r" not in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *more)

    with monkeypatch.context() as patch:
        patch.setattr(plumbing.files, "open", refused, raising=False)
        with pytest.raises(UserError, match=r"train: cannot be used \(Permission denied\); --cach"):
            packed(tmp_path)
    packed(tmp_path)
    monkeypatch.setattr(plumbing.files, "open", refused, raising=False)
    check(packed(tmp_path, None))  # read-only is enough for a pack that fits


# ---------------------------------------------------------------------------------- several at once


def test_the_second_waits_says_so_and_reads_nothing(tmp_path, monkeypatch, capsys):
    """The first is held up in its third pair until the second has said that it waits."""
    inside, waits, packs = threading.Event(), threading.Event(), []

    def read(i):
        if i == 2:
            inside.set()
            assert waits.wait(10)
        return sample_of(i)

    real = packing.locked

    def locked(folder, name, waiting):
        return real(folder, name, lambda: (waiting(), waits.set()))

    monkeypatch.setattr(packing, "locked", locked)
    first = threading.Thread(target=lambda: packs.append(packed(tmp_path, read)))
    first.start()
    assert inside.wait(10)
    packs.append(packed(tmp_path, None, quiet=False))
    first.join()
    path = tmp_path / "train"
    assert capsys.readouterr().out == (
        f"cache: another process is packing {path}; waiting for it\ncache: {path}, 0.0 MB\n"
    )
    for pack in packs:
        check(pack)


def test_a_pack_replaced_while_it_is_opened_is_not_mixed(tmp_path, monkeypatch):
    """A quick look without the lock: its files may be of two packs, its meta.json tells."""
    packed(tmp_path)
    real, calls = np.load, []

    def load(path, **how):
        if len(calls) == 1:  # rgb was the old pack's
            calls.append("replaced")
            packed(tmp_path, lambda i: sample_of(i + 1), "b")
        calls.append(path)
        return real(path, **how)

    monkeypatch.setattr(np, "load", load)
    assert packing._open(tmp_path / "train", "a") is None and "replaced" in calls


# --------------------------------------------------------------------------------- where it stands


def refuse(monkeypatch, *folders: Path) -> None:
    """Nothing can be written to these, as on a read-only mount; permissions do not stop root."""

    def refused(folder):
        return "Read-only file system" if folder.absolute() in folders else why_not_writable(folder)

    monkeypatch.setattr(packing, "why_not_writable", refused)


def test_auto_is_beside_the_data_and_kept_out_of_git(tmp_path):
    for _ in range(2):
        assert pack_folder("auto", tmp_path) == tmp_path / ".litedepth_cache"
        assert (tmp_path / ".litedepth_cache/.gitignore").read_text() == "*\n"
        assert [p.name for p in (tmp_path / ".litedepth_cache").iterdir()] == [".gitignore"]
    assert pack_folder("none", tmp_path) is None


def test_auto_of_read_only_data_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "home"))
    roots = [tmp_path / "a/nyu", tmp_path / "b/nyu"]
    refuse(monkeypatch, *(root / ".litedepth_cache" for root in roots))
    for root in roots:
        root.mkdir(parents=True)
    found = [pack_folder("auto", root) for root in roots]
    assert found[0] != found[1]  # two sets of one name
    for where in found:
        assert where.parent == tmp_path / "home/packed" and where.is_dir()
        assert re.fullmatch(r"nyu-[0-9a-f]{12}", where.name)
    monkeypatch.chdir(tmp_path / "a")
    assert pack_folder("auto", Path("nyu")) == found[0]
    refuse(monkeypatch, roots[0] / ".litedepth_cache", found[0])
    with pytest.raises(UserError, match=r"neither .* nor .* can be written .*--cache none"):
        pack_folder("auto", roots[0])


def test_a_folder_of_the_users_choice(tmp_path, monkeypatch):
    assert pack_folder(str(tmp_path / "x/y"), tmp_path) == tmp_path / "x/y"
    assert (tmp_path / "x/y").is_dir() and not any((tmp_path / "x/y").iterdir())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pack_folder("~/z", tmp_path) == tmp_path / "z"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache .*file: cannot be written \(.*exists"):
        pack_folder(str(tmp_path / "file"), tmp_path)
    refuse(monkeypatch, tmp_path / "z")
    with pytest.raises(UserError, match="Read-only file system.*--cache none"):
        pack_folder("~/z", tmp_path)
    packed(tmp_path / "z")  # packs that others made may be read
    assert pack_folder("~/z", tmp_path) == tmp_path / "z"


# ---------------------------------------------------------------- a data set's pack, by its Reader

RGBD = (96, 128)


@pytest.fixture
def reader(make_rgbd, tmp_path):
    """reader(**changes of Source): of one set of 8 pairs, with its pack; closed after the test."""
    root, opened = make_rgbd(tmp_path / "set"), []

    def make(skip_bad: bool = False, cache: str = "auto", maps=None, **changes) -> Reader:
        source = Source(**{"data": str(root), "image_size": RGBD} | changes)
        pairs = list_pairs(Path(source.data), source.split)
        opened.append(open_reader(pairs, source, Reading(2, cache, 0.0, skip_bad), maps))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_a_pack_gives_the_samples_of_the_files(reader, tmp_path, capsys):
    """All but what it takes to get them: K and the teacher's maps too."""
    depth = tmp_path / "map.png"
    assert cv2.imwrite(str(depth), np.full(RGBD, 777, np.uint16))
    for maps in (None, [depth, None] * 4):
        one, two, again = (reader(cache=cache, maps=maps) for cache in ("none", "auto", "auto"))
        for other in (two, again):
            assert other.pack is not None and other.pairs == one.pairs
            (i, want), (k, have) = one.samples([5, 0, 2]), other.samples([5, 0, 2])
            assert i.tolist() == k.tolist() == [5, 0, 2]
            for a, b in zip(want, have):
                assert (a.teacher is None) == (b.teacher is None)
                for x, y in zip(a, b):
                    np.testing.assert_array_equal(x, y)
    assert capsys.readouterr().out.count("(built in") == 2


def test_cameras_and_moved_or_changed_data(reader, tmp_path, capsys):
    """What the decoded pairs hang on, beside their files; and that a moved set keeps its pack."""

    def built(**changes) -> bool:
        capsys.readouterr()
        reader(**changes)
        return "(built in" in capsys.readouterr().out

    assert built() and not built()
    other = (111.0, 112.0, 60.0, 50.0)
    assert built(intrinsics=other) and reader(intrinsics=other).sample(0).K.tolist() == list(other)
    assert built()
    (tmp_path / "set/train/intrinsics.json").write_text('{"fx": 9, "fy": 9, "cx": 9, "cy": 9}')
    assert built() and built(image_size=(48, 64)) and not built()
    (tmp_path / "set").rename(tmp_path / "moved")
    assert not built(data=str(tmp_path / "moved"))
    assert cv2.imwrite(str(tmp_path / "moved/train/depth/sample_3.png"), rgbd_picture(99)[1])
    assert built(data=str(tmp_path / "moved"))


def test_bad_pairs_are_named_and_left_out_with_skip_bad(reader, tmp_path, monkeypatch, capsys):
    """The pack of the first try is kept, so that --skip_bad starts at once."""
    monkeypatch.setattr(plumbing.batches, "NAMED", 1)
    for k in (2, 5):
        (tmp_path / f"set/train/depth/sample_{k}.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        reader()
    assert "2 of 8 pairs cannot be read, the first: " in str(error.value)
    assert "sample_2.png: an empty file" in str(error.value) and "--skip_bad" in str(error.value)
    notes = capsys.readouterr().err.splitlines()
    assert [re.search(r"sample_\d", n)[0] for n in notes] == ["sample_2"]  # the first NAMED
    skipping = reader(skip_bad=True, maps=[None, Path("x.npy")] * 4)
    assert [p.rgb.stem[-1] for p in skipping.pairs] == list("013467")
    assert [m is None for m in skipping.teacher] == [True, False, False, True, True, False]
    skipping = reader(skip_bad=True)
    out, err = capsys.readouterr()
    assert "--skip_bad: 2 of 8 pairs cannot be read and are left out" in err
    assert out.count("built in") == 1  # of the one with a teacher
    assert sorted(Path(name).stem for name in skipping.failed) == ["sample_2", "sample_5"]
    index, samples = skipping.samples(range(6))
    assert index.tolist() == list(range(6))
    for pair, sample in zip(skipping.pairs, samples):
        np.testing.assert_array_equal(sample.depth, cv2.imread(str(pair.depth), -1))


def test_the_first_ten_bad_pairs_are_named(make_rgbd, tmp_path, capsys):
    root = make_rgbd(tmp_path, train=13)
    for path in sorted((root / "train/rgb").iterdir())[:12]:
        path.write_bytes(b"")
    source = Source(str(root), image_size=RGBD)
    with pytest.raises(DataError, match="12 of 13 pairs"):
        open_reader(list_pairs(root, "train"), source, Reading(2))
    assert capsys.readouterr().err.count("note: cannot be read: ") == 10


def test_a_map_that_cannot_be_read_is_named_when_it_is_packed(reader, tmp_path, capsys):
    bad = tmp_path / "bad.npy"
    bad.write_text("no numbers")
    packed = reader(maps=[None, bad, *[None] * 6])
    (note,) = capsys.readouterr().err.splitlines()
    assert "bad.npy: not a whole .npy" in note and packed.sample(1).teacher is None


def test_the_data_do_not_see_their_cache(make_rgbd, tmp_path):
    root = make_rgbd(tmp_path, "scenes", train=2, val=2)
    before = list_pairs(root, "train")
    for folder in (root, root / "train"):  # the split's own folder lists its scenes
        packed(pack_folder("auto", folder))
        assert list_pairs(root, "train") == before


