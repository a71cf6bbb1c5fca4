"""The command `notebooks` copies what ships, and replaces changed files only when told."""

from pathlib import Path

import nbformat
import pytest

from talkinghead_lab.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_notebooks_and_presets_are_copied_and_their_paths_printed(folder, capsys):
    assert main(["notebooks", "some/where"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"some/where/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    copies = contents(folder / "some" / "where")
    assert copies.keys() == {Path(path).name for path in printed} | {
        str(path.relative_to(ROOT)) for path in (ROOT / "params").rglob("*.yaml")
    }
    assert copies["01_generate.ipynb"] == (ROOT / "notebooks" / "01_generate.ipynb").read_bytes()
    assert main(["notebooks", "some/where"]) == 0, "copies that were not changed are no obstacle"


def test_changed_files_are_replaced_only_when_told(folder, capsys):
    assert main(["notebooks", "."]) == 0
    original = contents(folder)
    notebook = nbformat.read(folder / "05_tune.ipynb", as_version=4)
    notebook.cells[1].source += "\n"
    nbformat.write(notebook, folder / "05_tune.ipynb")
    (folder / "params" / "embedded.yaml").write_text("seed: 1")
    (folder / "00_setup.ipynb").unlink()
    mine = contents(folder)
    capsys.readouterr()
    assert main(["notebooks", "."]) == 1
    message = capsys.readouterr().err
    assert "05_tune.ipynb, params/embedded.yaml" in message
    assert "--overwrite" in message
    assert contents(folder) == mine, "nothing is copied in part"
    assert main(["notebooks", ".", "--overwrite"]) == 0
    assert contents(folder) == original


def test_a_link_is_replaced_and_what_it_names_is_not(folder):
    (folder / "kept").write_text("mine")
    (folder / "01_generate.ipynb").symlink_to("kept")
    assert main(["notebooks", "."]) == 1
    assert main(["notebooks", ".", "--overwrite"]) == 0
    assert (folder / "kept").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_error(folder, capsys):
    (folder / "file").touch()
    assert main(["notebooks", "file"]) == 1
    assert "the notebooks cannot be copied" in capsys.readouterr().err
