"""`fetch` downloads complete sets of checked files, from a hub on this machine."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import NoSpaceLeft
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.download import fetch
from talkinghead_lab.weights.download.variants import COMFY, GGUF, INFINITETALK, PINS, SPEECH, VARIANTS, WAN
from tests.weights.download.hub_server import LARGE, Hub, git_blob, serving
from tests.weights.listed import listed

GGUF_FILE = "wan2.1-i2v-14b-480p-Q8_0.gguf"
GGUF_PLACE = f"Wan2.1-I2V-14B-480P-gguf/{GGUF_FILE}"
CONFIG_PLACE = "Wan2.1-I2V-14B-480P/config.json"


def content(name: str) -> bytes:
    """Bytes that stand for a file: small ones for text, large ones for weights."""
    size = 100 if name.endswith(".json") else 40 * LARGE
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def all_files() -> dict[tuple[str, str], dict[str, bytes]]:
    """The files of all variants at their pinned commits, and some that none needs."""
    files: dict[tuple[str, str], dict[str, bytes]] = {}
    for parts in VARIANTS.values():
        for part in parts:
            commit = files.setdefault((part.repository, PINS[part.repository].commit), {})
            names = [pattern.replace("*", "0.safetensors") for pattern in part.patterns] + ["README.md"]
            commit |= {name: content(name) for name in names}
    return files


def online(hub: Hub, patch: pytest.MonkeyPatch) -> Hub:
    """Have this process take `hub` for the hub, whatever is set around it."""
    for name in [name for name in os.environ if "PROXY" in name.upper()]:
        patch.delenv(name)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", hub.url)
    template = "{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{template}")
    huggingface_hub.close_session()
    return hub


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    with serving(Hub(all_files())) as server:
        yield online(server, monkeypatch)


@pytest.fixture
def shell(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `fetch FOLDER ARGUMENTS`; give status, stdout and stderr."""

    def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["fetch", str(folder), *arguments])
        return status, *capsys.readouterr()

    return run


def found_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def places_of(variant: str) -> list[str]:
    return [
        f"{part.folder}/{pattern.replace('*', '0.safetensors')}"
        for part in VARIANTS[variant]
        for pattern in part.patterns
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_complete_and_checked(variant, hub, shell, tmp_path):
    status, output, errors = shell(tmp_path, "--variant", variant, "--yes")
    assert status == 0, errors
    names = set(places_of(variant))
    assert found_in(tmp_path) == names | {fetch.RECORD}
    for name in names:
        assert (tmp_path / name).read_bytes() == content(name.partition("/")[2])
    commits = json.loads((tmp_path / fetch.RECORD).read_text())["commits"]
    assert commits == {part.repository: PINS[part.repository].commit for part in VARIANTS[variant]}
    assert output == f"export WEIGHTS_DIR={tmp_path}\n"
    before = len(hub.sent)
    assert shell(tmp_path, "--variant", variant)[:2] == (0, output), "nothing is missing, nothing is asked"
    assert len(hub.sent) == before, "files that are there are not downloaded again"


def test_the_official_files_load(checkpoint, monkeypatch, shell, tmp_path):
    def of(name: str) -> dict[str, bytes]:
        paths = [path for path in (checkpoint / name).rglob("*") if path.is_file()]
        return {str(path.relative_to(checkpoint / name)): path.read_bytes() for path in paths}

    adapter = of("infinitetalk_dir").popitem()[1]
    files = {
        WAN: of("ckpt_dir") | {"README.md": b"unused", "examples/a.jpg": b"unused"},
        SPEECH: of("wav2vec_dir") | {"preprocessor_config.json": b"{}", "chinese.pt": b"unused"},
        INFINITETALK: {f"{kind}/infinitetalk.safetensors": adapter for kind in ("single", "multi")},
    }
    with serving(Hub({(name, PINS[name].commit): content for name, content in files.items()})) as hub:
        online(hub, monkeypatch)
        status, output, errors = shell(tmp_path, "--yes")
    assert status == 0, errors
    assert output == f"export WEIGHTS_DIR={tmp_path}\n"
    for speakers in (1, 2):
        _, roles = listed(speakers, weights=tmp_path)
        assert {row.state for row in roles.values()} == {"complete"}
    assert hub.names_sent.isdisjoint({"chinese.pt", "README.md", "examples/a.jpg"})


def test_a_connection_that_breaks_is_continued(hub, shell, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)  # what has not filled a chunk is lost
    hub.cuts[GGUF_FILE] = [10_500]
    status, _, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert status == 0, errors
    assert [start for name, start in hub.sent if name == GGUF_FILE] == [0, 10_000]
    assert (tmp_path / GGUF_PLACE).read_bytes() == content(GGUF_FILE)


@pytest.mark.parametrize(("answers", "status"), [(4, 0), (5, 1)])
def test_a_busy_hub_is_asked_again(answers, status, hub, shell, tmp_path, monkeypatch):
    monkeypatch.setattr("talkinghead_lab.weights.download.hub.SECONDS_BETWEEN_ATTEMPTS", 0.01)
    hub.busy[GGUF_FILE] = answers
    assert shell(tmp_path, "--variant", "gguf-q8", "--yes")[0] == status
    assert (tmp_path / GGUF_PLACE).exists() == (status == 0)


def test_ctrl_c_leaves_what_the_next_call_continues(hub, shell, tmp_path):
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    large = content(GGUF_FILE) * (2 * chunk // 40_000)
    hub.files[GGUF, PINS[GGUF].commit][GGUF_FILE] = large
    hub.cuts[GGUF_FILE] = [chunk + 1_000]
    hub.held.set()
    process = subprocess.Popen(
        [sys.executable, "-m", "talkinghead_lab", "fetch", str(tmp_path), "--variant", "gguf-q8", "--yes"],
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while (
        sum(path.stat().st_size for path in tmp_path.rglob("*.part")) < chunk and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    assert errors.endswith("The same command continues it.\n")
    (part,) = tmp_path.rglob("*.part")
    assert part.read_bytes() == large[:chunk]
    assert not (tmp_path / GGUF_PLACE).exists()
    hub.held.clear()
    status, _, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert status == 0, errors
    assert [start for name, start in hub.sent if name == GGUF_FILE] == [0, chunk]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("place", [GGUF_PLACE, CONFIG_PLACE])
def test_a_damaged_file_is_named_and_downloaded_again(place, hub, shell, tmp_path):
    shell(tmp_path, "--variant", "gguf-q8", "--yes")
    name = place.partition("/")[2]
    right = (tmp_path / place).read_bytes()
    (tmp_path / place).write_bytes(right[:-1] + b"?")
    hub.sent.clear()
    status, _, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert status == 0
    assert f"{place} is damaged" in errors
    assert (tmp_path / place).read_bytes() == right
    assert hub.sent == [(name, 0)]


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_arrives_damaged_is_downloaded_once_more(times, hub, shell, tmp_path):
    hub.damaged[GGUF_FILE] = times
    status, _, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert errors.count(f"{GGUF_PLACE} arrived damaged") == times
    assert status == times - 1
    assert (tmp_path / GGUF_PLACE).exists() == (times == 1)
    if times == 2:
        assert (
            f"received {GGUF_PLACE}; allowed: the digest {hashlib.sha256(content(GGUF_FILE)).hexdigest()}"
            in errors
        )


def test_the_space_for_what_is_missing_is_checked_first(hub, shell, tmp_path, monkeypatch):
    total = sum(len(content(name.partition("/")[2])) for name in places_of("gguf-q8"))
    usage = shutil.disk_usage(tmp_path)

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=count))

    free(total - 1)
    status, _, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert (status, hub.sent) == (NoSpaceLeft.exit_code, [])
    assert f"{(total - 1) / 1e9:.2f} GB free" in errors
    assert f"{total / 1e9:.2f} GB or more" in errors
    place = tmp_path / GGUF_PLACE
    place.parent.mkdir()
    digest = hashlib.sha256(content(GGUF_FILE)).hexdigest()[:12]
    place.with_name(f"{GGUF_FILE}.{digest}.part").write_bytes(content(GGUF_FILE)[:1])
    assert shell(tmp_path, "--variant", "gguf-q8", "--yes")[0] == 0, "what has arrived needs no space"


def test_without_a_terminal_it_takes_a_yes(hub, shell, tmp_path, monkeypatch):
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        status, output, errors = shell(tmp_path, "--variant", "fp8")
    assert (status, output, hub.sent) == (2, "", [])
    assert "GB to go" in errors
    assert errors.endswith("Add --yes.\n")


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("yes", 0), ("n", 1), ("", 1)])
def test_a_terminal_is_asked(answer, status, hub, shell, tmp_path, monkeypatch):
    keyboard, terminal = os.openpty()
    os.write(keyboard, f"{answer}\n".encode())
    with os.fdopen(terminal) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        got, output, errors = shell(tmp_path, "--variant", "fp8")
    os.close(keyboard)
    assert got == status
    assert errors.count("Download? [y/N]") == 1
    assert bool(output) == bool(hub.sent) == (status == 0)


def test_a_commit_that_the_hub_has_lost_is_replaced_and_the_replacement_kept(hub, shell, tmp_path):
    name = "model.safetensors"
    place = tmp_path / "chinese-wav2vec2-base" / name
    files = hub.files.pop((SPEECH, PINS[SPEECH].commit))
    first, second = "1" * 40, "2" * 40
    hub.files |= {(SPEECH, first): files, (SPEECH, second): files | {name: content("another")}}
    hub.branches[SPEECH, "refs/pr/1"] = first
    status, _, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert status == 0
    assert f"no longer has commit {PINS[SPEECH].commit}; {first} is taken" in errors
    hub.branches[SPEECH, "refs/pr/1"] = second
    assert shell(tmp_path, "--variant", "gguf-q8", "--yes")[0] == 0
    assert place.read_bytes() == content(name), "the branch has moved, the folder has not"
    del hub.files[SPEECH, first]
    status, _, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert status == 0
    assert f"files of commit {first}; they become those of {second}" in errors
    assert place.read_bytes() == content("another")


def test_the_token_stays_with_the_hub(hub, shell, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert shell(tmp_path, "--variant", "gguf-q8", "--yes")[0] == 0
    assert hub.tokens == {"hub": {"Bearer hf_secret"}, "other host": {None}}


def spoil(hub: Hub, case: str) -> None:
    if case == "gated":
        hub.gated.add(GGUF)
    elif case == "no repository":
        del hub.files[GGUF, PINS[GGUF].commit]
    elif case == "no file":
        del hub.files[COMFY, PINS[COMFY].commit]["split_files/clip_vision/clip_vision_h.safetensors"]
    elif case == "no revision":
        hub.files[GGUF, "3" * 40] = hub.files.pop((GGUF, PINS[GGUF].commit))
    else:
        hub.files[WAN, PINS[WAN].commit]["google/umt5-xxl/../../../x"] = b"out"


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("gated", f"the repository is gated: received {GGUF}: {GGUF_FILE}. Accept its conditions on http"),
        ("no repository", f"the hub shows no such repository: received {GGUF}."),
        ("no file", f"no file split_files/clip_vision/clip_vision_h.safetensors: received {COMFY} at commit"),
        ("no revision", f"none of the revisions: received {GGUF}; allowed: {PINS[GGUF].commit} or main."),
        ("a name with ..", "a name leads out of the folder: received Wan-AI/Wan2.1-I2V-14B-480P: google"),
    ],
)
def test_what_the_hub_lacks_is_named(case, problem, hub, shell, tmp_path):
    spoil(hub, case)
    status, output, errors = shell(tmp_path, "--variant", "gguf-q8", "--yes")
    assert (status, output) == (1, "")
    line = errors.splitlines()[-1]
    assert line.startswith("DownloadError: ")
    assert problem in line


def test_no_network_is_one_error(shell, tmp_path, monkeypatch):
    with serving(Hub({})) as hub:
        online(hub, monkeypatch)
    status, output, errors = shell(tmp_path, "--yes")
    assert (status, output) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("DownloadError: the hub cannot be reached (ConnectError")
    assert hub.url in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert "Unset HF_HUB_OFFLINE" in shell(tmp_path, "--yes")[2]


def test_git_blobs_are_hashed_as_git_does():
    assert git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_the_pickle_of_the_speech_encoder_s_main_branch_is_read(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint / "wav2vec_dir", tmp_path / "wav2vec_dir"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    folders = {name: str(checkpoint / name) for name in locating.RELEASED_REPOSITORIES}
    _, roles = listed(1, **folders | {"wav2vec_dir": folder})
    assert {row.state for row in roles.values()} == {"complete"}
    files = locating.locate("released", 1, folders | {"wav2vec_dir": str(folder)})
    assert "wav2vec2/pytorch_model.bin" in locating.weight_files(files)
