"""python -m bench [NAME ...]: measure ours and the peers in turn and write the figures into docs/results.md.

python -m bench EXPERIMENT [--help]: a longer run on real data, which takes options of its own.
"""

import argparse
import importlib
import sys

KINDS = ("tokens", "training", "generation", "sft", "ppo", "reward", "walks")
EXPERIMENTS = ("curves", "reward_models", "pairing", "baselines", "overoptimisation")


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in EXPERIMENTS:
        importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", choices=KINDS, nargs="*")
    for kind in parser.parse_args().kinds or KINDS:
        importlib.import_module(f"bench.{kind}").main()


if __name__ == "__main__":
    main()
