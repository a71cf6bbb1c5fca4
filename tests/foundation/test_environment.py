"""The description of the machine is correct, serialisable and repeatable."""

import json
import os
import subprocess

import torch

import talkinghead_lab
from talkinghead_lab.foundation import environment


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_description_is_serialisable_correct_and_repeatable():
    facts = environment.describe()
    assert facts == environment.describe() == json.loads(json.dumps(facts))
    assert facts["talkinghead_lab"] == talkinghead_lab.__version__
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["torch_threads"] == torch.get_num_threads()
    assert 1 <= facts["cpu_cores"] <= os.cpu_count()
    assert (facts["gpu"] is not None) == torch.cuda.is_available()
    assert None not in [facts[library] for library in environment.LIBRARIES]


def test_a_changed_setting_changes_the_description():
    before = environment.describe()
    torch.use_deterministic_algorithms(True)
    try:
        changed = {name for name, value in environment.describe().items() if value != before[name]}
    finally:
        torch.use_deterministic_algorithms(False)
    assert changed == {"deterministic_algorithms"}


def test_free_space_matches_the_system(tmp_path):
    disk = os.statvfs(tmp_path)
    free = environment.free_space(tmp_path)
    assert abs(free["disk_free_gib"] - disk.f_bavail * disk.f_frsize / 2**30) < 1
    assert 0 < free["memory_free_gib"] <= environment.describe()["memory_gib"]


def test_git_state_is_the_commit_and_marks_a_changed_file(tmp_path):
    assert environment.git_state(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert environment.git_state(tmp_path) is None
    (tmp_path / "module.py").write_text("a = 1\n")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment.git_state(tmp_path) == commit
    (tmp_path / "module.py").write_text("a = 2\n")
    assert environment.git_state(tmp_path) == f"{commit}-dirty"


def test_a_saved_notebook_does_not_mark_the_package_as_changed(tmp_path):
    git(tmp_path, "init", "--quiet")
    package, notebook = tmp_path / "package", tmp_path / "notebook.ipynb"
    package.mkdir()
    for file in (package / "module.py", notebook):
        file.write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    notebook.write_text("saved\n")
    assert environment.git_state(package) == git(tmp_path, "rev-parse", "HEAD")
    (package / "module.py").unlink()
    assert environment.git_state(package).endswith("-dirty")


def test_a_package_installed_inside_someone_elses_checkout_has_no_git_state(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "theirs.py").touch()
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "--quiet", "-m", "theirs")
    installed = tmp_path / ".venv" / "talkinghead_lab"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert environment.git_state(installed) is None
