"""Every command that a README prints works as it is printed, for somebody who has just installed Limpet.

The targets of `make` take minutes: test_project.py asks whether they exist, and continuous integration runs them.
"""

import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import limpet
from limpet_store import QueuedMessage, QueuedTask, Store

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
KEY = "agent:main:web:direct:u1"
Shell = Callable[[str], str]

pytestmark = pytest.mark.skipif(
    not (SCRIPTS / "limpet-store").exists(), reason="the commands are not installed beside this interpreter"
)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs a line in a folder with a store, `data.limpet`, and what else the READMEs name; gives its output."""
    with Store.open(tmp_path / "data.limpet") as store:
        message = QueuedMessage(text="hello", sender="u1", channel="web", chat_id="u1")
        store.tasks.submit(QueuedTask(session_key=KEY, messages=[message]))
        store.messages.append(KEY, {"role": "user", "content": "hello"})
    (tmp_path / "data.redb").write_bytes(
        lzma.decompress((ROOT / "tests" / "data" / "redb" / "v3-small.redb.xz").read_bytes())
    )
    sessions = tmp_path / ".openclaw" / "agents" / "main" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "sessions.json").write_text(json.dumps({"agent:main:main": {"sessionId": "s1", "updatedAt": 1}}))
    entry = {"type": "message", "id": "1", "message": {"role": "user", "content": "hello"}}
    (sessions / "s1.jsonl").write_text(json.dumps(entry) + "\n")
    environment = {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(line: str) -> str:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def printed(readme: str, command: str) -> list[str]:
    """The lines of a README's indented blocks that begin with this command, without what explains them."""
    lines = re.findall(rf"^    ({re.escape(command)} .*)$", (ROOT / readme).read_text("utf-8"), re.MULTILINE)
    return [re.split(r" {2,}|\s+#", line)[0] for line in lines]


def inline(readme: str) -> list[str]:
    """The commands of Limpet on a FILE that a README names in its text."""
    text = re.sub(r"\s+", " ", (ROOT / readme).read_text("utf-8"))
    return re.findall(r"`(limpet(?:-store)? [a-z][^`]*FILE[^`]*)`", text)


def test_the_commands_of_the_store_work_in_the_order_in_which_they_are_printed(shell: Shell) -> None:
    lines = printed("store/README.md", "limpet-store")
    assert len(lines) >= 10
    for line in lines:
        first, *others = line.split(" | ")
        for command in (first, *(f"limpet-store {other}" for other in others)):
            shell(re.sub(r"\bKEY\b", KEY, command))


@pytest.mark.parametrize("readme", ["README.md", "engine/README.md", "store/README.md"])
def test_the_commands_in_the_text_work(shell: Shell, tmp_path: Path, readme: str) -> None:
    with limpet.open(tmp_path / "open.limpet") as db:
        for name in ("t", "u"):
            with db.write() as txn:
                txn[limpet.Table(name)][b"key"] = b"value"
        shutil.copyfile(
            tmp_path / "open.limpet", tmp_path / "a.limpet"
        )  # as a crash leaves it: it has the commit before
    for line in dict.fromkeys(inline(readme)):
        shell(line.replace("FILE", "data.limpet" if line.startswith("limpet-store") else "a.limpet"))


def test_the_example_gateway_starts_as_printed(shell: Shell, tmp_path: Path) -> None:
    [line] = printed("store/README.md", "python")
    interpreter, script, *options = shlex.split(line)
    assert (interpreter, options[0], options[2:]) == ("python", "--store", ["--seconds", "5"])
    shell(f"python {shlex.quote(str(ROOT / script))} --store {shlex.quote(str(tmp_path / 'g.limpet'))} --seconds 0.3")


def test_the_engine_is_copied_in_as_printed(shell: Shell, tmp_path: Path) -> None:
    [line] = printed("engine/README.md", "cp")
    _, _, source, target = shlex.split(line)
    shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / target).parent.mkdir()
    shell(line)
    script = "import sys; sys.path.insert(0, ''); from yourprogram import _limpet; _limpet.open(':memory:').close()"
    shell(f"python -I -W error -c {shlex.quote(script)}")
