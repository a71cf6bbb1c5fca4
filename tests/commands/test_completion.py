"""Completion in real shells: commands, options, presets, and fields with their values after `-p`."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
REGISTRATION = 'eval "$(register-python-argcomplete talkinghead_lab)"'
# What readline does at the tab key, for the line in $1.
COMPLETE = r"""
COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9
read -ra COMP_WORDS <<<"$1"; [[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete talkinghead_lab
printf '%s\n' "${COMPREPLY[@]}"
"""

pytestmark = pytest.mark.skipif(
    not (PROGRAMS / "talkinghead_lab").exists() or not (PROGRAMS / "register-python-argcomplete").exists(),
    reason="needs the package installed with its scripts",
)


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def completed(tmp_path) -> Callable[[str], list[str]]:
    """What bash offers at the end of a line, in a folder with some files."""
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "music.wav").touch()

    def complete(line: str) -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", f"{REGISTRATION}\n{COMPLETE}", "bash", line],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return [word.strip() for word in done.stdout.splitlines() if word.strip()]

    return complete


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("talkinghead_lab ", {"generate", "plan", "sweep", "notebooks", "fetch"}),
        ("talkinghead_lab gen", {"generate"}),
        ("talkinghead_lab generate embedded --r", {"--run"}),
        ("talkinghead_lab generate emb", {"embedded", "embedded-fast"}),
        ("talkinghead_lab plan m", {"mine.yaml"}),
        ("talkinghead_lab sweep swe", {"sweep-cfg", "sweep-step"}),
        ("talkinghead_lab plan embedded -p audio_", {"audio_path", "audio_guide_scale", "audio_mix"}),
        ("talkinghead_lab sweep sweep-cfg -p se", {"seed", "seam_frames"}),
        ("talkinghead_lab generate embedded -p crop ", {"center", "top", "face", "none"}),
        ("talkinghead_lab generate embedded -p seed 7 -p use_apg t", {"true"}),
        ("talkinghead_lab generate embedded -p image_path sample:por", {"portrait", "portrait-2"}),
        ("talkinghead_lab generate embedded -p audio_path mus", {"music.wav"}),
        ("talkinghead_lab generate embedded -p crop face --j", {"--json"}),
        ("talkinghead_lab fetch weights --variant gg", {"gguf-q8", "gguf-q4"}),
    ],
)
def test_bash_is_offered(line, offered, completed):
    found = completed(line)
    assert offered <= set(found)
    prefix = line.rpartition(" ")[2].rpartition(":")[2]
    assert all(word.startswith(prefix) for word in found)


def test_a_sweep_is_not_offered_where_a_request_is_needed(completed):
    assert not [word for word in completed("talkinghead_lab generate ") if word.startswith("sweep-")]
    assert "embedded" not in completed("talkinghead_lab sweep ")


def interactive(command: str, folder: Path, settings: str) -> pexpect.spawn:
    """A shell in which completion is registered."""
    shell = pexpect.spawn(
        command, cwd=str(folder), env=environment() | {"TERM": "dumb"}, encoding="utf-8", timeout=60
    )
    shell.sendline(f"PS1='ready> '; {settings}")
    shell.sendline(REGISTRATION + "; echo registered-$((1 + 1))")
    shell.expect("registered-2")
    return shell


def test_the_tab_key_of_an_interactive_bash_completes_a_preset(tmp_path):
    shell = interactive("bash --norc -i", tmp_path, "bind 'set enable-bracketed-paste off'")
    shell.send("echo talkinghead_lab; talkinghead_lab plan infinitetalk-7\t")
    shell.expect(re.escape("infinitetalk-720 "))
    shell.close(force=True)


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_is_offered_presets_and_fields(tmp_path):
    register = "register-python-argcomplete --shell fish talkinghead_lab | source"
    for line, offered in (("generate embedded-", "embedded-fast"), ("plan embedded -p se", "seed")):
        command = f"{register}; complete -C 'talkinghead_lab {line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", command], cwd=tmp_path, env=environment() | {"HOME": str(tmp_path)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert offered in [word.split("\t")[0] for word in done.stdout.splitlines()], done.stderr


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_the_tab_key_of_an_interactive_zsh_completes_fields_and_samples(tmp_path):
    settings = "unsetopt zle_bracketed_paste; autoload -U compinit && compinit -D"
    shell = interactive("zsh -f -i", tmp_path, settings)
    shell.send("talkinghead_lab plan embedded -p diffu\t")
    shell.expect("diffusion_steps")
    shell.sendcontrol("u")
    shell.send("talkinghead_lab plan embedded -p audio_path sample:recording-\t")
    shell.expect(re.escape("sample:recording-2"))
    shell.close(force=True)
