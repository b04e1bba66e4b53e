"""A process that reads or writes files in a container's mounts: ``-m vxnet.daemon.copier VERB MOUNTS PATH FLAG``.

::

     vxnetd ── spawns ──> copier ── setns(mnt) ──> the container's files
        <── stdout, a tar ──┘└── stdin, a tar <──

Everything is loaded before it enters, and nothing can be from then on: it would be the container's (CVE-2019-14271).
Paths are resolved by the kernel below the container's root, so that no link of it leads out (CVE-2018-15664).
"""

from __future__ import annotations

import os
import sys

from vxnet.cluster import archive
from vxnet.cluster.failure import failure_to_json
from vxnet.host import netns
from vxnet.model.errors import HostError, VxnetError


def enter(mounts: int) -> None:
    """``mounts``: a descriptor of the namespace. A pid would be another process's as soon as the container ends, and
    with it the files. Raises :class:`HostError`.
    """
    try:
        netns.setns(mounts, netns.CLONE_NEWNS)
        os.close(mounts)
        os.chdir("/")
    except OSError as error:
        raise HostError(f"cannot enter the container's mounts: {error.strerror}") from None


def main(verb: str, mounts: int, path: str, flag: bool) -> None:
    """``flag``: of ``pack``, follow a link; of ``unpack``, keep the owners."""
    out, source = sys.stdout.buffer, sys.stdin.buffer
    sys.meta_path.clear()
    enter(mounts)
    os.umask(0o022)
    path = "/" + path.lstrip("/")
    if verb == "pack":
        archive.pack(path, out, follow=flag)
        out.flush()
    else:
        archive.unpack(source, path, owners=flag)


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "1")
    except VxnetError as error:
        sys.stderr.buffer.write(failure_to_json(error))
        sys.exit(1)
