"""Makes the embedded checkpoint.

python -m talkinghead_lab.training untrained FOLDER
"""

import argparse
from pathlib import Path

from talkinghead_lab.training.networks import build_untrained, write_checkpoint


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m talkinghead_lab.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    untrained = commands.add_parser("untrained", help="write the checkpoint's layout with random weights")
    untrained.add_argument("folder", type=Path)
    untrained.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write_checkpoint(options.folder, build_untrained(options.seed))


if __name__ == "__main__":
    main()
