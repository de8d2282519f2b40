"""Every decision, and nothing that waits: no clock, no sockets, no logging."""
