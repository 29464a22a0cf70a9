"""Formats values for reports and tables."""

from __future__ import annotations

import math
import time
from typing import Any


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label(value: Any) -> str:
    """Formats a value as short as possible: 0.0003 as 3e-4, None as none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) < 10**7:
        return str(value)
    if isinstance(value, int | float):
        value = float(value)
        if value and math.isfinite(value) and not 1e-3 <= abs(value) < 1e5:
            mantissa, exponent = f"{value:.2e}".split("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(label(item) for item in value) + "]"
    return " ".join(str(value).split())


def duration(seconds: float | None) -> str:
    """Formats seconds as 12.3 s, 4:05 min or 2:03 h; None as an empty string."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def clock(at: Any) -> str:
    """Formats a time in seconds since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at)) if is_number(at) else "at an unknown time"


def count(number: int, name: str) -> str:
    """Formats a count: 1 step, 2,000 steps."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Formats a share of 1 in percent; a positive one that would round to 0 as < 0.1 %."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"
