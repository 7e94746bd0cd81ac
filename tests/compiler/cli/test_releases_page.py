"""docs/releases.md: every command that it shows is one, and those that need nothing but a repository do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from compiler.cli.main import cli
from compiler.publish.keys import PASSWORD_VARIABLE
from tests.compiler.publish.conftest import write_build

PAGE = Path(__file__).parents[3] / "docs" / "releases.md"
# What the commands around them need: other people's keys, servers, tokens, a device.
ELSEWHERE = re.compile(r"alice|root-threshold 2|hsm:|release push|edgewright-agent|settings\.toml")
WARNS = re.compile(r"--expires-within")  # the timestamp was just given seven days


def _lines(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(\w+=\S+ )*edgewright ", line)]


LINES = _lines(PAGE.read_text())


def _arguments(line: str) -> list[str]:
    words = shlex.split(line)
    return words[words.index("edgewright") + 1 :]


@pytest.mark.parametrize("line", LINES)
def test_every_command_exists_with_its_options(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("repository", "keys", "alice", "out", "out2", "out3"):
        Path(path).mkdir()
    for file in ("alice.pub", "settings.toml", "new-root.json"):
        Path(file).touch()
    Path("repository/metadata").mkdir()
    Path("repository/metadata/1.root.json").touch()
    command: click.Command = cli
    arguments, context = _arguments(line), click.Context(cli, info_name="edgewright")
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments[0])
        assert found is not None, arguments[0]
        command, arguments = found, arguments[1:]
    command.make_context(command.name, arguments, parent=context)  # raises on an option or argument that it has not


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    for number, folder in enumerate(("out", "out2", "out3")):
        (tmp_path / folder).mkdir()
        write_build(tmp_path / folder, seed=number, noise=0.3 * number, model="model")
    return tmp_path


def test_the_page_can_be_followed(operator: Path) -> None:
    init = next(line for line in LINES if "--root-keys" in line)
    done = 0
    for line in [init, *(line for line in LINES if line != init)]:
        if (ELSEWHERE.search(line) and line != init) or ("release init" in line and line != init):
            continue
        if "adopt" in line:  # of a draft that others have signed
            continue
        result: Result = CliRunner().invoke(cli, _arguments(line))
        assert result.exit_code == (1 if WARNS.search(line) else 0), f"{line}\n{result.output}\n{result.exception}"
        done += 1
    assert done >= 15
    assert (operator / "update.zip").is_file() and (operator / "new-root.json").is_file()
