"""The tunnel's C under octets that nobody meant: libFuzzer by clang, with the sanitizers for addresses and undefined
behaviour. ``make fuzz-vxlan``; a short form in tests/host/test_uvxlan_fuzz.py."""
