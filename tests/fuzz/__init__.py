"""Every decoder of the gossip under octets that nobody meant: `make fuzz`, coverage-guided, and a short form in the
suite (tests/core/test_fuzz.py)."""
