"""House rules that no linter knows."""

import ast
import re
from collections.abc import Iterator

import pytest

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
# A compiled kernel cannot be cut into functions at will, so these files get twice as much.
LONGEST_KERNEL = 120
KERNEL_FILE = re.compile(
    r"^kernels/lychee_kernels/\w+/(triton|attend|merge|histogram|compact)\.py$|^lychee_sgl/cpu/loops\.py$"
)
# Places of one machine. A path in a document has to work on every one.
MACHINE_PATH = re.compile(r"(?<![\w.~}$-])/(?:root|work|tmp|opt|mnt|home|Users)/\w")
UNANCHORED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b(?!\()")


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_stay_short(sources: dict[str, str]) -> None:
    lengths = {name: len(text.splitlines()) for name, text in sources.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_stay_short(sources: dict[str, str]) -> None:
    long = {}
    for name, text in sources.items():
        allowed = LONGEST_KERNEL if KERNEL_FILE.search(name) else LONGEST_FUNCTION
        for function in functions(ast.parse(text)):
            first = function.body[0]
            start = (first.end_lineno or 0) + 1 if ast.get_docstring(function) else first.lineno
            length = (function.end_lineno or 0) - start + 1
            if length > allowed:
                long[f"{name}:{function.name}"] = length
    assert long == {}


def test_only_command_lines_print(sources: dict[str, str]) -> None:
    printing = {
        f"{name}:{node.lineno}"
        for name, text in sources.items()
        if not name.endswith(("/cli.py", "/__main__.py"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == set()


def test_every_module_says_what_it_is_for(sources: dict[str, str]) -> None:
    silent = {name for name, text in sources.items() if ast.get_docstring(ast.parse(text)) is None}
    assert silent == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [("see /ro" + "ot/x", True), ("~/wo" + "rk/x", False), ("https://a.b/home/x", False), ("/ho" + "me/a", True)],
)
def test_pattern_of_machine_paths(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_file_knows_one_machine(texts: dict[str, str]) -> None:
    found = {
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    }
    assert found == set()


def test_open_ends_are_anchored(texts: dict[str, str]) -> None:
    found = {
        f"{name}:{number}"
        for name, text in texts.items()
        if name.endswith((".py", ".md", ".toml", ".yml", "Makefile")) and name != "tests/repo/test_sources.py"
        for number, line in enumerate(text.splitlines(), 1)
        if UNANCHORED.search(line)
    }
    assert found == set()
