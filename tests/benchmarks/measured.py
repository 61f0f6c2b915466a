"""What a contestant measures of itself, and tells.

It imports little, because its memory counts as that of the contestant.
"""
from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from pathlib import Path


def tell(**figures: tuple[str, float | list[float]]) -> None:
    """Print figures, each a unit and a value; an underscore stands for a space.

    A list is a distribution: its samples, or evenly spaced quantiles of them.
    """
    print(json.dumps({name.replace("_", " "): f for name, f in figures.items()}))


@contextmanager
def measured(
    count: int,
    *,
    by_child: bool = False,
    also: Callable[[], dict[str, tuple[str, float]]] = dict,
) -> Iterator[None]:
    """Measure the body, which handles `count` messages, and tell.

    With `by_child` the body waits for a process that does the work: its
    processor time counts, and its memory is not known. `also` is called afterwards, and
    returns other figures to tell.
    """
    cpu, wall = processor_time(), time.perf_counter()
    yield
    wall, cpu = time.perf_counter() - wall, processor_time() - cpu
    figures: dict[str, tuple[str, float | list[float]]] = {}
    figures["rate"] = ("1/s", count / wall)
    figures["processor_time"] = ("ms", 1000 * cpu / count)
    if not by_child:
        figures["peak_memory"] = ("MiB", peak_memory())
    tell(**figures, **also())


def processor_time() -> float:
    """Seconds that this process took, and its children that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in whose]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_memory(process: str | Path = "/proc/self") -> float:
    """The most memory this process ever held, in MiB, or another one.

    Not ``ru_maxrss``: that begins with the memory of the process that started
    this one.
    """
    return status(process, "VmHWM") / 1024


def status(process: str | Path, name: str) -> int:
    """What the kernel has under `name` about a process or thread, in its own unit."""
    with open(f"{process}/status") as lines:
        [found] = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found)
