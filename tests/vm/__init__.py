"""Whole machines: Debian 12 with its own kernel and systemd under QEMU, vxnet installed from its package.

What only they show: Linux 6.1, systemd's units and control groups, a reboot, a pulled cable, a clock that jumps, netem.
"""
