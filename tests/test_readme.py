"""The README agrees with the code on parameters, files and commands."""

import re
import shlex
from pathlib import Path

from talkinghead_lab.__main__ import parse
from talkinghead_lab.params import RELEASED_NEGATIVE_PROMPT, GenerationParams

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def parameter_rows() -> list[str]:
    """Rows of the parameter table, generated from the code."""
    rows = []
    for name, field in GenerationParams.model_fields.items():
        if field.is_required():
            default = "required"
        elif field.default == RELEASED_NEGATIVE_PROMPT:
            default = "the released one"
        else:
            default = {None: "unset", "": "empty", (): "none"}.get(field.default, str(field.default).lower())
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return rows


def test_the_parameter_table_matches_the_code():
    table = README.split("| name | default | meaning |\n| --- | --- | --- |\n")[1].split("\n\n")[0]
    expected = parameter_rows()
    assert table.splitlines() == expected, "paste this into README.md:\n" + "\n".join(expected)


def test_every_parameter_file_is_listed():
    listed = set(re.findall(r"^\| `([\w-]+\.yaml)` \|", README, re.M))
    assert listed == {path.name for path in (ROOT / "params").glob("*.yaml")}


def test_link_targets_exist():
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    for target in filter(None, sum(targets, ())):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:params|notebooks|tests|outputs|talkinghead_lab)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path


def test_commands_parse():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)|`make (\w+)`", README, re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M), target
    commands = re.findall(r"^    python -m talkinghead_lab (.+?)(?: +#.*)?$", README, re.M)
    assert len(commands) >= 2
    for command in commands:
        assert parse(shlex.split(command)).run
