"""Public fakes: what asyncsynth tests itself with, for the tests of pipelines built on it.

Nothing else in the package imports this one.
"""

from typing import TYPE_CHECKING, Any

from asyncsynth.testing.abilities import Abilities
from asyncsynth.testing.faults import Fault, RequestInfo, random_faults

if TYPE_CHECKING:
    from asyncsynth.testing.fault_server import FaultServer

__all__ = ["Abilities", "Fault", "FaultServer", "RequestInfo", "random_faults"]


def __getattr__(name: str) -> Any:
    """Late, so that `python -m asyncsynth.testing.fault_server` does not import itself twice."""
    if name == "FaultServer":
        from asyncsynth.testing.fault_server import FaultServer

        return FaultServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
