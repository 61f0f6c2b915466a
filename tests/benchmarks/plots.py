"""The plots of the page, as SVG."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import Result


# The same input makes the same file.
_STYLE = {
    "svg.hashsalt": "postcommit",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _figure(panels: int, target: Path, draw: Callable[[Sequence[Any]], None]) -> None:
    # Not needed to measure, nor by the tests that measure.
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    columns = min(panels, 2)
    rows = -(-panels // columns)
    with pyplot.rc_context(_STYLE):
        size = (4.6 * columns, 3.1 * rows)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
        draw(axes.flatten()[:panels])
        for spare in axes.flatten()[panels:]:
            spare.remove()
        figure.tight_layout()
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    # The lines of the path data end in spaces.
    lines = target.read_text().splitlines()
    target.write_text("\n".join(line.rstrip() for line in lines) + "\n")


def _against(
    results: Sequence[Result], target: Path, *, panel: str, x: str, figure: str = "rate"
) -> None:
    """A line for a contestant with results at several `x`, a level for the others."""
    chosen = [one for one in results if one.figure == figure]
    panels = list(dict.fromkeys(one.case[panel] for one in chosen))

    def draw(axes: Sequence[Any]) -> None:
        for axis, value in zip(axes, panels, strict=True):
            lines: dict[str, list[Result]] = {}
            for one in chosen:
                if one.case[panel] == value:
                    lines.setdefault(one.subject, []).append(one)
            _draw(axis, lines, x)
            if panel == "round trip":
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            axis.set_title(f"{panel} {_words(panel, value)}")
            axis.set_ylabel("messages per second")

    _figure(len(panels), target, draw)


def _words(panel: str, value: float | str) -> str:
    if panel == "size":
        return f"{float(value) / 1024:g} KB"
    return f"{value:g} ms" if panel == "round trip" else str(value)


def _draw(axis: Any, lines: dict[str, list[Result]], x: str) -> None:
    every = sorted({float(one.case[x]) for line in lines.values() for one in line})
    for subject, line in lines.items():
        width = 2.5 if line[0].kind == OURS else 1.2
        line = sorted(line, key=lambda one: float(one.case[x]))
        at, values = [float(one.case[x]) for one in line], [one.median for one in line]
        if len(line) > 1:
            axis.plot(at, values, marker="o", linewidth=width, label=subject)
        else:
            at, values = [every[0], every[-1]], values * 2
            axis.plot(at, values, linestyle="--", linewidth=width, label=subject)
    axis.set_xscale("log", base=2)
    axis.set_xticks(every, [f"{value:g}" for value in every])
    axis.minorticks_off()
    axis.set_xlabel(x)
    axis.legend(fontsize=7)


def drain(results: Sequence[Result], target: Path) -> None:
    _against(results, target, panel="size", x="workers")


def distance(results: Sequence[Result], target: Path) -> None:
    _against(results, target, panel="round trip", x="workers")


def enqueue(results: Sequence[Result], target: Path) -> None:
    each = [one for one in results if one.case["in a transaction"] == 1]
    _against(each, target, panel="file system", x="threads")


def _distributions(figures: Sequence[str]) -> Callable[[Sequence[Result], Path], None]:
    def plot(results: Sequence[Result], target: Path) -> None:
        def draw(axes: Sequence[Any]) -> None:
            for axis, figure in zip(axes, figures, strict=True):
                for one in results:
                    if one.figure == figure:
                        values = sorted(one.values)
                        count = len(values)
                        share = [100 * (n + 1) / count for n in range(count)]
                        axis.plot(values, share, label=one.subject)
                axis.set_xscale("log")
                axis.set_xlabel(f"{figure}, ms")
                axis.set_ylabel("% are done")
                axis.legend(fontsize=7)

        _figure(len(figures), target, draw)

    return plot


def _bars(
    figure: str, panel: str = ""
) -> Callable[[Sequence[Result], Path], None]:
    """A bar for the best result of each contestant, in a panel for each case."""

    def plot(results: Sequence[Result], target: Path) -> None:
        chosen = [one for one in results if one.figure == figure]
        panels = list(dict.fromkeys(one.case.get(panel, "") for one in chosen))

        def draw(axes: Sequence[Any]) -> None:
            for axis, value in zip(axes, panels, strict=True):
                shown: dict[str, Result] = {}
                for one in reversed(chosen):
                    best = shown.get(one.subject, one)
                    if one.case.get(panel, "") == value and one.median >= best.median:
                        shown[one.subject] = one
                for subject, one in shown.items():
                    colour = "C0" if one.kind == OURS else "0.7"
                    axis.barh(subject, one.median, color=colour)
                axis.set_xlabel(f"{figure}, {chosen[0].unit}")
                if panel:
                    axis.set_title(f"{panel} {_words(panel, value)}")

        _figure(len(panels), target, draw)

    return plot


def depth(results: Sequence[Result], target: Path) -> None:
    """How each figure grows with the depth of the queue."""
    figures = list(dict.fromkeys(one.figure for one in results))

    def draw(axes: Sequence[Any]) -> None:
        for axis, figure in zip(axes, figures, strict=True):
            lines: dict[str, list[Result]] = {}
            for one in results:
                if one.figure == figure:
                    lines.setdefault(one.subject, []).append(one)
            for subject, line in lines.items():
                at = [float(one.case["depth"]) for one in line]
                values = [one.median for one in line]
                axis.plot(at, values, marker="o", label=subject)
            axis.set_xscale("log")
            if figure == "first send":
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            axis.set_xlabel("entries")
            unit = next(one.unit for one in results if one.figure == figure)
            axis.set_ylabel(f"{figure}, {unit}")
            axis.legend(fontsize=7)

    _figure(len(figures), target, draw)


PLOTS = {
    "drain": drain,
    "distance": distance,
    "enqueue": enqueue,
    "latency": _distributions(["latency"]),
    "mixed": _distributions(["send and commit", "latency"]),
    "depth": depth,
    "tls": _bars("rate", "tls"),
    "bulk": _bars("rate"),
    "idle": _bars("processor"),
    "together": _bars("rate", "processes"),
    "rowenqueue": _bars("rate", "threads"),
    "rowdrain": _bars("rate", "processes"),
    "rowdepth": depth,
    "rowclaims": _bars("rate", "processes"),
    "broker": _bars("rate", "size"),
    "import": _bars("time"),
}
