"""What makes a cell do the same when it is run again: seeded randomness and, where asked for, a clock that stands still.

This is for cells that mean to be repeatable, not a barrier: a cell can undo all of it. The hash seed is fixed in the container's environment.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm_sandbox.guest.config import Config


def apply(settings: Config) -> None:
    """Seed what is there, and what may be imported later."""
    random.seed(settings.seed)
    sys.meta_path.insert(0, _SeedNumpy(settings.seed))
    if settings.clock == "frozen":
        freeze(settings.epoch)


class _SeedNumpy:
    """Finds ``numpy.random`` once, and seeds its global generator after it was loaded."""

    def __init__(self, seed: int) -> None:
        self._seed = seed % 2**32

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "numpy.random":
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Seeded(spec.loader, self._seed)
                return spec
        return None


class _Seeded:
    """A loader that seeds what it loaded."""

    def __init__(self, loader: Any, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        module.seed(self._seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def freeze(epoch: int) -> None:
    """Stop ``time`` and ``datetime`` at ``epoch``. Clocks that measure (``monotonic``, ``perf_counter``) and ``sleep`` go on.

    So do the clocks of programs that a cell starts, and of libraries that ask the kernel themselves (sqlite).
    """
    _freeze_time(epoch)
    _freeze_datetime(epoch)


def _freeze_time(epoch: int) -> None:
    import time  # noqa: PLC0415 - only where the clock is stopped

    real_localtime, real_gmtime, real_ctime = time.localtime, time.gmtime, time.ctime
    real_asctime, real_strftime = time.asctime, time.strftime
    real_clock, real_clock_ns = time.clock_gettime, time.clock_gettime_ns
    # CLOCK_REALTIME, its coarse sister and TAI, by their numbers: not every platform names them.
    calendars = {0, 5, 11}

    def localtime(secs: float | None = None) -> time.struct_time:
        return real_localtime(epoch if secs is None else secs)

    def strftime(form: str, t: Any = None) -> str:
        return real_strftime(form, localtime() if t is None else t)

    changes: dict[str, Any] = {
        "time": lambda: float(epoch),
        "time_ns": lambda: epoch * 10**9,
        "localtime": localtime,
        "gmtime": lambda secs=None: real_gmtime(epoch if secs is None else secs),
        "ctime": lambda secs=None: real_ctime(epoch if secs is None else secs),
        "asctime": lambda t=None: real_asctime(localtime() if t is None else t),
        "strftime": strftime,
        "clock_gettime": lambda clock: float(epoch) if clock in calendars else real_clock(clock),
        "clock_gettime_ns": lambda clock: epoch * 10**9 if clock in calendars else real_clock_ns(clock),
    }
    for name, function in changes.items():
        # As the built-in it stands for, it does not become a method where a class has it: logging.Formatter.converter.
        setattr(time, name, staticmethod(function))


def _freeze_datetime(epoch: int) -> None:
    import datetime as dt  # noqa: PLC0415 - only where the clock is stopped

    date, moment, utc = dt.date, dt.datetime, dt.timezone.utc  # noqa: UP017 - dt is patched below

    class _Like(type):
        """What the real class made is an instance too."""

        real: type

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, cls.real)

    def shown(self: Any) -> str:
        real = moment if isinstance(self, moment) else date
        return "datetime." + real.__repr__(self).removeprefix("datetime.")

    days = {"real": date, "__repr__": shown, "today": classmethod(lambda cls: cls.fromtimestamp(epoch))}
    moments = {
        **days,
        "real": moment,
        "now": classmethod(lambda cls, tz=None: cls.fromtimestamp(epoch, tz)),
        "utcnow": classmethod(lambda cls: cls.fromtimestamp(epoch, utc).replace(tzinfo=None)),
    }
    names = {"__module__": "datetime"}
    setattr(dt, "date", _Like("date", (date,), {**names, **days}))  # noqa: B010 - mypy takes a class for final
    setattr(dt, "datetime", _Like("datetime", (moment,), {**names, **moments}))  # noqa: B010 - as above
