"""python -m bench [NAME ...]: measure ours and the peers in turn and write the figures into docs/results.md."""

import argparse
import importlib

KINDS = ("training",)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("kinds", choices=KINDS, nargs="*", default=list(KINDS))
    for kind in parser.parse_args().kinds:
        importlib.import_module(f"bench.{kind}").main()


if __name__ == "__main__":
    main()
