"""`vxnet doctor`: what is wrong with this host and its ways to the others, and what to do about it."""

from __future__ import annotations

import sys

import click

from vxnet.cli import output
from vxnet.cli.options import Format
from vxnet.cluster.client import Client
from vxnet.model.checkup import Finding

MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "fault": "FAULT"}


@click.command()
@click.option("--fix", is_flag=True, help="Mend what a machine may mend by itself: checksums that a card gets wrong.")
@click.option("-q", "--quiet", is_flag=True, help="Only what is wrong.")
@click.option(
    "-f", "--format", "form", type=click.Choice(["table", "json"]), default="table", help="json: a finding a line."
)
@click.pass_obj
def doctor(client: Client, fix: bool, quiet: bool, form: Format) -> None:
    """Look for what is wrong here and on the ways to others.

    Kernel, planned against observed state, ports and firewalls both ways, path MTUs, checksums, addresses, clocks,
    certificates, disk, names, leftovers. The other hosts' daemons take part; nothing is changed without --fix.

    Exit status: 0 healthy, 3 warnings, 4 faults, 1 it could not look. For root.
    """
    from vxnet.doctor import cure, examine, status, with_cures

    patient, findings = examine(client, _progress)
    if fix and (done := cure(patient, findings)):
        findings = with_cures(examine(client, _progress)[1], findings, done)
    _progress("")
    shown = [one for one in findings if not quiet or one.verdict in ("warning", "fault")]
    if form == "json":
        output.json_lines(shown)
    else:
        for one in shown:
            _show(one)
    raise click.exceptions.Exit(status(findings))


def _show(one: Finding) -> None:
    click.echo(f"{MARKS[one.verdict]:8} {one.check + ':':16} {output.printable(one.found)}")
    if one.fixed:
        click.echo(f"{'':8} {'':16} fixed: {output.printable(one.fixed)}")
    if one.advice and one.verdict != "ok":
        click.echo(f"{'':8} {'':16} {output.printable(one.advice)}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", nl=False, err=True)
