"""The comparison as a picture: dollars over the days, in a PNG or SVG file and as bars on the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.cli.cost.money import Currency
from potstill.cli.cost.tables import width
from potstill.errors import MachineError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = 40
STYLES = ("-", "--", "-.", ":")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by colour-blind readers as well."""

CHINESE_FONTS = ("Noto Sans CJK TC", "Noto Sans TC", "Microsoft JhengHei", "PingFang TC", "Heiti TC")


@dataclass(frozen=True)
class Curve:
    """Dollars spent up to each day."""

    name: str
    usd: tuple[Decimal, ...]
    month_usd: Decimal
    break_even_days: int | None = None


def draw(path: Path, days: Sequence[int], curves: Sequence[Curve], title: str, money: Currency) -> None:
    """Write the picture; raises UsageError for another ending than .png or .svg, MachineError without matplotlib."""
    if path.suffix not in {".png", ".svg"}:
        message = f"--chart {path}: the file must end in .png or .svg"
        raise UsageError(message)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "--chart needs matplotlib"
        raise MachineError(
            message, hint="pip install 'potstill[local]'; the bars on the terminal need nothing"
        ) from error
    settings = {"svg.hashsalt": "potstill", "text.parse_math": False, "font.family": _fonts()}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # a name in a script without a font
        figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
        axes = figure.subplots()
        for index, curve in enumerate(curves):
            colour = PALETTE[index % len(PALETTE)]
            values = [float(usd * money.rate) for usd in curve.usd]
            label = f"{curve.name}: {money.show(curve.month_usd)} a month{_even(curve)}"
            style = STYLES[index % len(STYLES)]
            axes.plot(days, values, color=colour, linestyle=style, linewidth=2, label=label, clip_on=False)
            _mark(axes, curve, days, values, colour)
        axes.set(xlabel="days", ylabel=f"spent so far, {money.code}", title=title, xlim=(0, days[-1]))
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            message = f"cannot write {path}: {error.strerror}"
            raise MachineError(message) from error


def bars(curves: Sequence[Curve], money: Currency, horizon_days: int) -> str:
    """The total of the horizon as bars of text, to scale."""
    totals = [curve.usd[-1] for curve in curves]
    most = max(totals, default=Decimal(0))
    names = max(width(curve.name) for curve in curves)
    lines = [f"spent in {horizon_days} days, initial investment included"]
    for curve, total in zip(curves, totals, strict=True):
        length = int(total / most * BAR) if most else 0
        bar = "█" * length or ("▏" if total else "")
        lines.append(f"{curve.name}{' ' * (names - width(curve.name))}  {bar} {money.show(total)}{_even(curve)}")
    return "\n".join(lines)


def _mark(axes: Axes, curve: Curve, days: Sequence[int], values: Sequence[float], colour: str) -> None:
    """A dot where a scheme has earned back its initial investment, if that lies in the picture."""
    even = curve.break_even_days
    if even is None or even > days[-1]:
        return
    value = values[0] + (values[-1] - values[0]) * even / days[-1]
    axes.plot([even], [value], "o", color=colour, markersize=8)


def _even(curve: Curve) -> str:
    """When a scheme has earned back its initial investment, in words."""
    days = curve.break_even_days
    return "" if days is None else f", even after {days} {'day' if days == 1 else 'days'}"


def _fonts() -> list[str]:
    """The default font, then those of this machine that have Chinese characters."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CHINESE_FONTS if name in installed)]
