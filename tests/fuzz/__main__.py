"""Fuzz one target, guided by coverage: `python -m tests.fuzz adapter -runs=1000000`. What finds new paths is kept in the corpus, or in
another folder: `python -m tests.fuzz adapter --into build/fuzz/adapter -max_total_time=60`.

It needs `pip install atheris`.
"""

from __future__ import annotations

import sys
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
_MOST_MIB = 2048


def main() -> None:
    """Run libFuzzer on the target that is named; all else goes to it."""
    import atheris

    with atheris.instrument_imports(include=["smoa", "services"]):
        from tests.fuzz.targets import TARGETS, seeds

    name, *options = sys.argv[1:]
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for number, seed in enumerate(seeds(name)):
            (folder / f"seed-{number}").write_bytes(seed)
    folders = [str(folder)]
    if options[:1] == ["--into"]:
        Path(options[1]).mkdir(parents=True, exist_ok=True)
        folders.insert(0, options[1])
        del options[:2]
    atheris.Setup([sys.argv[0], *folders, f"-rss_limit_mb={_MOST_MIB}", "-max_len=4096", *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
