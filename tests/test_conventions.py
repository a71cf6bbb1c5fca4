"""The shape of the code: who imports whom, how long things are, what notebooks and imports may do."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.inspection import inspect_notebook

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "talkinghead_lab"
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def definitions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Every function and class of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_stay_short_and_explained(file):
    assert len(file.read_text().splitlines()) <= 400
    if file.read_text().strip():
        assert ast.get_docstring(ast.parse(file.read_text())), "say what the module is for"
    for node in definitions(file):
        if not isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has more than 60 lines"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_is_public_says_its_purpose(file):
    tree = ast.parse(file.read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_only_defines(file):
    """No statement at the top of a module acts: no filter of warnings, no setting, no registration."""
    for node in ast.parse(file.read_text()).body:
        called = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        changes_another = isinstance(node, ast.Assign) and not all(
            isinstance(part, ast.Name | ast.Tuple) for part in node.targets
        )
        runs = isinstance(node, ast.For | ast.While | ast.With | ast.Try | ast.Delete)
        assert not (called or changes_another or runs), f"{file.name}:{node.lineno}: {ast.unparse(node)}"


def test_importing_every_module_has_no_effect(tmp_path):
    """In a process of its own: nothing printed or written, no device touched, no global setting changed."""
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in MODULES
        if file.stem != "__main__"
        and ("import triton" not in file.read_text() or importlib.util.find_spec("triton"))
    ]
    effects = f"""
import importlib, json, os, random, sys
import matplotlib, numpy, torch, transformers  # what these do themselves is not ours
state = lambda: [
    torch.cuda.is_initialized(), torch.initial_seed(), hash(random.getstate()),
    numpy.random.get_state()[2], torch.get_num_threads(),
    torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype().itemsize,
    matplotlib.get_backend(auto_select=False), "matplotlib.pyplot" in sys.modules,
]
before = state()
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps([before, state(), os.listdir()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", effects],
        cwd=tmp_path,
        env=environment_with_package(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    before, after, made = json.loads(done.stdout)
    assert before == after
    assert made == []


def environment_with_package() -> dict[str, str]:
    """The environment with this checkout's package importable from any folder."""
    import os

    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS][:2] == ["00_setup", "01_generate"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_flat_and_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 8 <= len(notebook.cells) <= 12
    assert notebook.cells[0].source.startswith("# ")
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 60


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_of_a_notebook_are_literals_each_explained(path):
    (cell,) = [cell for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", [])]
    statements = ast.parse(cell.source).body
    assert len(statements) == len(cell.source.splitlines())
    for statement in statements:
        assert isinstance(statement, ast.Assign)
        assert len(statement.targets) == 1
        ast.literal_eval(statement.value)
    parameters = inspect_notebook(str(path))
    assert len(parameters) == len(statements)
    for name, parameter in parameters.items():
        assert len(parameter["help"]) > 5, f"{name}: say what it is in a comment on its line"
