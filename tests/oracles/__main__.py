"""`python -m tests.oracles [--write]`: see the package."""

import argparse
import sys
import warnings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracles", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep it as tests/oracles/TABLE.md")
    given = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
    from tests.oracles import agreement, table

    scores = list(agreement.full())
    text = table.text(scores)
    print(text)
    if given.write:
        table.PATH.write_text(text, encoding="utf-8")
    found = table.problems(scores)
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
