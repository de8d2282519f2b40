"""A fleet in virtual time: the proxy's own admission, routing and windows against embedded engines.

`fleet` says what is simulated, `world` lets time pass, `policies` are the front doors without classes, `prelude` is
the core that the proxy runs (the twin of `dispatcher.py`, with virtual time in place of a loop), `forecasters` stand
for the classifier. `simulate` joins them; its result is what a live benchmark brings back, for the same report.

Not modelled: the proxy's own CPU time, connections, clients that leave, engines that fail.
"""

from prelude_proxy.simulator.fleet import EngineSpec, Fleet
from prelude_proxy.simulator.simulation import POLICIES, Simulation, simulate

__all__ = ["POLICIES", "EngineSpec", "Fleet", "Simulation", "simulate"]
