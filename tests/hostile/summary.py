"""Prints the table of attacks after a test run: attack, outcome, and what happens without the guard."""

from __future__ import annotations

from collections import Counter


def pytest_terminal_summary(terminalreporter) -> None:
    """A line per attack, from what the tests recorded (`record_property`), wherever they ran."""
    lines: dict[str, dict[str, str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            cells = dict(getattr(report, "user_properties", ()))
            if "attack" in cells and report.when == "call":
                lines.setdefault(cells["attack"], {}).update(cells)
    if not lines:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'attack':<80} {'outcome':<60} without its guard")
    for attack, cells in sorted(lines.items()):
        write(f"{attack[:79]:<80} {cells.get('outcome', '-')[:59]:<60} {cells.get('control', '-')}")
    classes = Counter(attack.partition(":")[0] for attack in lines)
    succeeded = sum(cells.get("succeeded") != "no" for cells in lines.values())
    write(f"{len(lines)} attacks of {len(classes)} classes, {succeeded} succeeded: {dict(sorted(classes.items()))}")
