"""Instruments for operators: they look at a host and its networks from the outside, and change nothing."""
