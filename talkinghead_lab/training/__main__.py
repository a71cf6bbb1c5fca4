"""`python -m talkinghead_lab.training`; in a Python without the packages, one line says what to do."""

from talkinghead_lab.foundation.imports import setup_required

if __name__ == "__main__":
    with setup_required():
        from talkinghead_lab.training.command import main
    main()
