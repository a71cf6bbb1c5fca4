"""pyproject.toml, the lock, environment.yml, the Makefile and the package's own imports say the same."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = ("params", "notebooks")  # copied into the wheel by setup.py
EXTRAS = PROJECT["optional-dependencies"]
LOCK = ROOT / "requirements.lock"
TORCH = ROOT / "requirements-torch.txt"
TRITON = ROOT / "requirements-triton.txt"
PYTHONS = ("3.11", "3.12", "3.13")
ABSENT = {"fa3_fwd_interface": "fa3-fwd", "pynvml": "nvidia-ml-py"}
CUDA_ONLY = re.compile(r"^(nvidia|cuda|sageattention|triton)\b")


def entries(file: Path = LOCK) -> list[tuple[str, list[str]]]:
    """The pins of a file, each `name==version` with an optional marker, and the hashes of each."""
    text = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#"))
    pins = [re.split(r"\s*\\\n\s+", pin) for pin in re.split(r"\n(?=\S)", text)]
    return [(pin, hashes) for pin, *hashes in pins]


def torch() -> Requirement:
    """The only line of requirements-torch.txt that is no comment."""
    (line,) = [line for line in TORCH.read_text().splitlines() if not line.startswith("#")]
    return Requirement(line)


def locked() -> list[Requirement]:
    """Everything that `make setup` installs, PyTorch included."""
    return [*(Requirement(pin) for pin, _ in entries()), torch()]


def pins(python: str) -> dict[str, str]:
    """Locked version of every package that this Python needs on Linux."""
    machine = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in locked()
        if pin.marker is None or pin.marker.evaluate(machine)
    }


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    return [Requirement(text) for group in [PROJECT["dependencies"], *EXTRAS.values()] for text in group]


def to_lock() -> list[Requirement]:
    """Requirements that `make setup` installs.

    Not the face detector (300 MB that few need), the kernel for Hopper GPUs and the peer of the benchmark.
    """
    extras = ("bench", "faces", "hopper")
    left_out = {Requirement(text).name for name in extras for text in EXTRAS[name]}
    return [requirement for requirement in declared() if requirement.name not in left_out]


def test_the_lock_has_exact_versions_with_hashes_and_no_hosts():
    for pin, hashes in entries():
        assert re.match(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*( ; [^#]+)?$", pin), pin
        assert not CUDA_ONLY.match(pin), f"{pin}: left to the machine's own PyTorch"
        assert hashes, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes), pin
    names = [canonicalize_name(Requirement(pin).name) for pin, _ in entries()]
    assert names == sorted(set(names) - {"torch"})


def test_pytorch_is_pinned_by_version_alone():
    """A CPU build and a CUDA build of one version have different hashes."""
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", str(torch()))


def test_triton_is_pinned_with_hashes_as_this_pytorch_needs_it():
    ((pin, hashes),) = entries(TRITON)
    triton = Requirement(pin)
    assert triton.name == "triton"
    assert re.fullmatch(r"==\d+\.\d+\.\d+", str(triton.specifier))
    assert "sys_platform == 'linux'" in pin
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes) and hashes
    needed = [each for each in map(Requirement, requires("torch") or []) if each.name == "triton"]
    assert all(each.specifier == triton.specifier for each in needed), "a CUDA build brings it itself"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_locked_inside_its_range(python):
    versions = pins(python)
    for requirement in to_lock():
        version = versions[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement}: locked is {version}"


def test_the_lock_is_complete():
    """What a locked package asks for is locked too, at a version it accepts: pip has nothing to choose."""
    versions = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    for name in versions:
        for needed in map(Requirement, requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                wanted = canonicalize_name(needed.name)
                if not CUDA_ONLY.match(wanted):
                    assert versions[wanted] in needed.specifier, f"{name} needs {needed}"


def test_environment_yml_gives_the_same_pins():
    """It reads the lock itself and chooses only Python, within the project's range."""
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    python, pip, from_pip = environment["dependencies"]
    assert python.removeprefix("python=") in PYTHONS
    assert pip == "pip"
    assert from_pip == {"pip": [f"--requirement {LOCK.name}"]}
    assert environment["name"] == PROJECT["name"]
    assert 'make setup VENV="$CONDA_PREFIX"' in text, "installs PyTorch and the package, as everywhere"


def test_the_range_of_pythons_is_the_one_that_is_locked():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}.1" in allowed] == list(PYTHONS)
    for python in PYTHONS:
        assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_the_package_imports_what_it_declares_and_nothing_more():
    distributions = packages_distributions()
    imported = {
        canonicalize_name(distribution)
        for name in top_level_imports(ROOT / "talkinghead_lab")
        - sys.stdlib_module_names
        - {"talkinghead_lab"}
        for distribution in distributions.get(name, [ABSENT.get(name, name)])  # an extra may not be there
        if not CUDA_ONLY.match(distribution)
    }
    runtime = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    extras = {canonicalize_name(requirement.name) for requirement in declared()} - runtime
    only_in_notebooks = {"ipywidgets", "jupyterlab", "papermill"}  # tqdm draws with ipywidgets there
    assert imported - extras <= runtime, f"not declared: {imported - extras - runtime}"
    assert runtime <= imported | only_in_notebooks, (
        f"declared for nothing: {runtime - imported - only_in_notebooks}"
    )


def top_level_imports(folder: Path) -> set[str]:
    """First names of all absolute imports in a folder's modules, those inside functions included."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("talkinghead_lab", *SHIPPED):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(command, cwd=folder, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("talkinghead_lab/")}
    ours = {
        str(path.relative_to(wheel.parent))
        for path in (wheel.parent / "talkinghead_lab").rglob("*")
        if path.is_file()
    }
    shipped = {
        f"talkinghead_lab/shipped/{file.relative_to(ROOT)}"
        for folder in SHIPPED
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".yaml", ".ipynb")
    }
    assert len(shipped) > 10
    assert packed == ours | shipped


def test_the_source_distribution_holds_what_the_wheel_is_built_from():
    """setuptools packs the package and setup.py itself; MANIFEST.in names the folders beside it."""
    manifest = (ROOT / "MANIFEST.in").read_text().splitlines()
    assert {f"graft {folder}" for folder in SHIPPED} <= set(manifest)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Callable[..., str]:
    """Run the Python of an environment with the wheel in an empty folder; return what it prints.

    Dependencies come from the environment of the tests, the package only from the wheel.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    (site,) = (folder / "env" / "lib").glob("python3.*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-index", wheel], check=True)

    def run(*arguments: str, cwd: Path) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"
        done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    imported = run("-c", "import talkinghead_lab; print(talkinghead_lab.__file__)", cwd=folder)
    assert Path(imported).is_relative_to(site)
    return run


TINY = {"frame_size": "32x32", "chunk_frames": 5, "motion_frame": 1, "max_frames": 5, "diffusion_steps": 1}
OVERRIDES = [text for name, value in TINY.items() for text in ("-p", name, str(value))]


@pytest.mark.slow
def test_the_installed_wheel_makes_a_video_of_a_preset_in_an_empty_folder(installed, tmp_path):
    video = tmp_path / installed("-m", "talkinghead_lab", "generate", "embedded", *OVERRIDES, cwd=tmp_path)
    assert video.stat().st_size > 1000
    assert video.is_relative_to(tmp_path / "outputs")
    read = (
        "from talkinghead_lab import GenerationParams as G; print(G.from_yaml('embedded-fast').seam_frames)"
    )
    assert installed("-c", read, cwd=tmp_path) == "8"


@pytest.mark.slow
def test_notebooks_of_the_installed_wheel_run_in_an_empty_folder(installed, tmp_path):
    notebooks = installed("-m", "talkinghead_lab", "notebooks", "mine", cwd=tmp_path).splitlines()
    assert notebooks[1] == "mine/01_generate.ipynb"
    given = ["-f", "mine/params/embedded.yaml", *OVERRIDES, "-p", "run_dir", "run"]
    installed(
        "-m", "papermill", "--kernel", "python3", "--no-progress-bar", notebooks[1], "done.ipynb", *given,
        cwd=tmp_path,
    )  # fmt: skip
    assert list((tmp_path / "run").glob("*.mp4"))


def test_make_lists_its_targets_by_default():
    def make(*arguments: str) -> str:
        done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout

    listed = re.findall(r"^  make (\S+)", make(), re.M)
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert listed == phony.group(1).split()
    assert {"setup", "demo", "test", "lint", "lab", "notebooks"} <= set(listed)
