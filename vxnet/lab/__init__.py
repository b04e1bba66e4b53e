"""Several hosts on this machine: each a set of namespaces with its own real daemon, joined by an underlay.

:class:`Lab` is for Python, the functions are the commands ``vxnet lab …``.
"""

from vxnet.lab.commands import cut, down, exec_, heal, kill, ls, shell, start, up
from vxnet.lab.machine import Lab, Machine
from vxnet.lab.views import HostView, LabView

__all__ = [
    "HostView",
    "Lab",
    "LabView",
    "Machine",
    "cut",
    "down",
    "exec_",
    "heal",
    "kill",
    "ls",
    "shell",
    "start",
    "up",
]
