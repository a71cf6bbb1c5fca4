"""Prints the table of parity errors at the end of the test run."""

from tests.parity import golden


def pytest_terminal_summary(terminalreporter):
    if golden.comparisons:
        terminalreporter.section(f"parity with the reference ({golden.FOLDER.name}, salt {golden.SALT!r})")
        for case, error, bound in sorted(golden.comparisons):
            terminalreporter.write_line(f"{case:40} {error:9.2e}  (bound {bound:.0e})")
