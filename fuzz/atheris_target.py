"""Any bytes opened as a database either work or raise FormatError or CorruptError: F12, guided by coverage.

    pip install atheris
    python -m fuzz.atheris_target fuzz/corpus -max_total_time=600

Optional: nothing else needs atheris. The bytes are sealed before they are opened, as far as they look like a file of
ours, so that the fuzzer gets behind the checksums; the corpus is made of small files when the folder is empty.
"""

from __future__ import annotations

import importlib
import random
import sys
import tempfile
from pathlib import Path

from limpet import FormatError

from .damage import sample
from .f12_hostile_files import Sealer, attack


def sealed(data: bytes) -> bytes:
    """The bytes with the checksums of all their pages and metas put right."""
    try:
        sealer = Sealer(data)
    except FormatError:
        return data
    sealer.dirty = set(range(4, sealer.count))
    sealer.dirty_metas = {slot for slot in (1, 2) if slot < sealer.count}
    return sealer.sealed()


def main() -> None:
    """Run atheris over the corpus folder named on the command line."""
    try:
        atheris = importlib.import_module("atheris")  # optional, and not for every Python
    except ImportError:
        sys.exit("this target needs atheris: pip install atheris")
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            for seed in range(8):
                (folder / f"{seed}.limpet").write_bytes(sample(random.Random(seed), commits=seed + 1).image)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "hostile.limpet"
        atheris.instrument_all()
        atheris.Setup(sys.argv, lambda data: attack(path, sealed(data)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
