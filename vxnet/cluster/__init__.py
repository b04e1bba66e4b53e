"""Sockets and disks, no decisions: the store, gossip, names, the HTTP interfaces and their clients."""
