"""The paper's Tables 3-6 on pictures that anyone can render, by one command that survives a kill.

    python tests/bench/tables.py --real ROOT --wild ROOT   all rows, then docs/results.md
    python tests/bench/tables.py --tables 3 --time         Table 3's run times
    python tests/bench/tables.py --only render             docs/results.md alone

A row is an ordinary train.py or distill.py command with the paper's settings, scored by evaluate.py
with the weights of its last epoch, chosen by nothing. A finished run is a line of results.jsonl and
counts while its command, code and sets are today's. Not run by pytest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from plumbing.files import UserError, git_state, run_main, say, write_file  # noqa: E402
from plumbing.flags import Parser, count, whole  # noqa: E402
from plumbing.pairs import Source, list_pairs, resolve  # noqa: E402
from plumbing.pictures import INK, WHITE, cv2, write_picture, write_text  # noqa: E402
from plumbing.run import read_log  # noqa: E402

DIVERGES = math.inf  # the paper's empty set


class Row(NamedTuple):
    """Its name, its run's, and of its command what is neither shared nor the script's own default
    (the paper's); then what the paper prints (None: nothing, or it has no such row)."""

    name: str
    run: str
    command: str
    si_rmse: float | None = None
    rmse: float | None = None  # metres
    ms: str = ""  # on a Raspberry Pi 4


SILOG = "train.py --weights 1,0,0,0"
ONE = "distill.py --teacher {teacher} --student none --method"
TWO = "distill.py --teacher {teacher} --student {stage1} --method"
# Suspects of what comes out against the paper: a set so small that crops have something to vary,
# for as many samples, and twice the length.
FEW, LONG = "--data rooms:858 --epochs 165", "--epochs 40"
TABLES = {  # title, rows, the paper's sentences as better<worse (control, few, long: ours)
    4: ("crops, under Eq. 7 alone", [
        Row("no crop", "crop_none", f"{SILOG} --crops none", 0.335, 4.25),
        Row("random crop, 384x512", "crop_one", f"{SILOG} --crops 384x512", 0.377, 4.62),
        Row("R2 crop, 2 sizes", "crop_two", f"{SILOG} --crops 384x512,480x640", 0.327, 4.15),
        Row("R2 crop, 3 sizes", "silog", SILOG, 0.323, 4.11),
        Row("R2 crop, 4 sizes", "crop_four",
            f"{SILOG} --crops 144x256,240x384,384x512,480x640", 0.325, 4.13),
        Row("no crop, 858 pairs", "few_none", f"{SILOG} --crops none {FEW}"),
        Row("2 sizes, 858 pairs", "few_two", f"{SILOG} --crops 384x512,480x640 {FEW}"),
        Row("3 sizes, 858 pairs", "few", f"{SILOG} {FEW}"),
        Row("no crop, 40 epochs", "long_none", f"{SILOG} --crops none {LONG}"),
        Row("3 sizes, 40 epochs", "long", f"{SILOG} {LONG}")],
        "silog<crop_none crop_none<crop_one silog<crop_two silog<crop_four "
        "few<few_none few<few_two long<long_none"),
    5: ("losses", [
        Row("silog", "silog", SILOG, 0.323),
        Row("silog, gradient", "grad", "train.py --weights 1,0.25,0,0", 0.316),
        Row("silog, gradient, virtual normal", "vnl", "train.py --weights 1,0.25,2.5,0", 0.309),
        Row("all four", "default", "train.py", 0.303),
        Row("all four, dynamic weights", "dynamic", "train.py --dynamic_weights", 0.306)],
        "grad<silog vnl<grad default<vnl default<silog default<dynamic"),
    3: ("decoders, without and with MIN", [
        Row("full 3x3", "dec_3x3", "train.py --decoder 3x3", 0.295, None, "62 ms"),
        Row("full 1x1", "dec_1x1", "train.py --decoder 1x1", 0.308, None, "53 ms"),
        Row("mix", "default", "train.py", 0.301, None, "56 ms, with MIN 37 ms")],
        "dec_3x3<default default<dec_1x1"),
    6: ("distillation", [
        Row("teacher", "teacher", "train.py", 0.228, 3.025),
        Row("baseline student", "default", "train.py", 0.303, 3.785),
        Row("student, on without a teacher", "control", "train.py --pretrained {stage1}"),
        Row("L2", "l2", f"{ONE} l2 --fix_last", 0.307, 3.978),
        Row("L2, two-stage", "l2_two", f"{TWO} l2 --fix_last", DIVERGES),
        Row("channel-wise", "channel", f"{ONE} channel", 0.311, 4.045),
        Row("channel-wise, two-stage", "channel_two", f"{TWO} channel", DIVERGES),
        Row("structure-aware", "structure", f"{ONE} structure", 0.306, 3.994),
        Row("structure-aware, two-stage", "structure_two", f"{TWO} structure", 0.301, 3.839)],
        "teacher<default default<l2 default<channel default<structure structure_two<default "
        "structure_two<control"),
}  # fmt: skip
COMMANDS = {row.run: row.command for _, rows, _ in TABLES.values() for row in rows}
SETS = {  # name, evaluate.py's flags, where its report has the si-RMSE that is shown
    "val": ("rendered val", "--data $DATA --image_size 480x640", "metric"),
    "real": ("real val", "--data $REAL", "metric"),
    "wild": ("wild", "--data $WILD --image_size 240x320", "mean_of_scenes"),
}
MARKS = ("<!-- tables -->", "<!-- /tables -->")
DIVERGED = ("predicted 0 m everywhere", "is not finite")  # train.py's words for it
NOT_TRAINING = "predict export doctor video points onnx report tables calibration device".split()


def digest_of(parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def set_digest(data: str) -> str:
    """Of a folder's pictures, by name and size; of a set that is rendered (now, where it is
    missing) by name and focal length, which follows from every random draw and from the views that
    the geometry let pass, and is the same on all machines to far less than the thousandth of a
    pixel that counts here; grey levels are not."""
    root = resolve(Source(data))
    if ":" not in data:
        files = (p for p in sorted(root.rglob("*")) if p.suffix in (".png", ".jpg", ".txt"))
        return digest_of((p.relative_to(root), p.stat().st_size) for p in files)
    frames = [(path.parent.name, name, f"{K['fx']:.3f}", f"{K['fy']:.3f}")
              for path in sorted(root.rglob("intrinsics.json"))
              for name, K in json.loads(path.read_bytes())["frames"].items()]  # fmt: skip
    return digest_of([data, *frames])


def code_digest() -> str:
    """Of what decides a run and its score."""
    files = sorted([*ROOT.glob("*.py"), *ROOT.glob("plumbing/*.py"), *ROOT.glob("csrc/*.*")])
    return digest_of((p.name, p.read_text()) for p in files if p.stem not in NOT_TRAINING)


# ------------------------------------------------------------------------------------------- runs


class Bench:
    """The runs of some tables, each called NAME-SEED. Commands are kept as they are printed, with
    $DATA, $REAL, $WILD and $OUT for this machine's places."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.results = args, args.docs / "results.jsonl"
        self.code, self.sets = "", {}  # digests
        rendered = re.fullmatch(r"\w+:(\d+)", args.data)
        pairs = int(rendered[1]) if rendered else len(list_pairs(Path(args.data), "train"))
        self.epoch = pairs // min(32, pairs) * min(32, pairs)  # samples: what fills no batch waits
        self.epochs = max(1, round(args.samples / self.epoch))

    def planned(self) -> list[str]:
        """Each run once, in the tables' order; those that need others' weights after these."""
        runs = [f"{row.run}-{seed}" for table in self.args.tables for seed in self.args.seeds
                for row in TABLES[table][1] if row.run != "teacher"]  # fmt: skip
        needed = [need for run in runs for need in self.needs(run).values()]
        return sorted(dict.fromkeys([*runs, *needed]), key=lambda run: bool(self.needs(run)))

    def needs(self, run: str) -> dict[str, str]:
        """The runs whose weights this one takes, by what its command calls them; one teacher."""
        name, _, seed = run.rpartition("-")
        runs = {"teacher": f"teacher-{self.args.seeds[0]}", "stage1": f"default-{seed}"}
        return {mark: need for mark, need in runs.items() if f"{{{mark}}}" in COMMANDS[name]}

    def command(self, run: str) -> str:
        """That trains it."""
        a, (name, _, seed), needs = self.args, run.rpartition("-"), self.needs(run)
        weights = {mark: f"$OUT/{need}/last.pt" for mark, need in needs.items()}
        how = f"--epochs {self.epochs} --batch_size 32 --threads 1 --workers 1"
        if name == "teacher":
            how = f"{a.teacher_flags} --threads 2 --workers 2"
        elif "stage1" not in needs:
            how = f"--pretrained {a.pretrained} {how}"
        how = f"--data $DATA {how}"
        for flag in re.findall(r"--(?:data|epochs)", COMMANDS[name]):  # a row's own
            how = re.sub(rf"{flag} \S+ ", "", how)
        return (f"python {COMMANDS[name].format(**weights)} {how} --val_split none --seed {seed} "
                f"--out $OUT/{run}")  # fmt: skip

    def commands(self, run: str) -> list[str]:
        """All that lead to its weights, its own last."""
        run = run.partition("/")[0]  # a timing's
        before = [line for need in self.needs(run).values() for line in self.commands(need)]
        return [*before, self.command(run)]

    def finished(self) -> dict[str, dict]:
        """run -> its newest line that counts."""
        text = self.results.read_text() if self.results.exists() else ""
        lines = {line["run"]: line for line in map(json.loads, text.splitlines())}
        return {run: line for run, line in lines.items()
                if run.partition("-")[0] in COMMANDS and line["commands"] == self.commands(run)
                and (line["code"], line["sets"]) == (self.code, self.sets)}  # fmt: skip

    @property
    def folder(self) -> Path:
        """Of the runs: another one for other code, sets or flags."""
        a = self.args
        flags = a.samples, a.pretrained, a.teacher_flags
        return a.out.resolve() / digest_of([self.code, self.sets, *flags])

    def call(self, command: str, log: str) -> str:
        """Runs a command; what it says goes to a file. The last of that where it fails, or ""."""
        a, log = self.args, self.folder / log
        log.parent.mkdir(parents=True, exist_ok=True)
        places = {"DATA": a.data, "REAL": a.real, "WILD": a.wild, "OUT": self.folder}
        words = [sys.executable, *shlex.split(Template(command).substitute(places))[1:]]
        with open(log, "w") as file:
            code = subprocess.run(words, cwd=ROOT, stdout=file, stderr=file).returncode
        last = (log.read_text(errors="replace").strip() or "no word").splitlines()[-1]
        return f"{last} (all of it: {log})" if code else ""

    def evaluation(self, run: str, key: str) -> str:
        """The command that scores it on one of the SETS."""
        return (f"python evaluate.py {SETS[key][1]} --model $OUT/{run}/last.pt --json "
                f"$OUT/{run}/{key}.json")  # fmt: skip

    def score(self, run: str) -> dict[str, dict[str, float]]:
        """Its figures on each set; none where a prediction is not finite. Raises UserError."""
        scores = {}
        for key in self.sets:
            if failed := self.call(self.evaluation(run, key), f"{run}/{key}.txt"):
                raise UserError(failed)
            report = json.loads((self.folder / run / f"{key}.json").read_text())
            if report["not_finite"]:
                return {}
            figures = report[SETS[key][2]]
            scores[key] = {k: round(figures[k], 5) for k in ("si_rmse", "rmse", "delta1")}
        return scores

    def complete(self, run: str) -> str:
        """Trains to the end, from where it stands, scores and records a run; how it ended, in
        words. Raises UserError: neither finished nor diverged."""
        told = self.call(f"{self.command(run)} --resume", f"{run}.txt")
        if told and not any(sign in told for sign in DIVERGED):
            raise UserError(told)
        scores = {} if told else self.score(run)
        if not scores:
            told = told or "a prediction is not finite"
        seconds = 0.0  # however often stopped
        if log := read_log(self.folder / run):
            batch = json.loads((self.folder / run / "args.json").read_text())["batch_size"]
            rates = [row["images_per_s"] for row in log]
            seconds = sum(log[0]["step"] * batch / rate for rate in rates if rate)
        self.record(run, scores=scores, diverged=told, seconds=round(seconds))
        shown = (f"{SETS[key][0]} {found['si_rmse']:.3f}" for key, found in scores.items())
        return f"diverged: {told}" if told else ", ".join(shown)

    def record(self, run: str, **facts: object) -> None:
        line = {"run": run, **facts, "commands": self.commands(run), "code": self.code,
                "commit": git_state()["commit"], "sets": self.sets}  # fmt: skip
        with open(self.results, "a") as file:
            file.write(json.dumps(line) + "\n")

    def run_all(self) -> None:
        """Whatever is not finished, --jobs at a time. Raises UserError, once all others are done,
        where some failed."""
        done, failed = self.finished(), []
        todo = [run for run in self.planned() if run not in done]
        say(f"code {self.code}, sets {self.sets}: {len(todo)} runs to do")

        def complete(run: str) -> None:
            say(f"{todo.index(run) + 1} of {len(todo)}, {run}: {self.command(run)}")
            try:
                say(f"{run}: {self.complete(run)}")
            except UserError as error:  # the others may be luckier
                failed.append(run)
                say(f"{run}: FAILED: {error}")

        for later in (False, True):
            pool = ThreadPoolExecutor(self.args.jobs)
            try:
                list(pool.map(complete, [r for r in todo if bool(self.needs(r)) == later]))
            finally:  # Ctrl-C: what is being trained was told too, and saves itself
                pool.shutdown(cancel_futures=True)
            if failed:
                raise UserError(f"failed: {', '.join(failed)}; the same command goes on with them")

    def time(self) -> None:
        """Exports Table 3's networks of the first seed and times them, one after the other."""
        for row in TABLES[3][1]:
            for how in ("graph", "weights"):
                run = f"{row.run}-{self.args.seeds[0]}"
                line = (f"python export.py --checkpoint $OUT/{run}/last.pt --normalization {how} "
                        f"--out $OUT/{run}/{how}/model.tflite --data $DATA --split val "
                        "--pictures 50 --runs 200 --warmup 50")  # fmt: skip
                if failed := self.call(line, f"{run}/{how}.txt"):
                    raise UserError(failed)
                report = json.loads((self.folder / run / how / "report.json").read_text())
                ms = report["files"][0]["ms"]["p50"]
                say(f"{row.name}, normalization in the {how}: {ms:.2f} ms")
                self.record(f"{run}/{how}", ms=ms, export=line)


# ------------------------------------------------------------------------------------ the document


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of the values that are finite; NaN where they are too few."""
    values = [v for v in values if math.isfinite(v)]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values) if values else math.nan, error


def cell(values: list[float], digits: int = 3) -> str:
    """Mean and standard error over seeds, and how many of them diverged (infinite)."""
    (mean, error), lost = mean_and_error(values), sum(map(math.isinf, values))
    if math.isnan(mean):
        return "∅" if lost else "-"
    text = f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")
    return text + (f", {lost} of {len(values)} ∅" if lost else "")


def verdict(better: list[float], worse: list[float]) -> str:
    """By how much the one is better that should be, and what that says: nothing where it does not
    exceed twice its standard error, or where there is none, of one seed."""
    (a, error_a), (b, error_b) = mean_and_error(better), mean_and_error(worse)
    gap, error = b - a, math.hypot(error_a, error_b)
    if math.isnan(gap):
        return "-"
    decided = "as in the paper" if gap > 0 else "**against the paper**"
    says = decided if abs(gap) > 2 * error else "undecided at this budget"
    return f"{gap:+.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}") + f", {says}"


def chart(rows: list[Row], figures: dict[str, dict[str, list[float]]]) -> np.ndarray:
    """BGR u8: si-RMSE to the right, a row a line; the paper's as a square, ours as a dot a set with
    its standard error. figures: run -> set -> si-RMSE of each seed."""
    dots = [(61 + 40 * i + 9 * k, k, *mean_and_error(figures[row.run][key]))
            for i, row in enumerate(rows) for k, key in enumerate(SETS)]  # fmt: skip
    dots = [(*dot[:3], 0 if math.isnan(dot[3]) else dot[3]) for dot in dots
            if math.isfinite(dot[2])]  # fmt: skip
    squares = {70 + 40 * i: row.si_rmse for i, row in enumerate(rows)
               if row.si_rmse not in (None, DIVERGES)}  # fmt: skip
    shown = [*squares.values(), *(d[2] - d[3] for d in dots), *(d[2] + d[3] for d in dots)]
    low = math.floor(20 * min(shown))
    high = min(math.ceil(20 * max(shown) + 0.1), low + 15)  # what diverged stands at the edge
    canvas = np.full((90 + 40 * len(rows), 1000, 3), WHITE, np.uint8)
    bottom, colours = len(canvas) - 35, [(180, 90, 20), (30, 120, 230), (60, 150, 60)]

    def x(value: float) -> int:
        return round(330 + (min(20 * value, high) - low) / (high - low) * 630)

    for tick in range(low, high + 1):
        cv2.line(canvas, (x(tick / 20), 50), (x(tick / 20), bottom), (220, 220, 220), 1)
        write_text(canvas, f"{tick / 20:.2f}", x(tick / 20) - 16, bottom + 16, 11)
    for i, row in enumerate(rows):
        write_text(canvas, row.name, 10, 70 + 40 * i, 12)
    for column, y in [(336, 22), *((x(value), y) for y, value in squares.items())]:
        cv2.rectangle(canvas, (column - 6, y - 6), (column + 6, y + 6), INK, 1)
    for y, k, mean, error in dots:
        cv2.line(canvas, (x(mean - error), y), (x(mean + error), y), colours[k], 2, cv2.LINE_AA)
        cv2.circle(canvas, (x(mean), y), 4, colours[k], -1, cv2.LINE_AA)
    write_text(canvas, "si-RMSE: the paper", 352, 22, 12)
    for k, (name, _, _) in enumerate(SETS.values()):
        cv2.circle(canvas, (580 + 140 * k, 22), 4, colours[k], -1, cv2.LINE_AA)
        write_text(canvas, name, 592 + 140 * k, 22, 12)
    return canvas


def markdown(rows: list[list[str]]) -> list[str]:
    """A table, its head first."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return [f"| {' | '.join(row)} |" for row in rows] + [""]


def section(bench: Bench, table: int, lines: dict[str, dict]) -> list[str]:
    """A table, the paper's order and the commands, and a picture in its file; nothing as long as
    that order cannot be looked at."""
    (title, rows, orders), seeds = TABLES[table], bench.args.seeds
    sets = [name for name, _, _ in SETS.values()]

    def values(run: str, key: str, what: str = "si_rmse") -> list[float]:
        own = [line["scores"] for s in seeds if (line := lines.get(f"{run}-{s}"))]
        return [scores[key][what] if scores else math.inf for scores in own
                if not scores or key in scores]  # fmt: skip

    figures = {row.run: {key: values(row.run, key) for key in SETS} for row in rows}
    names = {row.run: row.name for row in rows}
    claims = [[f"{names[a]} < {names[b]}", *(verdict(figures[a][k], figures[b][k]) for k in SETS)]
              for a, b in (order.split("<") for order in orders.split())]  # fmt: skip
    if all(claim[1] == "-" for claim in claims):
        return []
    body = [["", "the paper: si-RMSE, RMSE (m)", *sets, "RMSE (m), rendered val"]]
    body[0] += ["ms here, without and with MIN"] * (table == 3)
    for row in rows:
        paper = [{None: "-", DIVERGES: "∅"}.get(row.si_rmse, row.si_rmse), row.rmse, row.ms]
        cells = [row.name, ", ".join(str(figure) for figure in paper if figure)]
        cells += [cell(figures[row.run][key]) for key in SETS]
        cells.append(cell(values(row.run, "val", "rmse"), 2))
        timed = [lines.get(f"{row.run}-{seeds[0]}/{how}") for how in ("graph", "weights")]
        if table == 3:
            cells.append(", ".join(f"{line['ms']:.2f}" if line else "-" for line in timed))
        body.append(cells)
    write_picture(bench.args.docs / f"table{table}.png", chart(rows, figures))
    commands = [bench.command(f"{row.run}-{seeds[0]}") for row in rows]
    commands += [line["export"] for line in lines.values() if table == 3 and "ms" in line]
    text = [f"### Table {table}: {title}", "", f"![{title}](table{table}.png)", ""]
    text += [*markdown(body), *markdown([["the paper's order", *sets], *claims])]
    return [*text, "```sh", *commands, "```", ""]


def render(bench: Bench) -> None:
    """What stands in results.md between the MARKS, of the newest line's code and sets."""
    a = bench.args
    text = bench.results.read_text() if bench.results.exists() else ""
    if not text:
        raise UserError(f"{bench.results}: no run is finished yet")
    last = json.loads(text.splitlines()[-1])
    bench.code, bench.sets = last["code"], last["sets"]
    lines = bench.finished()
    hours = sum(line.get("seconds", 0) for line in lines.values()) / 3600
    scored = [bench.evaluation(f"default-{a.seeds[0]}", key) for key in bench.sets]
    out = [
        "## The paper's tables, on pictures that anyone can render", "",
        f"si-RMSE, mean ± standard error over seeds {', '.join(map(str, a.seeds))}: "
        f"{bench.epochs * bench.epoch:,} samples a run, `--pretrained {a.pretrained}` (the paper: "
        "ImageNet's), weights of the last epoch, chosen by nothing; wild as the mean over places; "
        "∅ diverged. A gap within twice its standard error is undecided. By "
        f"`tests/bench/tables.py` from results.jsonl: commit {last['commit']}, code "
        f"{bench.code}, $DATA {a.data} of digest {bench.sets['val']}, {hours:.1f} hours of "
        "training. Commands are the first seed's; a run is scored by", "",
        "```sh", *scored, "```", "",
    ]  # fmt: skip
    for table in sorted(TABLES):
        out += section(bench, table, lines)
    path = a.docs / "results.md"
    before, _, rest = (path.read_text() if path.exists() else "# Results").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2].strip("\n")
    text = "\n".join([before.rstrip(), "", MARKS[0], *out, MARKS[1], "", after]).rstrip()
    write_file(path, f"{text}\n".encode())


def numbers(text: str) -> list[int]:
    """An argparse type: "4,5" -> [4, 5]."""
    return [whole(part) for part in text.split(",")]


def place(text: str) -> str:
    """An argparse type: a folder as commands in the repository's root find it, or rooms:N."""
    return text if ":" in text else str(Path(text).resolve())


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="tables.py", description=__doc__.split("\n\n")[0])
    arg = p.add_argument
    arg("--data", type=place, default="rooms:6869", metavar="ROOT|synthetic:N|rooms:N",
        help="trained on; its val split is scored (default rooms:6869, as many as the paper's)")
    arg("--real", type=place, metavar="ROOT", help="real pairs, val is scored (default: none)")
    arg("--wild", type=place, metavar="ROOT",
        help="real pairs of many places, val is scored (default: none)")
    arg("--tables", type=numbers, default=[4, 5, 3, 6], help="in this order (default 4,5,3,6)")
    arg("--seeds", type=numbers, default=[0, 1, 2], help="three at least (default 0,1,2)")
    arg("--samples", type=count, default=140_000,
        help="a run sees, to the nearest epoch (default 140,000; the paper: 4.1 million)")
    arg("--pretrained", default="none", metavar="none|imagenet|FILE",
        help="where students start; the paper's is imagenet, a download (default none)")
    arg("--teacher_flags",
        default="--model swin_nano --pretrained none --lr 1e-3 --drop_path 0 --epochs 29",
        help="train.py's for Table 6's teacher (default '%(default)s', an hour on two cores; the "
        "paper's: '--model swin_l --pretrained imagenet')")
    arg("--jobs", type=count, default=2, help="runs side by side, a core each (default 2)")
    arg("--time", action="store_true", help="time Table 3's exports then; keep the machine idle")
    arg("--only", choices=["render"], help="write the document of what is finished, run nothing")
    arg("--out", type=Path, default=ROOT / "runs/tables", help="the runs (default runs/tables)")
    arg("--docs", type=Path, default=ROOT / "docs",
        help="where results.jsonl, results.md and the pictures are (default docs)")
    args = p.parse_args(argv)
    if unknown := set(args.tables) - TABLES.keys():
        p.error(f"--tables {min(unknown)}: there are 3, 4, 5 and 6")
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `parse`."""
    args = parse(argv)
    bench = Bench(args)
    if not args.only:
        places = {"val": args.data, "real": args.real, "wild": args.wild}
        bench.sets = {key: set_digest(data) for key, data in places.items() if data}
        bench.code = code_digest()
        bench.run_all()
        if args.time:
            bench.time()
    render(bench)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "tables.py"))
