"""RUNS: the long-lived loops of one host and their wiring."""
