"""Whether the wheel holds the package, its data and nothing else, and the sdist all that its tests
need: `python check_wheel.py DIST`, where DIST is the folder that `python -m build` wrote."""

import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: folder of the checkout -> where the wheel has it
PACKED = {
    "minprefix": "minprefix",
    "weights/tiny": "minprefix/weights/tiny",
    "tutorials": "minprefix/tutorials",
}
#: folders that the tests of an unpacked sdist open
TESTED = ("minprefix", "weights", "tutorials", "tests", "tools", "benchmarks", "docs", ".ci",
          ".github", ".vscode")  # fmt: skip


def files(folder: str) -> list[str]:
    """The paths below a folder of the checkout, relative to it."""
    top = ROOT / folder
    found = [path.relative_to(top) for path in top.rglob("*") if path.is_file()]
    return [path.as_posix() for path in found if "__pycache__" not in path.parts]


def pages() -> list[str]:
    """The pages at the top of the checkout."""
    return [path.name for path in ROOT.glob("*.md")]


def wrong_in_wheel(names: Iterable[str]) -> list[str]:
    held = {name for name in names if ".dist-info/" not in name}
    wanted = {f"{place}/{path}" for folder, place in PACKED.items() for path in files(folder)}
    lacks = [f"the wheel lacks {name}" for name in sorted(wanted - held)]
    return lacks + [f"the wheel holds {name}" for name in sorted(held - wanted)]


def wrong_in_sdist(names: Iterable[str]) -> list[str]:
    held = {name.partition("/")[2] for name in names}
    wanted = {f"{folder}/{path}" for folder in TESTED for path in files(folder)} | {*pages()}
    return [f"the sdist lacks {name}" for name in sorted(wanted - held)]


def main(dist: Path) -> int:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as packed, tarfile.open(sdist) as source:
        wrong = wrong_in_wheel(packed.namelist()) + wrong_in_sdist(source.getnames())
    print("\n".join(wrong) or "the wheel and the sdist hold what they must")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
