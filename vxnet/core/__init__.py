"""DECIDES: pure functions and protocol cores; no clock, socket, disk or randomness of their own."""
