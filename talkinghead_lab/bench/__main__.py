"""`python -m talkinghead_lab.bench`; in a Python without the packages, one line says what to do."""

import sys

from talkinghead_lab.foundation.imports import setup_required

if __name__ == "__main__":
    with setup_required():
        from talkinghead_lab.bench.command import main
    sys.exit(main())
