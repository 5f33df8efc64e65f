"""The house rules that no linter knows: reasons beside ignores, no notes to self, a README that tells the truth."""

import io
import re
import subprocess
import sys
import textwrap
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "store", "tests", "fuzz", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Sources that hold characters outside ASCII, each with its reason.
NOT_ASCII: dict[str, str] = {}

# What switches a check off, and where its reason begins.
IGNORES = [
    re.compile(r"#\s*type:\s*ignore(\[[^\]]*\])?(?P<reason>.*)"),
    re.compile(r"#\s*(ruff:\s*)?noqa(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*)?(?P<reason>.*)"),
    re.compile(r"#\s*(pragma:\s*no cover|fmt:\s*(off|skip)|mypy:)(?P<reason>.*)"),
]
NOTE_TO_SELF = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b")


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_ignore_carries_its_reason() -> None:
    silent = []
    for path in SOURCES:
        for line, comment in comments(path):
            for ignore in IGNORES:
                found = ignore.search(comment)
                if found and len(re.findall(r"\w+", found["reason"])) < 2:
                    silent.append(f"{where(path, line)}: {comment}")
    assert not silent, "\n".join(
        [*silent, "Say why, in the same line: `# type: ignore[attr-defined]  # only on Windows`."]
    )


def test_every_rule_that_is_switched_off_carries_its_reason() -> None:
    lists = re.compile(r'(ignore|ignorelist|disable_error_code|"[^"]*(\*|\.py)")\s*=\s*\[')
    silent, inside = [], False
    for number, line in enumerate((ROOT / "pyproject.toml").read_text("utf-8").splitlines(), 1):
        code, _, reason = line.partition("#")
        inside = inside or bool(lists.match(code))
        if inside and not reason and re.search(r'"[\w-]+"[,\]]', code):
            silent.append(f"pyproject.toml:{number}: {line.strip()}")
        inside = inside and "]" not in code
    assert not silent, "\n".join(silent)


def test_skips_and_expected_failures_carry_their_reason() -> None:
    bare = re.compile(r"@?pytest\.mark\.(skip|xfail)\b(?!.*reason)|@?pytest\.mark\.skipif\((?!.*reason).*\)$")
    silent = [
        f"{where(path, number)}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if path != Path(__file__).resolve() and bare.search(line)
    ]
    assert not silent, "\n".join(silent)


def test_nobody_left_a_note_to_self() -> None:
    files = [
        *SOURCES,
        *ROOT.glob("*.md"),
        *ROOT.glob("*/*.md"),
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
        ROOT / ".ci" / "run",
    ]
    notes = [
        f"{where(path, number)}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if NOTE_TO_SELF.search(line)
    ]
    assert not notes, "\n".join([*notes, "Do it, or open an issue."])


def test_sources_are_ascii() -> None:
    foreign = []
    for path in [*SOURCES, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]:
        if str(path.relative_to(ROOT)) in NOT_ASCII:
            assert not path.read_text("utf-8").isascii(), f"{path.name} need not be in NOT_ASCII any more"
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            foreign += [f"{where(path, number)}: {line.strip()!a}"] if not line.isascii() else []
    assert not foreign, "\n".join([*foreign, "Write it as an escape, or give the file a reason in NOT_ASCII."])


def test_the_changelog_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def readme() -> str:
    path = ROOT / "README.md"
    assert path.exists(), "README.md is missing"
    return path.read_text("utf-8")


def fenced_blocks(text: str, *languages: str) -> list[str]:
    """The bodies of the fenced code blocks of these languages, in order."""
    blocks = re.findall(r"^[ ]*```(\w*)[^\n]*\n(.*?)^[ ]*```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(body) for language, body in blocks if language in languages]


def test_every_make_command_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shell = "\n".join(
        fenced_blocks(readme(), "", "console", "sh", "bash", "shell", "text") + re.findall(r"`([^`\n]+)`", readme())
    )
    named = set()
    for line in re.findall(r"(?:^|[\s$;&])make((?:[ ]+[\w=./-]+)+)", shell):
        named |= {word for word in line.split() if re.fullmatch("[a-z]+", word)}
    assert named, "README.md names no make target"
    assert named <= targets, f"README.md names make targets that do not exist: {sorted(named - targets)}"


def test_every_command_of_limpet_in_the_readme_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    named = set(re.findall(r"(?:^\$?[ ]*|`)(limpet(?:-\w+)?)[ ]+[a-z]", readme(), re.MULTILINE))
    assert named <= set(scripts), f"README.md names commands that are not installed: {sorted(named - set(scripts))}"


EXAMPLES = [
    path for path in (ROOT / "README.md", ROOT / "engine" / "README.md", ROOT / "store" / "README.md") if path.exists()
]


def test_the_readme_is_there_and_has_an_example() -> None:
    assert fenced_blocks(readme(), "python"), "README.md has no python example"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_example_runs(path: Path, tmp_path: Path) -> None:
    examples = fenced_blocks(path.read_text("utf-8"), "python")
    if not examples:
        return  # only the first README has to have one, and the test above says so
    script = tmp_path / "example.py"
    script.write_text(examples[0], "utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
