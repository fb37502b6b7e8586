"""The funnel: how many rows each step saw and what became of them, how fast, at what price."""

from __future__ import annotations

from typing import Any

from nextloom.pipelines.plan import BLOCKED, Planner, StepPlan
from nextloom.pipelines.recipe import Step


def funnel(planner: Planner, step: Step, state: StepPlan) -> dict[str, Any]:
    """One line of the funnel, from the receipt that the step's last finished run left.

    Returns:
        name, op, state: of the step.
        counts: of the receipt; {} where there is none.
        per_cpu_second: rows per CPU-second, or None where nothing was measured.
        cpu_seconds: that rate for all rows of the receipt: what doing them anew would take.
        waiting: share of the workers' time, 0..1, in which the op waited for files to be read and decoded, or None.
        cost: those seconds at `run.cpu_hour_price`, or None without a price.
    """
    receipt: dict[str, Any] = {} if state.state == BLOCKED else planner.dataset.receipt(step.name) or {}
    counts, rate = receipt.get("counts", {}), receipt.get("cpu_seconds_per_row")
    seconds = rate * counts.get("rows", 0) if rate else None
    price = planner.recipe.run.cpu_hour_price
    return {
        "name": step.name,
        "op": step.op.name,
        "state": state.state,
        "cause": state.cause,
        "counts": counts,
        "per_cpu_second": 1 / rate if rate else None,
        "cpu_seconds": seconds,
        "waiting": receipt.get("waiting"),
        "cost": None if seconds is None or price is None else seconds / 3600 * price,
    }
