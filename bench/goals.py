"""What each case is to reach, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bench.figures import Result, file_bytes, label, median, ours, ratio, size

MIB = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """A goal in words, what was measured in its place, and whether that is enough."""

    goal: str
    measured: str
    met: bool | None  # None: not measured

    def word(self) -> str:
        """The last cell of its line."""
        return "" if self.met is None else "met" if self.met else "**missed**"


class Goal(Protocol):
    """Something that can be told from a stored case."""

    def judge(self, result: Result) -> Verdict:
        """Hold the figures of a case against the goal."""


@dataclass(frozen=True)
class Faster:
    """At least so many times as fast as another."""

    rival: str
    times: float

    def judge(self, result: Result) -> Verdict:
        goal = f"{self.times:g} times as fast as {label(result, self.rival)}"
        if self.times == 1:
            goal = f"no slower than {label(result, self.rival)}"
        found = ratio(result, self.rival)
        if found is None:
            return _not_measured(goal)
        return Verdict(goal, f"{found:.2f}", found >= self.times)


@dataclass(frozen=True)
class Within:
    """At most so many times as long as another; ``touched`` or before the pages are looked at."""

    rival: str
    times: float
    touched: bool = True

    def judge(self, result: Result) -> Verdict:
        goal = f"within {self.times:.3g} times the time of {label(result, self.rival)}"
        figure = "seconds" if self.touched else "call_seconds"
        if not self.touched:
            goal += ", the call alone"
        mine = median(result, ours(result), figure)
        other = median(result, self.rival, figure)
        if not mine or not other:
            return _not_measured(goal)
        return Verdict(goal, f"{mine / other:.2f}", mine / other <= self.times)


@dataclass(frozen=True)
class Alike:
    """Neither of the two takes more than so many times as long as the other."""

    rival: str
    times: float

    def judge(self, result: Result) -> Verdict:
        mine, other = (label(result, name) for name in (ours(result), self.rival))
        goal = f"{mine} and {other} at most {self.times:g} times apart"
        found = ratio(result, self.rival)
        if not found:
            return _not_measured(goal)
        apart = max(found, 1 / found)
        return Verdict(goal, f"{apart:.2f}", apart <= self.times)


@dataclass(frozen=True)
class DiskBytes:
    """The disk reads at most so many times the share of the file that was asked for."""

    share: float
    times: float

    def judge(self, result: Result) -> Verdict:
        goal = f"reads at most {self.times:g} times 1/{1 / self.share:g} of the file from the disk"
        found, whole = median(result, ours(result), "disk_read_bytes"), file_bytes(result)
        if found is None or not whole:
            return _not_measured(goal)
        factor = found / (whole * self.share)
        return Verdict(goal, f"{factor:.2f}", factor <= self.times)


@dataclass(frozen=True)
class Memory:
    """The worst run held at most so much beyond the file, or the tensors that were saved."""

    beyond: int = 64 * MIB

    def judge(self, result: Result) -> Verdict:
        loads = result["operation"] == "load"
        goal = f"holds at most {size(self.beyond)} beyond the {'file' if loads else 'tensors'}"
        peaks = [run["peak_bytes"] for run in result["runs"].get(ours(result), ())]
        held = file_bytes(result) if loads else 0
        if not peaks or held is None:
            return _not_measured(goal)
        found = max(peaks) - held
        return Verdict(goal, size(max(found, 0)), found <= self.beyond)


def _not_measured(goal: str) -> Verdict:
    return Verdict(goal, "not measured", None)
