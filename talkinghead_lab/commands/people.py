"""The command `people`: boxes of the people in a picture."""

import argparse
import json
from pathlib import Path

from talkinghead_lab.foundation.imports import gc_disabled


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    command = commands.add_parser("people", help="propose speaker_boxes for the people in a picture")
    command.add_argument("picture", help="picture or video, or sample:NAME")
    command.add_argument("--drawn", type=Path, metavar="OUT.png", help="write the picture with the boxes")
    command.set_defaults(run=run_people)


def run_people(options: argparse.Namespace) -> None:
    """Print `speaker_boxes` as a line of a parameter file; with `--drawn`, write the picture with them."""
    with gc_disabled():
        from talkinghead_lab.figures.runs import marked_people
        from talkinghead_lab.pipeline.people import propose_boxes
    boxes = propose_boxes(options.picture)
    if options.drawn is not None:
        marked_people(options.picture, boxes).savefig(options.drawn, format="png", facecolor="white")
    print(f"speaker_boxes: {json.dumps(boxes)}")
