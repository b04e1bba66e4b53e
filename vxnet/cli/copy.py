"""``vxnet cp``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import click

from vxnet.cluster.client import Client
from vxnet.model.errors import CallerError


@click.command()
@click.option("-a", "--archive", "owners", is_flag=True, help="Keep the owners, as numbers.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Of SOURCE, what it leads to.")
@click.option("-q", "--quiet", is_flag=True, hidden=True)
@click.argument("source", metavar="[CONTAINER:]SOURCE")
@click.argument("target", metavar="[CONTAINER:]TARGET")
@click.pass_obj
def cp(client: Client, owners: bool, follow: bool, quiet: bool, source: str, target: str) -> None:
    """Copy files between a container and this host.

    The container may have ended. A SOURCE that ends in /. is the content of a directory; - is a tar on standard input
    or output.
    """
    from vxnet.cluster import archive

    there, path = _place(source)
    here, place = _place(target)
    if there and here:
        raise CallerError("copying between containers is not supported", hint="copy to this host first")
    if there:
        pieces = client.read_files(there, path, follow=follow)
        if place != "-":
            archive.unpack(Pieces(pieces), place, owners=owners)
            return
        if sys.stdout.isatty():
            raise CallerError("a terminal is no place for a tar archive", hint="send it to a file or into a pipe")
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    elif here:
        if path == "-":
            client.write_files(here, place + "/.", _all_of_stdin, owners=owners)
        else:
            archive.check(path, follow=follow)  # before anything is begun there
            client.write_files(here, place, lambda put: archive.pack(path, Call(put), follow=follow), owners=owners)
    else:
        raise CallerError("one of the two must be in a container", hint="write CONTAINER:PATH")


def _place(text: str) -> tuple[str, str]:
    """The container's name, empty for this host, and the path. As Docker: what begins with a slash or a dot is here."""
    if text.startswith(("/", ".")) or ":" not in text:
        return "", text
    name, _, path = text.partition(":")
    if not name or not path:
        raise CallerError(f"expected CONTAINER:PATH or a path, found {text!r}")
    return name, path


def _all_of_stdin(put: Callable[[bytes], None]) -> None:
    while piece := os.read(0, 1 << 16):
        put(piece)


class Pieces:
    """A stream of pieces as something to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


class Call:
    """Something to write to that calls."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put

    def write(self, data: bytes) -> None:
        self._put(data)
