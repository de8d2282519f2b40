"""The embedded engine: a continuous-batching model of vLLM and TGI, for demo, tests and what-if.

`model` (limits, what a step costs) ← `blocks` (KV cache) ← `scheduler` (the engine itself, in virtual time) ← `service`
(the same engine in real time) ← `server` (HTTP around it). The first three know no clock and no socket.
"""
