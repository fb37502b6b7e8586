"""Progress of a long verb where there is no terminal."""

from __future__ import annotations

import io

from nextloom.cli.pace import Pace


def test_a_line_every_thirty_seconds_with_rate_and_time_left():
    now, out = [0.0], io.StringIO()
    pace = Pace("step", 10_000, stream=out, clock=lambda: now[0])
    for second in range(0, 101):
        now[0] = float(second)
        pace.update(4_000 + 2 * second, more=", loss 1.5")
    assert out.getvalue().splitlines() == [
        "  step 4,060 of 10,000, 2 per second, 50 min left, loss 1.5",
        "  step 4,120 of 10,000, 2 per second, 49 min left, loss 1.5",
        "  step 4,180 of 10,000, 2 per second, 48 min left, loss 1.5",
    ]


def test_where_nothing_moves_it_says_so_without_a_guess():
    now, out = [0.0], io.StringIO()
    pace = Pace("drawing", 8, stream=out, clock=lambda: now[0])
    pace.update(1)
    now[0] = 31.0
    pace.update(1)
    assert out.getvalue() == "  drawing 1 of 8\n"
