"""Which memory tier a machine or a container gets."""

from pathlib import Path

import pytest

from limpet_store import MemoryTier


def machine(root: Path, physical_kb: int, **files: str) -> Path:
    """A root directory with /proc/meminfo and these files; __ in a name stands for /."""
    contents = {"proc__meminfo": f"MemTotal: {physical_kb} kB\nMemFree: 1 kB\n"} | files
    for name, text in contents.items():
        path = root.joinpath(*name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("kilobytes", "tier"),
    [
        (-1, MemoryTier.LOW),
        (0, MemoryTier.LOW),
        (1_200_000, MemoryTier.LOW),
        (1_200_001, MemoryTier.STANDARD),
        (2_500_000, MemoryTier.STANDARD),
        (2_500_001, MemoryTier.HIGH),
    ],
)
def test_tiers_by_size(kilobytes: int, tier: MemoryTier, tmp_path: Path) -> None:
    assert MemoryTier.from_kb(kilobytes) is tier
    assert MemoryTier.detect(environ={}, root=machine(tmp_path, kilobytes)) is tier


def test_cache_sizes() -> None:
    sizes = [tier.cache_size // 2**20 for tier in (MemoryTier.LOW, MemoryTier.STANDARD, MemoryTier.HIGH)]
    assert sizes == [16, 32, 64]


def test_unknown_memory_is_low(tmp_path: Path) -> None:
    assert MemoryTier.detect(environ={}, root=tmp_path) is MemoryTier.LOW


def test_a_cgroup_v2_limit_anywhere_above_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        16_000_000,
        proc__self__cgroup="0::/app/worker\n",
        **{
            "sys__fs__cgroup__app__worker__memory.max": "max\n",
            "sys__fs__cgroup__app__memory.max": f"{2_000_000 * 1024}\n",
        },
    )
    assert MemoryTier.detect(environ={}, root=root) is MemoryTier.STANDARD


def test_a_cgroup_v2_limit_at_the_mount_point_counts_when_the_path_is_the_hosts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        16_000_000,
        proc__self__cgroup="0::/docker/0123\n",
        **{"sys__fs__cgroup__memory.max": f"{512 * 2**20}\n"},
    )
    assert MemoryTier.detect(environ={}, root=root) is MemoryTier.LOW


def test_a_cgroup_v1_limit_counts_and_an_absurd_one_does_not(tmp_path: Path) -> None:
    limit = "sys__fs__cgroup__memory__box__memory.limit_in_bytes"
    group = "5:cpu,cpuacct:/box\n4:memory:/box\n"
    root = machine(tmp_path, 4_000_000, proc__self__cgroup=group, **{limit: f"{1_000_000 * 1024}\n"})
    assert MemoryTier.detect(environ={}, root=root) is MemoryTier.LOW
    machine(tmp_path, 4_000_000, proc__self__cgroup=group, **{limit: "9223372036854771712\n"})
    assert MemoryTier.detect(environ={}, root=root) is MemoryTier.HIGH


@pytest.mark.parametrize(("text", "tier"), [("low", MemoryTier.LOW), (" High ", MemoryTier.HIGH)])
def test_the_environment_overrides(text: str, tier: MemoryTier, tmp_path: Path) -> None:
    assert MemoryTier.detect(environ={"LIMPET_MEMORY_TIER": text}, root=machine(tmp_path, 2_000_000)) is tier


def test_an_override_that_names_no_tier_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMPET_MEMORY_TIER", "huge")
    with pytest.raises(ValueError, match="low, standard, high"):
        MemoryTier.detect()


def test_this_machine_has_a_tier() -> None:
    assert MemoryTier.detect(environ={}) in MemoryTier
