"""Prints the table of all comparisons with recorded numbers after the test run."""

from tests.golden import table


def pytest_terminal_summary(terminalreporter):
    if table.ROWS:
        terminalreporter.section("parity with the recorded reference")
        for line in table.lines():
            terminalreporter.write_line(line)
