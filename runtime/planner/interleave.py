"""Times of calls that take turns: the minimum over rounds that are spread over time.

Another program on the same cores makes a time longer, never shorter, so the minimum is the time of the call itself. The
rounds come in bursts with a pause between, because a scheduler gives a core away for some milliseconds at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping

import torch

BURSTS, ROUNDS, PAUSE = 3, 7, 0.01
CLOSE = 1.1  # two times are close if one is at most so many times the other
FAR = (2.0, 1.3)  # after the first round, and later: calls that take so many times the fastest are not repeated
_CPU = torch.device("cpu")


def interleave(
    calls: Mapping[str, Callable[[], object]], seconds: float, device: torch.device = _CPU
) -> dict[str, float]:
    """Seconds of each call, called in turn. A first round does not count: it is a warm-up.

    Args:
        calls: what to time, by name.
        seconds: how long to repeat; each burst has one round at least.
        device: on a GPU events give the times.
    """
    clock = _cuda_seconds if device.type == "cuda" else _seconds
    least: dict[str, float] = {}
    with torch.no_grad():
        for call in calls.values():
            clock(call, device)
        for burst in range(BURSTS):
            if burst:
                time.sleep(PAUSE)
            rounds, end = 0, time.perf_counter() + seconds / BURSTS
            while rounds < 1 or (time.perf_counter() < end and rounds < ROUNDS):
                for name, call in calls.items():
                    spent = clock(call, device)
                    least[name] = min(spent, least.get(name, spent))
                rounds += 1
    return least


def race(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    device: torch.device = _CPU,
    always: str = "",
    above: Collection[str] = (),
) -> dict[str, float]:
    """Seconds of each call, called in turn, for an estimate: no more rounds than the times need.

    A call that is far from the fastest is not repeated, nor is a call whose two least times are close. So a first call,
    in which memory and caches are cold, counts only if it was no slower than another.

    Args:
        calls: what to time, by name.
        seconds: no further round begins after that; there are two rounds at least.
        device: on a GPU events give the times.
        always: the name of a call that is repeated however slow it is; the first of the calls.
        above: names of calls that take longer than ``always``. They are left out if another is much faster than that.

    Returns:
        Seconds by name, without the calls that were left out.
    """
    clock = _cuda_seconds if device.type == "cuda" else _seconds
    spent: dict[str, list[float]] = {name: [] for name in calls}
    running, end = list(calls), time.perf_counter() + seconds
    with torch.no_grad():
        for rounds in range(1, BURSTS * ROUNDS + 1):
            for name in running:
                if name not in above or min(map(min, filter(None, spent.values()))) > spent[always][0] / FAR[-1]:
                    spent[name].append(clock(calls[name], device))
            spent = {name: found for name, found in spent.items() if found}
            running = [name for name in running if name in spent]
            fastest = min(map(min, spent.values()))
            far = FAR[min(rounds, len(FAR)) - 1] * fastest
            running = [name for name in running if _repeats(spent[name], math.inf if name == always else far)]
            if (rounds > 1 and time.perf_counter() > end) or not running:
                break
    return {name: min(found) for name, found in spent.items()}


def _repeats(spent: list[float], far: float) -> bool:
    least, *more = sorted(spent)
    return least <= far and (not more or more[0] > CLOSE * least)


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of a call on the CPU: those of the clock, or of the processor if these are fewer.

    With one thread the processor's are those that the call would take alone: ten other programs on two cores made a
    product of 10 ms wait for as long again. With several threads their sum is more than the clock's.
    """
    start, used = time.perf_counter(), time.process_time()
    run()
    return min(time.process_time() - used, time.perf_counter() - start)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    return seconds_of(run)


def _cuda_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds between two events. Writing zeros first empties the cache and lets the CPU queue all launches in time."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other = torch.empty(2**27, dtype=torch.uint8, device=device)
        for _ in range(4):
            other.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
