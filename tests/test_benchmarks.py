"""The benchmarks run and say what they should; how fast anything is, no test asks: machines differ, and are shared."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS = {
    "media": {"1 block", "a commit of one row"},
    "commit": {"one thread, a new key", "16 threads, commits a second"},
    "get": {"each in its own transaction"},
    "scan": {"scan in the cache"},
    "bulk": {"random keys", "random keys, size of the file"},
    "memory": {"size of the file"},
    "opening": {"open", "open and read one key after SIGKILL", "size of an empty database"},
    "space": {"size of the closed file"},
    "turn": {"16 sessions, turns a second", "1 session, commits a turn"},
    "history": {"load recent 50", "archive stat", "archive tail 20", "list the keys of all sessions"},
    "queue": {"dequeue, 10 waiting, durable"},
    "idle": {"commits in all ticks, 10 rows"},
    "restart": {"after SIGKILL: all of it"},
}


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every workload at its smallest, once: the folder of results, and what was printed, by workload."""
    folder = tmp_path_factory.mktemp("results")
    done = bench("--quick", "--json", "--seed", 7, "--dir", folder, "--results", folder / "results")
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [path.name for path in folder.iterdir()] == ["results"], "files were left behind"
    return folder / "results", {result["workload"]: result for result in printed}


def test_every_workload_runs_in_order(results: tuple[Path, dict[str, Any]]) -> None:
    assert list(results[1]) == list(WORKLOADS)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_result_says_what_was_measured_where_and_how(name: str, results: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = results
    result = printed[name]
    assert json.loads((folder / f"{name}.json").read_text("utf-8")) == result
    assert result["title"]
    assert result["sizes"]
    assert result["notes"]
    assert result["seed"] == 7
    assert result["mode"] == "quick"
    assert {"cores", "python", "kernel", "file_system", "versions"} <= set(result["machine"])
    assert {"limpet", "sqlite3"} <= set(result["machine"]["versions"])
    assert WORKLOADS[name] <= {case["what"] for case in result["cases"]}
    assert {"limpet", "sqlite3"} <= {case["peer"] for case in result["cases"]}
    for case in result["cases"]:
        assert case["count"] > 0
        assert case["median"] >= 0
        if case["p90"] is not None:
            tail = [case["median"], case["p90"], case["p99"], case["max"]]
            assert tail == sorted(tail, reverse=case["unit"] == "/s")
    for target in result["targets"]:
        reached = target["value"] >= target["limit"] if target["at_least"] else target["value"] <= target["limit"]
        assert target["met"] == reached


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_table_shows_targets_losses_and_that_it_was_quick(name: str, results: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = results
    text = (folder / f"{name}.txt").read_text("utf-8")
    assert text.startswith(f"{name}: ")
    for part in ("machine", "versions", "sizes", "seed 7", "where Limpet loses", "notes", "Quick sizes"):
        assert part in text
    # A target that compares with a peer which is not installed is left out; those of `bulk` all compare with LMDB.
    assert ("\ntargets\n" in text) == bool(printed[name]["targets"])
    assert printed[name]["targets"] or (name == "bulk" and "lmdb" not in printed[name]["machine"]["versions"])
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)


def test_what_counts_commits_is_exact_at_any_size(results: tuple[Path, dict[str, Any]]) -> None:
    """Numbers that do not depend on the machine: commits of a turn, commits and scans of an idle hour."""
    targets = {target["text"]: target for name in ("turn", "idle") for target in results[1][name]["targets"]}
    for text in (
        "durable commits of a turn, one session",
        "commits, flushes and syncs",
        "pages read after the first minute",
    ):
        assert targets[text]["met"], targets[text]


def test_recorded_results_name_every_workload_and_no_host() -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        assert result["workload"] == path.stem
        assert path.stem in WORKLOADS
        assert result["mode"] != "quick"
        assert "/" not in re.sub(r'"/s"|MiB/s', "", json.dumps(result["machine"]))


def test_a_workload_that_is_not_there_is_refused() -> None:
    done = bench("commits")
    assert done.returncode == 2
    assert "no such workload: commits" in done.stderr
