"""Who may say what, and when: one literal transition table for each side of the channel.

A table maps ``(state, message type)`` to the next state. A pair that is not in it is a violation, and a violation ends the
session: there is no recovery from a peer that does not follow the grammar. Sent and received messages go through the same
table, so a defect on our own side shows in the same place.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, TypeVar

from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Agent(Enum):
    """States of the outer conversation, the same seen from host and agent."""

    SILENT = auto()
    """Nothing was said; only the host may speak."""
    GREETED = auto()
    """Hello was said; the agent owes a report."""
    REPORTED = auto()
    """The host is checking the report."""
    LIVE = auto()
    """Kernels may run."""
    CLOSED = auto()


class Kernel(Enum):
    """States of the inner conversation with the kernel of one generation."""

    BOOTING = auto()
    IDLE = auto()
    RUNNING = auto()
    DOWN = auto()


AGENT: Mapping[tuple[Agent, type[m.Message]], Agent] = {
    (Agent.SILENT, m.Hello): Agent.GREETED,
    (Agent.GREETED, m.Report): Agent.REPORTED,
    (Agent.REPORTED, m.Go): Agent.LIVE,
    (Agent.LIVE, m.CellBegin): Agent.LIVE,
    (Agent.LIVE, m.CellEnd): Agent.LIVE,
    (Agent.LIVE, m.KernelIn): Agent.LIVE,
    (Agent.LIVE, m.Interrupt): Agent.LIVE,
    (Agent.LIVE, m.KernelUp): Agent.LIVE,
    (Agent.LIVE, m.KernelOut): Agent.LIVE,
    (Agent.LIVE, m.KernelDown): Agent.LIVE,
    (Agent.LIVE, m.Output): Agent.LIVE,
    (Agent.LIVE, m.Expired): Agent.LIVE,
    (Agent.LIVE, m.CellClosed): Agent.LIVE,
    (Agent.GREETED, m.Bye): Agent.CLOSED,
    (Agent.REPORTED, m.Bye): Agent.CLOSED,
    (Agent.LIVE, m.Bye): Agent.CLOSED,
}

_ANYTIME = (m.Share, m.Unshare, m.Ask, m.Cancel, m.AskBudget, m.Answer, m.BudgetInfo)
"""A thread that a cell left running may call ``llm_query`` between cells; that is the user's right, not a violation."""

KERNEL: Mapping[tuple[Kernel, type[m.Message]], Kernel] = {
    (Kernel.BOOTING, m.Ready): Kernel.IDLE,
    (Kernel.IDLE, m.Cell): Kernel.RUNNING,
    (Kernel.RUNNING, m.Final): Kernel.RUNNING,
    (Kernel.RUNNING, m.Result): Kernel.IDLE,
    **{(state, kind): state for state in (Kernel.IDLE, Kernel.RUNNING) for kind in _ANYTIME},
}


def agent_step(state: Agent, message: m.Message) -> Agent:
    """Return the state after ``message``, sent or received; raises ``FrameError`` when it may not come now."""
    return _step(AGENT, state, message)


def kernel_step(state: Kernel, message: m.Message) -> Kernel:
    """As :func:`agent_step`, for the inner conversation."""
    return _step(KERNEL, state, message)


_S = TypeVar("_S", bound=Enum)


def _step(table: Mapping[tuple[_S, type[m.Message]], _S], state: _S, message: m.Message) -> _S:
    try:
        return table[state, type(message)]
    except KeyError:
        msg = f"{message.TYPE} may not come in state {state.name.lower()}"
        raise FrameError(msg) from None
