"""Rules of the code that ruff and import-linter cannot check."""

import ast
import importlib.util
import json
import os
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


def test_files_stay_short():
    """At most 400 lines; no rule of ruff counts them."""
    lengths = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_modules_only_define():
    """No statement at module level acts: no warning filter, no global setting, no registration."""
    acting = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for file in MODULES
        for node in ast.parse(file.read_text()).body
        if acts(node)
    ]
    assert acting == []


def acts(node: ast.stmt) -> bool:
    """Whether a statement does more than define names of its own module."""
    called = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    changes_another = isinstance(node, ast.Assign) and not all(
        isinstance(part, ast.Name | ast.Tuple) for part in node.targets
    )
    return (
        called or changes_another or isinstance(node, ast.For | ast.While | ast.With | ast.Try | ast.Delete)
    )


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
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    before, after, made = json.loads(done.stdout)
    assert before == after
    assert made == []


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
        assert isinstance(statement, ast.AnnAssign), "papermill lists its type"
        assert statement.value is not None
        ast.literal_eval(statement.value)
    parameters = inspect_notebook(str(path))
    assert len(parameters) == len(statements)
    for name, parameter in parameters.items():
        assert len(parameter["help"]) > 5, f"{name}: say what it is in a comment on its line"
        assert parameter["inferred_type_name"] in ("str", "int", "float", "bool", "list", "dict")
