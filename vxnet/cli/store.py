"""store migrate, backup, restore: the managers' records."""

from __future__ import annotations

import os

import click
from msgspec.structs import asdict

from vxnet.cli import output
from vxnet.cli.store_options import store_options
from vxnet.cluster.client import Client
from vxnet.model.codec import from_json, to_json
from vxnet.model.errors import CallerError, HostError
from vxnet.model.store import Backup, RestoreRequest, StoreWish


@click.command("migrate")
@store_options
@click.pass_obj
def migrate(client: Client, store: StoreWish) -> None:
    """Move a running cluster from the built-in store to etcd.

    Containers, services and their traffic are not touched.
    """
    client.migrate_store(store)
    click.echo("The cluster's store is etcd now: `vxnet join-token manager` lets further managers in.")


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_obj
def backup(client: Client, file: str) -> None:
    """Write all that the managers know to FILE.

    It holds the cluster's CA and its keys: whoever has the file is the cluster. FILE may be a pipe, or "-" for
    standard output.
    """
    made = client.back_up_store()
    data = to_json(made)
    plain = file != "-" and (not os.path.exists(file) or os.path.isfile(file))
    try:
        if file == "-":
            click.echo(data, nl=False)
        elif plain:
            _replace(os.path.realpath(file), data)
        else:  # a pipe or a device stays what it is
            with open(file, "wb") as out:
                out.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"{len(made.records)} records as of revision {made.revision} are in {file}.", err=not plain)


def _replace(file: str, data: bytes) -> None:
    """Whole or not at all, and for its owner alone."""
    beside = f"{file}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as out:
            os.fchmod(fd, 0o600)
            out.write(data)
            out.flush()
            os.fsync(fd)
        os.replace(beside, file)
    except BaseException:
        os.unlink(beside)
        raise


@click.command("restore")
@click.option("--advertise-addr", default="", metavar="ADDR|IFACE", help="Where the other nodes reach this one.")
@click.option("--data-path-addr", default="", metavar="ADDR|IFACE", help="For containers' traffic; default: the same.")
@click.option("--force", is_flag=True, help="Also if the nodes trust another CA: each has to join anew then.")
@store_options
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_obj
def restore(client: Client, advertise_addr: str, data_path_addr: str, force: bool, store: StoreWish, file: str) -> None:
    """Make this host the manager of the cluster in FILE.

    For a cluster whose managers are all gone. The nodes find this one by themselves.
    """
    try:
        with open(file, "rb") as source:
            found = from_json(source.read(), Backup)
    except OSError as error:
        raise CallerError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise CallerError(f"{file} is no backup of vxnet's ({error})") from error
    request = RestoreRequest(
        backup=found, advertise_addr=advertise_addr, data_path_addr=data_path_addr, force=force, **asdict(store)
    )
    node = client.restore_store(request)
    click.echo(f"Cluster restored: current node ({output.short(node.id)}) is now its manager.")
