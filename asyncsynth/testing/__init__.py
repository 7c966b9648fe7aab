"""Public fakes: what asyncsynth tests itself with, for the tests of pipelines built on it.

Nothing else in the package imports this one.
"""

from asyncsynth.testing.fault_server import FaultServer
from asyncsynth.testing.faults import Fault, RequestInfo, random_faults

__all__ = ["Fault", "FaultServer", "RequestInfo", "random_faults"]
