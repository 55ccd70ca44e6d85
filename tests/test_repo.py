"""The house rules: imports only go down, functions stay small, flags advise, documents are true."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A flat file may import only what stands in an earlier row, and plumbing.
LAYERS = [
    {"losses", "model"}, {"data", "evaluate"}, {"train"}, {"distill"}, {"export"}, {"predict"},
]  # fmt: skip
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FLAT = sorted(ROOT.glob("*.py"))
PLUMBING = sorted((ROOT / "plumbing").glob("*.py"))
DEVICE = {"predict", "files", "flags", "pictures", "runtime", "device", "video", "points",
          "cameras", "calibration"}  # fmt: skip
DOCUMENTS = [ROOT / "README.md", ROOT / "weights/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Modules that the file imports; plumbing's are "plumbing.NAME"."""
    body = ast.parse(path.read_text()).body
    nodes = body if top_only else [n for top in body for n in ast.walk(top)]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "plumbing":
            names |= {f"plumbing.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_imports_only_go_down():
    assert {p.stem for p in FLAT} == RANK.keys()
    for path in FLAT:
        ours = imports(path, top_only=path.stem == "predict") & RANK.keys()
        assert all(RANK[name] < RANK[path.stem] for name in ours), (path.name, ours)
    for path in PLUMBING:
        assert not imports(path) & RANK.keys(), f"{path.name} imports a flat file"
    flat = {p.stem: imports(p) for p in FLAT}
    assert [name for name, found in flat.items() if "tensorflow" in found] == ["export"]


def test_what_runs_on_the_device_needs_three_packages():
    own = {"cv2", "numpy"} | set(__import__("sys").stdlib_module_names)
    for path in [p for p in (*FLAT, *PLUMBING) if p.stem in DEVICE]:
        for name in imports(path, top_only=True):
            part = name.split(".")
            fine = part[1] in DEVICE if part[0] == "plumbing" else part[0] in own
            assert fine, f"{path.name} imports {name}"


def test_functions_fit_a_screen():
    """60 lines and 8 parameters at most, but for what builds a parser."""
    for path in (*FLAT, *PLUMBING):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "parser" not in node.name:
                count = len(node.args.args) + len(node.args.kwonlyargs)
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60 and count <= 8, (path.name, node.name, lines, count)


def parsers():
    import distill
    import evaluate
    import export
    import predict
    import train
    from plumbing import doctor

    return {
        "train.py": train.make_parser(), "distill.py": distill.make_parser(),
        "export.py": export.make_parser(), "evaluate.py": evaluate.make_parser(),
        "predict.py": predict.make_parser(), "data.py": doctor.make_parser(),
    }  # fmt: skip


def test_every_flag_has_a_help_that_says_something():
    for script, parser in parsers().items():
        for action in parser._actions:
            assert action.help and len(action.help) > 5, f"{script} {action.option_strings}"
            for flag in action.option_strings:
                assert "-" not in flag.lstrip("-"), f"{flag}: underscores, as everywhere"
        parser.format_help()  # a stray % in a help text raises here


def test_commands_are_quoted_for_the_shell():
    """In an f-string every value behind "python NAME.py", and one that is told to be given as a
    flag, goes through files.quoted or is formatted as a number."""
    found = 0
    for path in (*FLAT, *PLUMBING):
        for string in ast.walk(ast.parse(path.read_text())):
            before = ""
            for part in string.values if isinstance(string, ast.JoinedStr) else ():
                if isinstance(part, ast.Constant):
                    before += part.value
                elif re.search(r"python \w+\.py|(?:give|with|:) --(?!\w*size)\w+ $", before):
                    call = getattr(getattr(part.value, "func", None), "id", "")
                    number = part.format_spec and part.format_spec.values[0].value[-1:] in "dfg"
                    assert call == "quoted" or number, (path.name, part.lineno, before)
                    found += 1
    assert found > 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_documents_name_what_there_is(document):
    """`file.py:name` is a definition there, `tests/...` a file; flags exist and commands parse;
    pictures and pages that are linked are there."""
    text = document.read_text()
    for name, symbol in set(re.findall(r"`([a-z_/]+\.(?:py|h)):(\w+(?:\.\w+)*)`", text)):
        code = (ROOT / name).read_text()
        for part in symbol.split("."):
            found = re.search(rf"^\s*(?:def|class) {part}\b|^{part}\b.* =|\b{part}\(", code, re.M)
            assert found, (name, symbol)
    known = {flag for p in parsers().values() for a in p._actions for flag in a.option_strings}
    known |= {"--nproc_per_node", "--upgrade", "--help", "--system"}  # torchrun's, pip's, venv's
    known |= {"--graph", "--num_threads", "--num_runs", "--warmup_runs", "--use_gpu"}  # TFLite's
    for bench in (ROOT / "tests/bench").glob("*.py"):
        known |= set(re.findall(r'"(--\w+)"', bench.read_text()))
    known |= set(re.findall(r'"(--\w+)"', (ROOT / "tests/conftest.py").read_text()))
    known |= set(re.findall(r'"(--\w+)"', (ROOT / "tests/fuzz.py").read_text()))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9]*", text, re.I))
    assert named <= known, named - known
    for path in set(re.findall(r"`?\b((?:tests|csrc|docs|plumbing)/[\w/.]+\w)", text)):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / link).is_file(), link
    for name, value in re.findall(r'^([A-Z]+)="(.*)"$', text, re.M):  # the shell's variables
        text = text.replace(f"${name} ", f"{value} ")
    for script, rest in re.findall(r"^(?:.*&& *)?python (\w+\.py)([^&|\n#`]*)", text, re.M):
        if script in parsers():
            parser = parsers()[script]
            parser.error = lambda message, s=script: pytest.fail(f"{s}: {message}")
            parser.parse_args(shlex.split(rest))


def test_readme_is_short_and_finished():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 220 and not re.search(r"@\w+@|TODO", text)


def test_ci_reads_the_readmes_commands():
    """.ci/run finds both commands, and they install alike."""
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / ".ci/run").read_text()
    commands = []
    for mark in ("<!-- main command -->", "<!-- test command -->"):
        assert mark in script
        commands.append(readme.split(mark)[1].split("```sh\n")[1].split("\n")[0])
    main, tests = commands
    assert main.startswith(tests.partition(" && python -m pytest")[0] + " && python train.py")
    assert "requirements.txt" in tests


def test_every_paper_mark_is_in_the_choices():
    """Each `PAPER:` in the code stands in a function that docs/choices.md names."""
    choices = (ROOT / "docs/choices.md").read_text()
    for path in (*FLAT, *PLUMBING):
        text = path.read_text()
        marks = [text[: m.start()].count("\n") + 1 for m in re.finditer("PAPER:", text)]
        kinds = ast.FunctionDef | ast.ClassDef
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
        for line in marks:
            owners = [n.name for n in nodes if n.lineno <= line <= n.end_lineno]
            named = [o for o in owners if f"{path.name}:{o}" in choices or f".{o}`" in choices]
            assert named, f"{path.name}:{line} ({owners}) is not in docs/choices.md"
