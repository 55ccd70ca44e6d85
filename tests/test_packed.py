"""Sec. 4.1, decoded pairs on disk: a pack is what read() gave, whatever happens to its builder."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import plumbing.files
from plumbing import pack as packed
from plumbing.files import UserError, fcntl, why_not_writable
from plumbing.pack import Pack, make_stamp, open_pack, place

H, W = SIZE = (7, 11)  # no part of a pack ends at a page's end by itself
N = 6


KINDS = {
    "rgb": ((H, W, 3), np.uint8), "depth": ((H, W), np.uint16), "K": ((4,), np.float64),
    "teacher": ((H, W), np.uint16),
}  # fmt: skip


class Pairs:
    """N pairs in raw files: rgb, depth, K and, for every second one, a teacher's map.

    Not .npy: of np.load in several threads, CPython 3.11 now and then makes a SystemError (its
    parser counts the depth of all threads together, gh-106905).
    """

    def __init__(self, root: Path, n: int = N, make: bool = True) -> None:
        self.root, self.asked, self.pause = root, [], 0.0
        self.files = [
            [root / f"{what}{i}.raw" for what in list(KINDS)[: 4 - i % 2]] for i in range(n)
        ]
        for i, paths in enumerate(self.files if make else []):
            rng = np.random.default_rng(i)
            root.mkdir(exist_ok=True)
            for path, (shape, dtype) in zip(paths, KINDS.values()):
                top = 256 if dtype == np.uint8 else 65536
                rng.integers(1, top, shape).astype(dtype).tofile(path)

    def read(self, i: int):
        self.asked.append(i)
        time.sleep(self.pause)
        try:
            arrays = [
                np.fromfile(path, dtype, np.prod(shape)).reshape(shape)
                for path, (shape, dtype) in zip(self.files[i], KINDS.values())
            ]
        except (OSError, ValueError) as error:
            raise ValueError(f"pair {i} cannot be read ({error})") from error
        return (*arrays, None)[:4]

    def open(self, where: Path, **more) -> Pack:
        more = {"settings": {"depth_scale": 1000.0, "K": (1, 2)}, "teacher": True} | more
        more = {"read": self.read, "threads": 2, "say": lambda text: None} | more
        return open_pack(where, "train", self.files, SIZE, **more)

    def builds(self, where: Path, **more) -> bool:
        """Opens it, checks what it holds, and tells whether it was built for that."""
        self.asked.clear()
        check(self.open(where, **more), self)
        assert sorted(self.asked) in ([], list(range(len(self.files))))
        return bool(self.asked)


@pytest.fixture
def pairs(tmp_path) -> Pairs:
    return Pairs(tmp_path / "set")


def check(pack: Pack, pairs: Pairs) -> None:
    """pack holds what read() gives, pair by pair."""
    assert len(pack) == len(pairs.files) and pack.size == SIZE
    assert pack.rgb.shape == (len(pack), H, W, 3) and pack.depth.shape == (len(pack), H, W)
    asked = list(pairs.asked)
    for i in range(len(pack)):
        rgb, depth, K, teacher = pairs.read(i)
        np.testing.assert_array_equal(pack.rgb[i], rgb)
        np.testing.assert_array_equal(pack.depth[i], depth)
        np.testing.assert_array_equal(pack.K[i], K)
        if pack.teacher is not None:
            assert pack.taught[i] == (teacher is not None)
            np.testing.assert_array_equal(pack.teacher[i], 0 if teacher is None else teacher)
    pairs.asked[:] = asked


def left_behind(where: Path) -> list[str]:
    """What stands in a folder of packs beside the pack and its lock."""
    return sorted({p.name for p in where.iterdir()} - {"train.pack", ".train.lock"})


# ------------------------------------------------------------------------------- what a pack holds


def test_holds_what_read_gives_and_is_read_only(pairs, tmp_path):
    said = []
    pack = pairs.open(tmp_path / "c", say=said.append)
    check(pack, pairs)
    assert pack.failed == {} and pack.taught.tolist() == [True, False] * 3
    assert (pack.rgb.dtype, pack.depth.dtype, pack.teacher.dtype) == ("u1", "u2", "u2")
    for array in (pack.rgb, pack.depth, pack.teacher, pack.K, pack.taught):
        assert not array.flags.writeable
    path = tmp_path / "c/train.pack"
    assert pack.path == path and pack.bytes == path.stat().st_size == 6 * 4096
    assert re.fullmatch(rf"cache: {re.escape(str(path))}, 0.0 MB \(built in [0-9.]+ s\)", said[0])
    assert left_behind(tmp_path / "c") == []


def test_the_layout_on_disk(pairs, tmp_path):
    """By hand: parts at multiples of 4096, little-endian, a page of zeros in the end."""
    raw = pairs.open(tmp_path / "c").path.read_bytes()
    assert raw.startswith(b"LiteDepth pack 1\n")
    for i in range(N):
        rgb, depth, K, teacher = pairs.read(i)
        at = [4096 + i * 3 * H * W, 8192 + i * 2 * H * W, 12288 + i * 2 * H * W, 16384 + i * 32]
        assert raw[at[0] :].startswith(rgb.tobytes())
        assert raw[at[1] :].startswith(depth.astype("<u2").tobytes())
        assert raw[at[2] :].startswith(bytes(2 * H * W) if teacher is None else teacher.tobytes())
        assert raw[at[3] :].startswith(K.astype("<f8").tobytes())
    assert raw[-4096:] == bytes(4096)


def test_without_teacher_there_is_no_room_for_maps(pairs, tmp_path):
    pack = pairs.open(tmp_path / "c", teacher=False)
    check(pack, pairs)
    assert pack.teacher is None and not pack.taught.any() and pack.bytes == 5 * 4096


def test_strided_arrays_are_packed_as_they_look(pairs, tmp_path):
    def read(i):
        rgb, depth, K, teacher = pairs.read(i)
        return np.asfortranarray(rgb), depth[::-1][::-1], tuple(K), teacher

    check(pairs.open(tmp_path / "c", read=read), pairs)


@pytest.mark.parametrize("k, wrong", [(0, np.zeros((H, W, 3))), (1, np.zeros((W, H), np.uint16))])
def test_an_array_of_another_kind_is_an_error_of_the_program(pairs, tmp_path, k, wrong):
    def read(i):
        return *pairs.read(i)[:k], wrong, *pairs.read(i)[k + 1 :]

    with pytest.raises(TypeError, match=r"(rgb|depth) of pair [0-9]: expected uint.* got"):
        pairs.open(tmp_path / "c", read=read)
    assert left_behind(tmp_path / "c") == []


def test_pickled_by_path(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pack = pairs.open(Path("c"))
    pickled = pickle.dumps(pack)
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    check(pickle.loads(pickled), pairs)
    pairs.open(tmp_path / "c", settings={})
    with pytest.raises(UserError, match="built anew from other files since"):
        pickle.loads(pickled)


def test_a_closed_pack_lets_go_but_not_of_arrays_in_use(pairs, tmp_path):
    pack = pairs.open(tmp_path / "c")
    rgb = pack.rgb[1]
    pack.close()
    assert pack.rgb is None and len(pack) == N
    np.testing.assert_array_equal(rgb, pairs.read(1)[0])


# ------------------------------------------------------------------------------- when it is rebuilt


def test_opened_again_without_reading(pairs, tmp_path, capsys):
    where = tmp_path / "c"
    assert pairs.builds(where)
    assert not pairs.builds(where, say=print)
    assert capsys.readouterr().out == f"cache: {where / 'train.pack'}, 0.0 MB\n"
    assert not pairs.builds(where, say=print, quiet=True)
    assert capsys.readouterr() == ("", "")


def rewrite(path: Path) -> None:
    """Other content of the same size and time."""
    about = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def change_time(pairs: Pairs) -> None:
    rewrite(pairs.files[2][1])
    later = pairs.files[2][1].stat().st_mtime_ns + 1000  # file systems keep 100 ns at least
    os.utime(pairs.files[2][1], ns=(later, later))


def change_size(pairs: Pairs) -> None:
    path = pairs.files[3][2]
    about = path.stat()
    path.write_bytes(path.read_bytes()[::-1] + b"\0")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def change_name(pairs: Pairs) -> None:
    pairs.files[4][3] = pairs.files[4][3].rename(pairs.root / "other.raw")


def change_folder(pairs: Pairs) -> None:
    home = pairs.root / "other"
    home.mkdir()
    pairs.files[4][3] = pairs.files[4][3].rename(home / pairs.files[4][3].name)


def change_order(pairs: Pairs) -> None:
    pairs.files[1], pairs.files[3] = pairs.files[3], pairs.files[1]


def change_count(pairs: Pairs) -> None:
    del pairs.files[-1]


def add_file(pairs: Pairs) -> None:
    pairs.files[1].append(pairs.root / "teacher1.raw")
    np.full((H, W), 7, np.uint16).tofile(pairs.files[1][3])


@pytest.mark.parametrize(
    "change",
    [change_time, change_size, change_name, change_folder, change_order, change_count, add_file],
)  # fmt: skip
def test_other_files_are_packed_anew(pairs, tmp_path, change):
    where, said = tmp_path / "c", []
    assert pairs.builds(where)
    change(pairs)
    assert pairs.builds(where, say=said.append)
    assert said[0] == f"note: {where / 'train.pack'} is of other files: packed anew"
    assert not pairs.builds(where)
    assert left_behind(where) == []


def test_the_stamp_is_of_names_sizes_and_times_alone(pairs, tmp_path):
    """A file rewritten under the same size and time is taken for the same, as in make or rsync."""
    pack = pairs.open(tmp_path / "c")
    rewrite(pairs.files[0][1])
    assert pairs.open(tmp_path / "c").stamp == pack.stamp


def test_files_shifted_between_pairs_have_another_stamp(pairs, tmp_path):
    flat = [path for paths in pairs.files for path in paths]
    stamps = {make_stamp(tmp_path, [flat[:k], flat[k:]], {}) for k in range(len(flat))}
    assert len(stamps) == len(flat)


def test_another_setting_is_packed_anew_and_named(pairs, tmp_path):
    where, said = tmp_path / "c", []
    pairs.builds(where)
    assert pairs.builds(where, settings={"depth_scale": 5000.0, "K": None}, say=said.append)
    assert " is of other settings (K, depth_scale): packed anew" in said[0]
    assert pairs.builds(where, settings={"depth_scale": 5000, "K": None}, teacher=False)
    assert not pairs.builds(where, settings={"depth_scale": 5000, "K": None}, teacher=False)
    assert pairs.open(where).settings == {
        "depth_scale": 1000, "K": [1, 2], "image_size": [7, 11], "teacher": True,
    }  # fmt: skip


def test_moved_with_its_data_it_still_fits(tmp_path):
    (tmp_path / "a").mkdir()
    assert Pairs(tmp_path / "a/set").builds(tmp_path / "a/.cache")
    (tmp_path / "a").rename(tmp_path / "b")
    assert not Pairs(tmp_path / "b/set", make=False).builds(tmp_path / "b/.cache")


def flip(at: int):
    def damage(raw: bytes) -> bytes:
        return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda raw: b"", "cut short: 0 bytes"),
        (lambda raw: raw[:1000], "cut short: 1000 bytes"),
        (lambda raw: raw[:-1], "24575 bytes long instead of 24576"),
        (lambda raw: raw + b"\0", "24577 bytes long instead of 24576"),
        (lambda raw: bytes(len(raw)), "its header is none"),
        (lambda raw: bytes(range(256)) * 96, "its header is none"),
        (lambda raw: raw.replace(b"pack 1\n", b"pack 0\n"), "of another version"),
        (lambda raw: raw.replace(b"pack 1\n", b"pack 1 "), "of another version"),
        (flip(30), "its header has changed"),
        (flip(200), "its header has changed"),
        (flip(4095), "its header has changed"),
        (flip(16384 + 5), "its list of pairs has changed"),
    ],
)
def test_a_damaged_pack_is_packed_anew(pairs, tmp_path, damage, reason):
    where, said = tmp_path / "c", []
    path = pairs.open(where).path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=reason):
        Pack(path)
    assert pairs.builds(where, say=said.append)
    assert said[0] == f"note: {path} cannot be used ({reason}): packed anew"
    assert not pairs.builds(where)


def test_a_pack_in_use_survives_its_successor(pairs, tmp_path):
    pack = pairs.open(tmp_path / "c")
    before = pack.rgb.copy(), pack.depth.copy()
    for paths in pairs.files:
        rewrite(paths[0])
    pairs.builds(tmp_path / "c", settings={})
    np.testing.assert_array_equal(pack.rgb, before[0])
    np.testing.assert_array_equal(pack.depth, before[1])


# -------------------------------------------------------------------------- pairs that are no pairs


def test_pairs_that_cannot_be_read_are_listed(pairs, tmp_path):
    where, said = tmp_path / "c", []
    kept = {i: pairs.files[i][1].read_bytes() for i in (1, 4)}
    pairs.files[1][1].write_bytes(b"")
    pairs.files[4][1].unlink()
    pack = pairs.open(where, say=said.append)
    assert set(pack.failed) == {1, 4}
    assert "pair 4 cannot be read (" in pack.failed[4] and "depth4.raw" in pack.failed[4]
    assert said[0].split(" (built")[0].endswith("MB, 2 of 6 pairs unreadable")
    for i in range(N):
        if i in pack.failed:
            assert not pack.rgb[i].any() and not pack.depth[i].any() and not pack.K[i].any()
        else:
            np.testing.assert_array_equal(pack.rgb[i], pairs.read(i)[0])

    pairs.asked.clear()
    pack = pairs.open(where)
    assert sorted(pairs.asked) == [1, 4] and set(pack.failed) == {1, 4}  # asked again, in vain
    for i, content in kept.items():
        pairs.files[i][1].write_bytes(content)
    check(pairs.open(where), pairs)


def test_a_pair_that_can_be_read_by_now_leaves_no_trace_in_the_stamp(pairs, tmp_path):
    """As after a chmod, or with a disk that was away."""

    def away(i):
        if i == 2:
            raise ValueError("not permitted")
        return pairs.read(i)

    said = []
    assert pairs.open(tmp_path / "c", read=away).failed == {2: "not permitted"}
    check(pairs.open(tmp_path / "c", say=said.append), pairs)
    assert "lacks pairs that can be read by now: packed anew" in said[0]


def test_not_one_readable_pair(pairs, tmp_path):
    for paths in pairs.files:
        paths[0].write_bytes(b"")
    with pytest.raises(UserError, match="not one of 6 pairs can be read; the last: pair 5"):
        pairs.open(tmp_path / "c")
    assert left_behind(tmp_path / "c") == [] and not (tmp_path / "c/train.pack").exists()
    with pytest.raises(UserError, match="no pairs"):
        open_pack(tmp_path, "x", [], SIZE, pairs.read, settings={}, teacher=False, threads=1)


# ----------------------------------------------------------------------------------- ends too early


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, OSError])
def test_a_build_that_ends_early_leaves_the_folder_as_it_was(pairs, tmp_path, error, old):
    where = tmp_path / "c"
    if old:
        pack = pairs.open(where, settings={})
        raw = pack.path.read_bytes()

    def read(i):
        if i == 3:
            raise error
        return pairs.read(i)

    with pytest.raises(error):
        pairs.open(where, read=read)
    assert left_behind(where) == []
    assert (where / "train.pack").exists() == old
    if old:
        assert pack.path.read_bytes() == raw
    assert pairs.builds(where)


def test_ctrl_c(tmp_path):
    pairs = Pairs(tmp_path / "set", n=50)
    pairs.pause = 0.02

    def read(i):
        if i == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return pairs.read(i)

    # A shell starts what it runs in the background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pairs.open(tmp_path / "c", read=read, threads=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left_behind(tmp_path / "c") == [] and not (tmp_path / "c/train.pack").exists()
    asked = len(pairs.asked)
    time.sleep(0.1)
    assert 3 <= len(pairs.asked) == asked < 50  # nobody reads on behind our back


def test_on_the_disk_before_it_has_its_name(pairs, tmp_path, monkeypatch):
    """A power cut must not leave a whole header over missing pictures."""
    called = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (called.append(n), f(*a))[1])
    pairs.open(tmp_path / "c")
    assert called == ["fsync", "replace"]


def test_writes_that_fall_short_are_continued(pairs, tmp_path, monkeypatch):
    class Short(io.FileIO):
        def write(self, data):
            return super().write(data[:100])

    def open_(path, mode, **more):
        return Short(path, "x") if mode == "xb" else open(path, mode, **more)

    monkeypatch.setattr(packed, "open", open_, raising=False)
    assert pairs.builds(tmp_path / "c")
    assert not pairs.builds(tmp_path / "c")


def build_and_hang(root: Path, where: Path) -> None:
    pairs = Pairs(root, make=False)

    def read(i):
        if i == 3:
            (root / "hangs").touch()
            time.sleep(60)
        return pairs.read(i)

    pairs.open(where, read=read)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_builder_blocks_nobody_and_its_remains_go(pairs, tmp_path):
    where = tmp_path / "c"
    where.mkdir()
    other = where / f".train-val.{'0' * 32}.part"  # another name's builder may be at work
    other.touch()
    child = multiprocessing.get_context("spawn").Process(
        target=build_and_hang, args=(pairs.root, where)
    )
    child.start()
    end = time.monotonic() + 15
    while not (pairs.root / "hangs").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert any(name.endswith(".part") for name in left_behind(where) if name != other.name)
    assert pairs.builds(where)
    assert left_behind(where) == [other.name]


# --------------------------------------------------------------------------------------- disk full

NEEDED = 16384 + 33 * N + 2 * 4096


def no_room(pairs: Pairs, where: Path, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        pairs.open(where)
    text = str(caught.value)
    assert f"{where}: no room for the decoded pairs{reason}" in text
    assert "--cache none" in text and "--cache DIR" in text
    assert re.search(r"0\.0 MB needed, [0-9.]+ [MG]B free", text)
    assert left_behind(where) == []


def test_a_small_disk_is_known_before_the_work(pairs, tmp_path, monkeypatch):
    free = SimpleNamespace(total=10**9, used=0, free=NEEDED - 1)
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: free)
    no_room(pairs, tmp_path / "c", ": ")
    assert pairs.asked == []
    free.free += 1
    assert pairs.builds(tmp_path / "c")


def test_an_outdated_pack_makes_room(pairs, tmp_path, monkeypatch):
    where = tmp_path / "c"
    pack = pairs.open(where, settings={})

    def usage(path):
        return SimpleNamespace(total=10**9, free=10 if pack.path.exists() else NEEDED)

    monkeypatch.setattr(packed.shutil, "disk_usage", usage)
    assert pairs.builds(where)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_quota_is_known_before_the_work(pairs, tmp_path, monkeypatch, name):
    def refuse(fd, offset, length):
        assert (offset, length) == (0, NEEDED)
        raise OSError(getattr(errno, name), "as the quota has it")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    no_room(pairs, tmp_path / "c", " (as the quota has it): ")
    assert pairs.asked == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_file_systems_that_cannot_reserve(pairs, tmp_path, monkeypatch, code):
    def refuse(fd, offset, length):
        raise OSError(code, "cannot")

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert pairs.builds(tmp_path / "c")


def under_a_limit(root: Path, where: Path, reserve: bool, out) -> None:
    import resource

    pairs = Pairs(root, make=False)
    where.mkdir()
    if not reserve:
        del os.posix_fallocate
    limit = 8192 + 5 * H * W  # within the third depth map
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        pairs.open(where, threads=1, teacher=False)
    except UserError as error:
        out.send((str(error), len(pairs.asked), left_behind(where)))


@pytest.mark.skipif(os.name != "posix", reason="no such limit here")
@pytest.mark.parametrize("reserve", [True, False])
def test_a_disk_that_fills_up_in_the_middle(pairs, tmp_path, reserve):
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=under_a_limit, args=(pairs.root, tmp_path / "c", reserve, theirs))
    child.start()
    assert ours.poll(15)
    text, asked, left = ours.recv()
    child.join()
    assert "no room for the decoded pairs (File too large)" in text and left == []
    assert asked == 0 if reserve else asked >= 3


# ---------------------------------------------------------------------------------- several at once


def build_with_others(root: Path, where: Path, barrier, out) -> None:
    pairs = Pairs(root, make=False)
    pairs.pause = 0.05
    barrier.wait(15)
    pack = pairs.open(where)
    out.put((len(pairs.asked), pack.rgb.copy(), pack.depth.copy(), pack.stamp))


def test_processes_at_once_build_one_pack(pairs, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier, out = spawn.Barrier(2), spawn.Queue()
    args = (pairs.root, tmp_path / "c", barrier, out)
    children = [spawn.Process(target=build_with_others, args=args) for _ in range(2)]
    for child in children:
        child.start()
    results = [out.get(timeout=15) for _ in children]
    for child in children:
        child.join()
    assert sorted(r[0] for r in results) == [0, N]
    assert results[0][3] == results[1][3]
    for _, rgb, depth, _ in results:
        for i in range(N):
            np.testing.assert_array_equal(rgb[i], pairs.read(i)[0])
            np.testing.assert_array_equal(depth[i], pairs.read(i)[1])
    assert left_behind(tmp_path / "c") == []


@pytest.fixture(params=["flock", "no flock", "flock unsupported"])
def kind_of_lock(request, monkeypatch):
    if request.param == "no flock":
        monkeypatch.setattr(plumbing.files, "fcntl", None)
    elif fcntl is None:
        pytest.skip("no flock here")
    elif request.param == "flock unsupported":

        def flock(fd, how):
            raise OSError(errno.ENOLCK, "no locks available")

        fake = SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4, LOCK_UN=8)
        monkeypatch.setattr(plumbing.files, "fcntl", fake)


def test_the_second_waits_and_says_so(pairs, tmp_path, kind_of_lock):
    """The first is held up in its third pair until the second has said that it waits."""
    where, second = tmp_path / "c", Pairs(pairs.root, make=False)
    inside, waits, said, packs = threading.Event(), threading.Event(), [], []

    def read(i):
        if i == 2:
            inside.set()
            assert waits.wait(10)
        return pairs.read(i)

    def say(text):
        said.append(text)
        waits.set()

    first = threading.Thread(target=lambda: packs.append(pairs.open(where, read=read)))
    first.start()
    assert inside.wait(10)
    packs.append(second.open(where, say=say))
    first.join()
    path = where / "train.pack"
    assert said[0] == f"cache: another process is packing {path}; waiting for it"
    assert said[1] == f"cache: {path}, 0.0 MB" and len(said) == 2 and second.asked == []
    for pack in packs:
        check(pack, pairs)
    assert left_behind(where) == []


def test_a_lock_file_that_nobody_touches_is_taken_away(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(plumbing.files, "fcntl", None)
    monkeypatch.setattr(plumbing.files, "STALE", 0.3)
    where, said = tmp_path / "c", []
    where.mkdir()
    (where / ".train.held").touch()
    start = time.monotonic()
    assert pairs.builds(where, say=said.append)
    assert time.monotonic() - start > 0.3
    assert "waiting" in said[0] and left_behind(where) == []


def test_a_lock_file_that_is_touched_is_respected(pairs, tmp_path, monkeypatch):
    """The holder works for longer than STALE without an end of a pair in sight."""
    monkeypatch.setattr(plumbing.files, "fcntl", None)
    monkeypatch.setattr(plumbing.files, "STALE", 0.6)
    second, inside = Pairs(pairs.root, make=False), threading.Event()

    def read(i):
        if i == 0:
            inside.set()
            time.sleep(1.5)
        return pairs.read(i)

    first = threading.Thread(target=lambda: pairs.open(tmp_path / "c", read=read))
    first.start()
    assert inside.wait(10)
    check(second.open(tmp_path / "c"), pairs)
    first.join()
    assert second.asked == []


# --------------------------------------------------------------------------------- where it stands


def refuse(monkeypatch, *folders: Path) -> None:
    """Nothing can be written to these, as on a read-only mount; permissions do not stop root."""
    real = plumbing.files.why_not_writable

    def why_not_writable(folder):
        return "Read-only file system" if folder.absolute() in folders else real(folder)

    monkeypatch.setattr(plumbing.files, "why_not_writable", why_not_writable)


def test_place_auto_is_beside_the_data_and_kept_out_of_git(tmp_path):
    assert place("auto", tmp_path) == tmp_path / ".litedepth_cache"
    assert (tmp_path / ".litedepth_cache/.gitignore").read_text() == "*\n"
    assert [p.name for p in (tmp_path / ".litedepth_cache").iterdir()] == [".gitignore"]
    assert place("auto", tmp_path) == tmp_path / ".litedepth_cache"
    assert place("none", tmp_path) is None


@pytest.mark.parametrize("layout", ["folders", "scenes", "lists"])
def test_the_data_do_not_see_their_cache(make_rgbd, tmp_path, layout):
    import data

    root = make_rgbd(tmp_path, layout, train=2, val=2)
    before = data.list_pairs(root, "train")
    (place("auto", root) / "train.pack").touch()
    assert data.list_pairs(root, "train") == before
    if layout != "lists":  # the split's own folder as the root, whose scenes are listed
        (place("auto", root / "train") / "train.pack").touch()
        assert data.list_pairs(root, "train") == before


def test_place_auto_of_read_only_data_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "home"))
    roots = [tmp_path / "a/nyu", tmp_path / "b/nyu"]
    refuse(monkeypatch, *(root / ".litedepth_cache" for root in roots))
    for root in roots:
        root.mkdir(parents=True)
    places = [place("auto", root) for root in roots]
    assert places[0] != places[1]  # two sets of one name
    for where in places:
        assert where.parent == tmp_path / "home/packed" and where.is_dir()
        assert re.fullmatch(r"nyu-[0-9a-f]{12}", where.name)
    monkeypatch.chdir(tmp_path / "a")
    assert place("auto", Path("nyu")) == places[0]
    refuse(monkeypatch, roots[0] / ".litedepth_cache", places[0])
    with pytest.raises(UserError, match=r"neither .* nor .* can be written .*--cache none"):
        place("auto", roots[0])


def test_place_makes_no_folder_for_data_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "home"))
    assert place("auto", tmp_path / "missing").parent == tmp_path / "home/packed"
    assert not (tmp_path / "missing").exists()


def test_place_dir(tmp_path, monkeypatch):
    assert place(str(tmp_path / "x/y"), tmp_path) == tmp_path / "x/y"
    assert (tmp_path / "x/y").is_dir() and not any((tmp_path / "x/y").iterdir())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert place("~/z", tmp_path) == tmp_path / "z"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache .*file: cannot be written \(.*exists"):
        place(str(tmp_path / "file"), tmp_path)
    refuse(monkeypatch, tmp_path / "z")
    with pytest.raises(UserError, match="Read-only file system.*--cache none"):
        place("~/z", tmp_path)
    (tmp_path / "z/train.pack").touch()  # packs that others made may be read
    assert place("~/z", tmp_path) == tmp_path / "z"


def test_refusal_asks_the_file_system_itself(tmp_path):
    assert why_not_writable(tmp_path) == "" and not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert why_not_writable(tmp_path / "file/folder") != ""
    if Path("/proc/self").is_dir():  # refuses root as well
        assert why_not_writable(Path("/proc/self")) != ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_permissions(pairs, tmp_path):
    where = tmp_path / "c"
    pack = pairs.open(where)
    pack.path.chmod(0)
    with pytest.raises(UserError, match=r"cannot be opened \(Permission denied\).*--cache"):
        pairs.open(where)
    pack.path.chmod(0o444)
    where.chmod(0o555)
    try:
        assert not pairs.builds(where)  # read-only is enough for a pack that fits
        with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
            pairs.open(where, settings={})
    finally:
        where.chmod(0o755)


def test_errors_of_opening_and_writing_say_so(pairs, tmp_path, monkeypatch):
    """As test_permissions, for root."""
    where = tmp_path / "c"
    (where / "train.pack").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train.pack: cannot be opened \(.*--cache DIR"):
        pairs.open(where)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"train.pack: cannot be (opened|written) \("):
        pairs.open(tmp_path / "file")

    def refused(old, new):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        pairs.open(tmp_path / "d")
    assert left_behind(tmp_path / "d") == []


def test_the_bar_counts_pairs(pairs, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    pairs.open(tmp_path / "c")
    assert "packing 6 pairs, 0.0 MB" in screen.getvalue() and "0/6" in screen.getvalue()
    screen.truncate(0)
    pairs.open(tmp_path / "d", quiet=True)
    assert screen.getvalue() == ""
