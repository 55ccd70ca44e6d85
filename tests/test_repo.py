"""The house rules: imports only go down, every flag advises, README's map exists."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A file may import only what stands in an earlier row.
LAYERS = [
    {"synthetic", "litedepth_kernels", "predict"},  # predict: at its top it needs nothing of ours
    {"model", "losses", "packed"},
    {"data"},
    {"evaluate", "resident", "doctor"},
    {"train", "export"},
    {"distill"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SCRIPTS = sorted(p for p in ROOT.glob("*.py"))


def is_script_part(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`, which hands over to whatever the command is about."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Modules that the file imports, as a module: what it does as a script is left out."""
    body = [node for node in ast.parse(path.read_text()).body if not is_script_part(node)]
    nodes = body if top_only else [n for top in body for n in ast.walk(top)]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_imports_only_go_down(path):
    assert path.stem in RANK, f"{path.name} has no layer"
    ours = imports(path, top_only=path.stem == "predict") & RANK.keys()
    assert all(RANK[name] < RANK[path.stem] for name in ours), ours


def test_only_export_imports_tensorflow():
    assert [p.name for p in SCRIPTS if "tensorflow" in imports(p)] == ["export.py"]


def parsers():
    import distill
    import evaluate
    import export
    import predict
    import train
    from plumbing import doctor
    from plumbing import scenes as synthetic

    return {
        "train.py": train.make_parser(), "distill.py": distill.make_parser(),
        "export.py": export.make_parser(), "evaluate.py": evaluate.make_parser(),
        "predict.py": predict.make_parser(), "synthetic.py": synthetic.make_parser(),
        "data.py": doctor.make_parser(),
    }  # fmt: skip


@pytest.mark.parametrize(
    "script",
    ["train.py", "distill.py", "export.py", "evaluate.py", "predict.py", "synthetic.py", "data.py"],
)
def test_every_flag_has_a_help_that_says_something(script):
    parser = parsers()[script]
    for action in parser._actions:
        assert action.help and len(action.help) > 12, f"{script} {action.option_strings}"
        for flag in action.option_strings:
            assert "-" not in flag.lstrip("-"), f"{flag}: underscores, as everywhere"
    parser.format_help()  # a stray % in a help text raises here


def test_readme_map_names_exist():
    """Every `file.py:name` in README is a function, class or method of that file."""
    readme = (ROOT / "README.md").read_text()
    places = set(re.findall(r"`([a-z_/]+\.(?:py|h)):(\w+(?:\.\w+)*)`", readme))
    assert len(places) >= 20, "README maps the paper's items to code"
    for name, symbol in places:
        text = (ROOT / name).read_text()
        if name.endswith(".py"):
            for part in symbol.split("."):
                found = re.search(rf"^\s*(?:def|class) {part}\b|^{part} =", text, re.M)
                assert found, (name, symbol)
        else:
            assert re.search(rf"\b{symbol}\b", text), (name, symbol)


def test_readme_flags_and_tests_exist():
    """Flags and tests that README names are there, and its commands parse."""
    readme = (ROOT / "README.md").read_text()
    known = {flag for p in parsers().values() for a in p._actions for flag in a.option_strings}
    others = {"--nproc_per_node", "--recurse", "--upgrade"}  # torchrun's, git's, pip's
    others |= {"--graph", "--num_threads", "--num_runs", "--warmup_runs", "--use_gpu"}  # TFLite's
    for bench in (ROOT / "tests").glob("bench_*.py"):
        others |= set(re.findall(r'add_argument\("(--\w+)"', bench.read_text()))
    conftest = (ROOT / "tests/conftest.py").read_text()  # pytest's, ours
    others |= set(re.findall(r'addoption\(\s*"(--\w+)"', conftest))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9]*", readme, re.I))
    assert named - others <= known, named - others - known
    for test in set(re.findall(r"`(tests/\w+\.py)`", readme)):
        assert (ROOT / test).is_file(), test
    count = 0
    for line in re.findall(r"^(?:.*&& *)?python (\w+\.py)([^&|\n#]*)", readme, re.M):
        script, rest = line
        if script in parsers():
            parser = parsers()[script]
            parser.error = lambda message, s=script: pytest.fail(f"{s}: {message}")
            parser.parse_args(shlex.split(rest))
            count += 1
    assert count >= 4


def test_readme_is_finished_and_its_pictures_exist():
    readme = (ROOT / "README.md").read_text()
    assert "@@" not in readme and "TODO" not in readme
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert pictures and all((ROOT / name).is_file() for name in pictures)


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


def test_every_paper_mark_is_in_readmes_choices():
    """Each `PAPER:` in the code stands in a function that README's Choices table names."""
    choices = (ROOT / "README.md").read_text().split("## Choices")[1].split("\n## ")[0]
    for path in SCRIPTS:
        text = path.read_text()
        marks = [text[: m.start()].count("\n") + 1 for m in re.finditer("PAPER:", text)]
        kinds = ast.FunctionDef | ast.ClassDef
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
        for line in marks:
            owners = [n.name for n in nodes if n.lineno <= line <= n.end_lineno]
            named = [o for o in owners if f"{path.name}:{o}" in choices or f".{o}`" in choices]
            assert named, f"{path.name}:{line} ({owners}) is not in Choices"


