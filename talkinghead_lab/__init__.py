"""talkinghead_lab: a person in a picture speaks a recording, with figures that can be made again."""

__version__ = "0.1.0"
