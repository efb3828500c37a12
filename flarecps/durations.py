"""Durations as people read them: on a clock, or in words."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Hours (where there are any), minutes and seconds.

    >>> clock(75.0), clock(3675.0)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration_in_words(seconds: float | None) -> str:
    """Seconds, minutes, or hours and minutes; a dash for None.

    >>> duration_in_words(20), duration_in_words(600), duration_in_words(7500)
    ('20 s', '10 min', '2 h 05 min')
    """
    if seconds is None:
        return "–"
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
