"""Decisions without I/O: `now` and `rng` are arguments; nothing here touches a clock, a socket or a loop."""
