"""README and pages: links resolve, commands parse, code runs, tables equal the code."""

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from papermill.inspection import inspect_notebook

from talkinghead_lab import __version__
from talkinghead_lab.bench.command import main as bench_main
from talkinghead_lab.commands.parser import parse
from talkinghead_lab.evaluation.manifest import Manifest
from talkinghead_lab.evaluation.set_features import DISTANCES, FEATURE_KINDS
from talkinghead_lab.foundation.parameter_text import Plain
from talkinghead_lab.measures.given_weights import GIVEN_WEIGHTS
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.service import smoke
from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.schemas import VideoRequest
from talkinghead_lab.sweeps.definition import Sweep, is_sweep
from talkinghead_lab.training.command import main as training_main
from tests.doc_tables import parameter_table, table_of

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [
    *(README, ROOT / "MODEL_CARD.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# `main` functions that build their parser themselves; `parse` is enough of the others.
PARSERS: dict[str, Callable[[list[str]], object]] = {
    "talkinghead_lab": parse,
    "talkinghead_lab.service.smoke": smoke.parse,
    "talkinghead_lab.bench": bench_main,
    "talkinghead_lab.training": training_main,
}
VARIABLES = {
    *("WEIGHTS_DIR", "CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR"),
    *(weights.variable for weights in GIVEN_WEIGHTS),
    *("INFINITETALK_CHECKOUT", "LIGHTX2V_CHECKOUT", "TALKINGHEAD_CAPABILITY"),
}
# Commands whose arguments are the reader's own, or checked by what follows them.
NOT_OURS = {"eval", "source", "mkdir", "docker", "conda", "pre-commit"}


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def fences(*languages: str) -> Iterator[tuple[str, str]]:
    """(page, text) of every fenced block in one of these languages."""
    for page in PAGES:
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
            if language in languages:
                yield page.name, text


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", without_fences(page.read_text()), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        earlier = found.count(slug)
        found.append(f"{slug}-{earlier}" if earlier else slug)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_images_and_anchors_resolve(page):
    text = without_fences(page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_targets_exist(page):
    text = without_fences(page.read_text())
    for path in re.findall(r"`((?:params|notebooks|tests|docs|talkinghead_lab)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make ([a-z]+)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target
    for name in re.findall(r"`python -m ([\w.]+)", text):
        assert importlib.util.find_spec(name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_names_its_language(page):
    opened = re.findall(r"^```(.*)$", page.read_text(), re.M)[::2]
    assert set(opened) <= {"sh", "python", "yaml", "json", "html", "text"}


def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell fence, as a shell would read them."""
    found = []
    for page, text in fences("sh"):
        pending = ""
        for line in text.splitlines():
            pending += line
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # a quotation that ends on a later line
                pending += "\n"
                continue
            if words:
                found += [(page, part.strip()) for part in pending.split(" && ")]
            pending = ""
        assert not pending, f"{page}: unfinished command {pending}"
    return found


COMMANDS = commands()


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {text}" for page, text in COMMANDS])
def test_commands_are_understood(page, command, monkeypatch):
    program, *words = shlex.split(command, comments=True)
    if program in NOT_OURS:
        return
    {
        "make": check_make,
        "python": check_python,
        "torchrun": check_torchrun,
        "papermill": check_papermill,
        "curl": check_curl,
        "pip": check_pip,
        "export": check_export,
        "cd": check_folder,
    }[program](words, monkeypatch)


def check_make(words, _):
    targets = [word for word in words if "=" not in word]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.M), f"no target {target}"
    for variable in (word.partition("=")[0] for word in words if "=" in word):
        assert re.search(rf"\$\$?\(?{variable}\b|^{variable} \?=", MAKEFILE, re.M), variable


def check_python(words, monkeypatch):
    dash_m, module, *arguments = words
    assert dash_m == "-m"
    if module == "pip":
        return
    if module == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/"))
        return
    assert importlib.util.find_spec(module)
    if module in PARSERS:
        options = parse_only(PARSERS[module], arguments, monkeypatch)
        if module == "talkinghead_lab" and options is not None:
            check_request(options)


class Parsed(Exception):
    """A command line was understood."""


def parse_only(
    parser: Callable[[list[str]], object], arguments: list[str], monkeypatch
) -> argparse.Namespace:
    """What a command line becomes; nothing is run. A word that is not understood exits with status 2."""
    understood = argparse.ArgumentParser.parse_args
    parsed: list[argparse.Namespace] = []

    def stop(self, *given, **named):
        parsed.append(understood(self, *given, **named))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        parser(arguments)
    return parsed[0]


def check_request(options: argparse.Namespace) -> None:
    """The parameter file of a command exists, and is valid with the values given."""
    if "sweep" in options:
        assert Sweep.from_yaml(shown(options.sweep)).cells()
    if "params" in options and is_sweep(shown(options.params)):
        assert Sweep.from_yaml(shown(options.params)).cells()
    elif "params" in options:
        overrides = {name: Plain(value) for name, value in getattr(options, "overrides", [])}
        assert GenerationParams.from_yaml(shown(options.params), **overrides)


def shown(file: Path) -> Path:
    """A parameter file as a reader in the project's folder names it: a path, or a preset's name."""
    return ROOT / file if (ROOT / file).exists() else file


def check_torchrun(words, monkeypatch):
    check_python(["-m", *words[words.index("--") + 1 :]], monkeypatch)


def check_papermill(words, _):
    if words[0] == "--help-notebook":
        assert inspect_notebook(str(ROOT / words[1]))
        return
    notebook, output, *options = words
    parameters = inspect_notebook(str(ROOT / notebook))
    assert parameters
    assert output.startswith("outputs/")
    while options:
        if options[0] == "-f":
            assert GenerationParams.from_yaml(ROOT / options[1])
            options = options[2:]
        else:
            assert options[0] == "-p"
            assert options[1] in parameters
            options = options[3:]


def check_curl(words, _):
    (url,) = [word for word in words if word.startswith("localhost")]
    path = url.removeprefix("localhost:8200")
    assert path in create_app().openapi()["paths"]
    if "--json" in words:
        body = json.loads(words[words.index("--json") + 1])
        assert VideoRequest.model_validate(body)


def check_pip(words, _):
    (extra,) = re.findall(r"\.\[(\w+)\]", " ".join(words))
    assert extra in PROJECT["optional-dependencies"]


def check_export(words, _):
    assert {word.partition("=")[0] for word in words} <= VARIABLES


def check_folder(words, _):
    assert (ROOT / words[0]).is_dir()


PYTHON = list(fences("python"))


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_compiles_its_imports_resolve_and_its_files_exist(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("params/"):
            assert (ROOT / str(node.value)).exists(), node.value


YAML = list(fences("yaml"))


@pytest.mark.parametrize(("page", "text"), YAML, ids=[page for page, _ in YAML])
def test_yaml_is_a_valid_request_sweep_or_manifest(page, text):
    fields = yaml.safe_load(text)
    if "clips" in fields:
        assert Manifest(**fields)
    else:
        assert Sweep.from_sections(fields).cells() if "axes" in fields else GenerationParams(**fields)


def test_json_is_valid():
    assert [json.loads(text) for _, text in fences("json")]


def test_the_table_of_parameters_equals_the_code():
    assert table_of("parameters") == parameter_table(), "run: python -m tests.doc_tables"


def test_the_table_of_measures_equals_the_code():
    text = (ROOT / "docs" / "measures.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\w+) \| (.+) \| (.+) \|$", text, re.M)
    assert [(name, unit, better, source) for name, unit, better, _, source in rows] == [
        (name, kind.unit, kind.better, kind.source) for name, kind in KINDS.items()
    ]
    assert f"{len(KINDS)} measures" in README.read_text()


def test_the_table_of_distances_equals_the_code():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\d+) \| (\w+) \| (.+) \| (.+) \|$", text, re.M)
    assert rows == [
        (
            name,
            DISTANCES[name].better,
            str(kind.channels),
            kind.sample,
            DISTANCES[name].source,
            f"`{kind.weights.variable}`" if kind.weights else "cartoon presenters",
        )
        for kind in FEATURE_KINDS
        for name in (kind.frechet, kind.kernel)
    ]


def test_the_table_of_given_weights_equals_the_code():
    text = (ROOT / "docs" / "measures.md").read_text()
    rows = re.findall(r"^\| `([A-Z_0-9]+)` \| \[(.+)\]\(.+\) \| (.+) \| (.+) \|$", text, re.M)
    kinds = KINDS | DISTANCES
    assert rows == [
        (
            weights.variable,
            weights.file,
            "<br>".join(f"`{digest}`" for digest in weights.digests) or "any",
            ", ".join(f"`{name}`" for name, kind in kinds.items() if weights in kind.weights),
        )
        for weights in GIVEN_WEIGHTS
    ]


def test_the_table_of_folders_equals_the_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(
        r"^\| `(\w+)/` \|", text.partition("## Folders")[2].partition("## Contracts")[0], re.M
    )
    package = ROOT / "talkinghead_lab"
    folders = {folder.name for folder in package.iterdir() if folder.is_dir() and folder.name[0] != "_"}
    assert sorted(listed) == sorted(folders)


def test_every_preset_notebook_and_page_is_listed():
    listed = re.findall(r"^\| `([\w-]+\.yaml)` \|", (ROOT / "docs" / "parameters.md").read_text(), re.M)
    assert set(listed) == {path.name for path in (ROOT / "params").glob("*.yaml")}
    notebooks = (ROOT / "docs" / "notebooks.md").read_text()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"](../notebooks/{notebook.name})" in notebooks, notebook.name
    contents = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"]({page.name})" in contents or page.name == "index.md", page.name


def test_the_readme_is_short_and_begins_with_a_moving_picture():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    picture = re.search(r"\]\((outputs/published/\S+\.gif)\)", "\n".join(lines[:20]))
    assert picture
    assert (ROOT / picture[1]).stat().st_size < 1_500_000


def test_citation_and_model_card_are_well_formed():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    assert citation["authors"] == [{"name": "talkinghead_lab contributors"}]
    assert all({"type", "title", "authors"} <= reference.keys() for reference in citation["references"])
    _, front_matter, body = (ROOT / "MODEL_CARD.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front_matter)
    assert {"license", "language", "tags", "pipeline_tag", "library_name"} <= card.keys()
    assert card["license"] == PROJECT["license"].lower()
    for section in ("Model details", "Uses", "Limits and bias", "Training data", "Evaluation"):
        assert f"\n## {section}\n" in body
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python -m talkinghead_lab plan params/embedded.yaml", "smallest vram_budget_gib"),
        ("papermill --help-notebook notebooks/01_generate.ipynb", "audio_guide_scale"),
        ("make", "make demo"),
    ],
)
def test_commands_work_in_a_fresh_shell(command, shown):
    """With the environment activated as the README says, or with this Python's folder where there is none."""
    activate = ROOT / ".venv" / "bin" / "activate"
    folder = Path(sys.executable).parent
    first = f"source {shlex.quote(str(activate))}" if activate.exists() else f'PATH={folder}:"$PATH"'
    clean = {name: os.environ[name] for name in ("HOME", "LANG", "TALKINGHEAD_CACHE") if name in os.environ}
    done = subprocess.run(
        ["bash", "-c", f"{first} && {command}"],
        cwd=ROOT,
        env=clean | {"PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
