"""Names inside containers: their networks' own, and the host's resolvers for everything else.

::

     h1      h2      h3      networks "front", "back", "inside" (internal)
      │       │       │
     ─┴───────┴───────┴── underlay ──┬──
                                     x1   dnsmasq, the resolver of h2; h1 and h3 have none
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.operator import eventually
from tests.system.typed import networks, run, typed
from vxnet.lab import Lab
from vxnet.model.api import NetworkCreate
from vxnet.model.container import ContainerSpec, NetworkWish

pytestmark = [pytest.mark.lab, pytest.mark.slow]

LARGE = 1400
"""Octets of an answer that needs TCP: more than the 1232 that a query over UDP says it takes (RFC 9715)."""

ECHO_ON_53 = """
import socket, threading
def tcp():
    server = socket.create_server(("", 53))
    while True:
        connection, _ = server.accept()
        connection.sendall(b"own tcp")
        connection.close()
threading.Thread(target=tcp, daemon=True).start()
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 53))
while True:
    _, peer = server.recvfrom(512)
    server.sendto(b"own udp", peer)
"""
ASK_53 = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(5)
    client.sendto(b"?", (sys.argv[1], 53))
    print(client.recv(99).decode())
with socket.create_connection((sys.argv[1], 53), 5) as client:
    print(client.recv(99).decode())
"""


ASK_UNTIL_GONE = """
import socket, time
print("there", flush=bool(socket.gethostbyname("beta")))
try:
    while socket.gethostbyname("beta"):
        pass
except OSError:
    print(time.time())
"""


class Resolver(NamedTuple):
    process: subprocess.Popen[bytes]
    queries: Path
    """Its log."""


@pytest.fixture(scope="module")
def resolver(shared_lab: Lab) -> Iterator[Resolver]:
    lab = shared_lab
    texts = ",".join("x" * 200 for _ in range(LARGE // 200))
    log = lab["x1"].root / "root/queries"
    argv = "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file="
    options = "--log-queries --log-facility=/root/queries --address=/outside.example/203.0.113.7 --local=/#/"
    own = lab["h2"].root / "etc/resolv.conf"
    before = own.read_text()
    with lab.popen("x1", [*argv.split(), *options.split(), f"--txt-record=large.example,{texts}"]) as server:
        own.write_text(f"nameserver {lab['x1'].address}\n")
        restart(lab, "h2")
        yield Resolver(server, log)
        own.write_text(before)
        restart(lab, "h2")
        server.kill()


@pytest.fixture(scope="module")
def two(shared_lab: Lab) -> Iterator[None]:
    with networks(
        shared_lab,
        NetworkCreate(name="front", attachable=True),
        NetworkCreate(name="back", attachable=True),
        NetworkCreate(name="inside", attachable=True, internal=True),
    ):
        yield


@pytest.fixture(autouse=True)
def clean(lab: Lab, two: None) -> Iterator[None]:
    yield
    for host in lab.hosts:
        for container in lab.client(host).containers(all=True):
            lab.client(host).remove(container.id, force=True)


def restart(lab: Lab, host: str) -> None:
    lab.kill(host, daemon=True)
    lab.start(host)


def start(lab: Lab, host: str, name: str, *wished: str | NetworkWish, argv: tuple[str, ...] = ("sleep", "inf")) -> str:
    """The address on the first network."""
    wishes = tuple(NetworkWish(network=wish) if isinstance(wish, str) else wish for wish in wished)
    container = lab.client(host).create_container(ContainerSpec(name=name, argv=argv, networks=wishes), start=True)
    return str(container.attachments[0].addresses[0].ip) if container.attachments else ""


def dig(lab: Lab, host: str, container: str, query: str) -> str:
    """The answers, a line each; ``STATUS`` if there are none."""
    said = typed(lab, host, f"vxnet exec {container} dig +tries=1 +time=5 +noall +comments +answer {query}")
    answers = re.findall(r"^[^;\s]\S*\s+\d+\s+IN\s+\S+\s+(.*)$", said, re.MULTILINE)
    status = re.search(r"status: (\w+)", said)
    assert status, said
    return "\n".join(sorted(answers)) or status[1]


# Names of networks


def test_names_aliases_and_names_of_one_network(lab: Lab) -> None:
    alpha = start(lab, "h1", "alpha", NetworkWish(network="front", aliases=("web", "www-2")))
    beta = start(lab, "h2", "Beta", "front", "back")
    gamma = start(lab, "h3", "gamma", NetworkWish(network="back", aliases=("web",)))
    eventually(lambda: dig(lab, "h2", "Beta", "gamma") == gamma and dig(lab, "h2", "Beta", "alpha") == alpha)
    script = "for name in alpha ALPHA alpha. alpha.front web.front www-2 gamma gamma.back web.back Beta beta.front; do "
    said = typed(lab, "h2", f"vxnet exec Beta sh -c '{script} getent ahostsv4 $name | head -n 1; done'")
    assert [line.split()[0] for line in said.splitlines()] == [alpha] * 6 + [gamma] * 3 + [beta] * 2
    # Of a name on both, the first network's.
    assert dig(lab, "h2", "Beta", "web") == alpha
    for query, answer in {
        "+tcp alpha": alpha,
        "alpha AAAA": "NOERROR",
        "alpha MX": "NOERROR",
        f"-x {alpha}": "alpha.front.",
    }.items():
        assert dig(lab, "h2", "Beta", query) == answer, query
    # By the id, as Docker's.
    id = lab.client("h1").container("alpha").id
    assert dig(lab, "h2", "Beta", id[:12]) == alpha


def test_names_of_other_networks_do_not_resolve(lab: Lab, resolver: Resolver) -> None:
    alpha, _ = start(lab, "h1", "alpha", "front"), start(lab, "h3", "gamma", "back")
    start(lab, "h2", "beta", "front")
    eventually(lambda: dig(lab, "h2", "beta", "alpha") == alpha)
    for name in ("gamma", "gamma.back", "alpha.back", "beta.back", "nobody", "alpha.nowhere"):
        assert dig(lab, "h2", "beta", name) == "NXDOMAIN", name
    start(lab, "h2", "alone")
    assert dig(lab, "h2", "alone", "alpha") == "NXDOMAIN"
    assert run(lab, "h2", "vxnet exec beta ping -c 1 -W 1 gamma").returncode == 2


def test_one_name_on_two_hosts_is_both(lab: Lab) -> None:
    one, other = start(lab, "h1", "twin", "front"), start(lab, "h2", "twin", "front")
    start(lab, "h3", "alpha", "front")
    eventually(lambda: dig(lab, "h3", "alpha", "twin") == "\n".join(sorted((one, other))))
    lab.client("h1").remove("twin", force=True)
    eventually(lambda: dig(lab, "h3", "alpha", "twin") == other)


def test_a_name_comes_and_goes(lab: Lab) -> None:
    """With start, with every kind of end, with the network."""
    start(lab, "h3", "alpha", "front")
    ends = {
        "vxnet kill beta && vxnet rm beta": "",
        "vxnet stop beta && vxnet rm beta": "",
        "vxnet rm -f beta": "",
        "vxnet network disconnect front beta": "vxnet rm -f beta",
    }
    for end, after in ends.items():
        beta = start(lab, "h2", "beta", "front")
        eventually(lambda beta=beta: dig(lab, "h3", "alpha", "beta") == beta)  # type: ignore[misc]
        typed(lab, "h2", end)
        eventually(lambda: dig(lab, "h3", "alpha", "beta") == "NXDOMAIN")
        typed(lab, "h2", after or "true")


def test_a_killed_container_is_no_longer_named(lab: Lab) -> None:
    """Asked without a pause by one process inside, so that what is measured is vxnet."""
    start(lab, "h3", "alpha", "front")
    beta = start(lab, "h2", "beta", "front")
    eventually(lambda: dig(lab, "h3", "alpha", "beta") == beta)
    with lab.popen(
        "h3", ["vxnet", "exec", "alpha", "python3", "-c", ASK_UNTIL_GONE], stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout and asking.stdout.readline() == "there\n"
        killed = time.time()
        lab.client("h2").kill("beta")
        said, _ = asking.communicate(timeout=20)
    gone = float(said) - killed
    print(f"gone after {gone * 1000:.0f} ms")
    assert gone < 5


# Everything else


def test_the_hosts_resolvers_answer_the_rest(lab: Lab, resolver: Resolver) -> None:
    start(lab, "h2", "beta", "front")
    assert dig(lab, "h2", "beta", "outside.example") == "203.0.113.7"
    assert dig(lab, "h2", "beta", "+tcp deep.outside.example") == "203.0.113.7"
    assert dig(lab, "h2", "beta", "nothing.test") == "NXDOMAIN"
    assert typed(lab, "h2", "vxnet exec beta getent hosts outside.example").split()[0] == "203.0.113.7"
    # Too large for a datagram: a client that asks again by TCP has it whole.
    assert len(dig(lab, "h2", "beta", "large.example TXT")) > LARGE
    said = typed(lab, "h2", "vxnet exec beta dig +ignore +noall +comments large.example TXT")
    assert re.search(r"flags:[^;]* tc", said), said


def test_nobody_outside_is_asked_from_an_internal_network(lab: Lab, resolver: Resolver) -> None:
    start(lab, "h2", "beta", "inside")
    alpha = start(lab, "h1", "alpha", "inside")
    eventually(lambda: dig(lab, "h2", "beta", "alpha") == alpha)
    assert dig(lab, "h2", "beta", "secret.outside.example") == "NXDOMAIN"
    assert dig(lab, "h2", "beta", "+tcp secret.outside.example") == "NXDOMAIN"
    assert "secret" not in resolver.queries.read_text()


def test_a_host_without_resolvers(lab: Lab) -> None:
    start(lab, "h1", "alpha", "front")
    assert dig(lab, "h1", "alpha", "outside.example") == "NXDOMAIN"


def test_a_silent_resolver_delays_nobody_else(lab: Lab, resolver: Resolver) -> None:
    """What it does not answer is a failure in the end; what needs no resolver is answered meanwhile."""
    alpha = start(lab, "h1", "alpha", "front")
    start(lab, "h2", "beta", "front")
    eventually(lambda: dig(lab, "h2", "beta", "alpha") == alpha)
    resolver.process.send_signal(signal.SIGSTOP)
    try:
        argv = ["vxnet", "exec", "beta", "dig", "+time=20", "+tries=1", "outside.example"]
        with lab.popen("h2", argv, stdout=subprocess.PIPE, text=True) as waiting:
            assert dig(lab, "h2", "beta", "alpha") == alpha
            assert waiting.poll() is None, "it was answered by somebody"
            assert "SERVFAIL" in waiting.communicate(timeout=30)[0]
    finally:
        resolver.process.send_signal(signal.SIGCONT)
    assert dig(lab, "h2", "beta", "outside.example") == "203.0.113.7"


def test_a_container_that_serves_on_53_itself(lab: Lab) -> None:
    own = start(lab, "h1", "alpha", "front", argv=("python3", "-c", ECHO_ON_53))
    beta = start(lab, "h2", "beta", "front")
    eventually(lambda: dig(lab, "h1", "alpha", "beta") == beta)
    for host, container, target in (("h1", "alpha", "127.0.0.1"), ("h1", "alpha", own), ("h2", "beta", own)):
        argv = ["vxnet", "exec", container, "python3", "-c", ASK_53, target]
        eventually(lambda host=host, argv=argv: lab.run(host, argv).stdout == "own udp\nown tcp\n")  # type: ignore[misc]


# The daemon


def test_queries_wait_while_the_daemon_restarts(lab: Lab, resolver: Resolver) -> None:
    """Killed, not stopped: names of other hosts and outside ones are asked while nobody serves, and are answered."""
    alpha = start(lab, "h1", "alpha", "front")
    start(lab, "h2", "beta", "front")
    eventually(lambda: dig(lab, "h2", "beta", "alpha") == alpha)
    lab.kill("h2", daemon=True)
    # exec goes by the daemon: this enters without it.
    enter = f"nsenter --net --mount --target {pid_of(lab, 'beta')} dig +time=20 +tries=1 +short"
    queries = ("alpha", "+tcp alpha", "outside.example", "alpha AAAA")
    asked = {
        query: lab.popen("h2", [*enter.split(), *query.split()], stdout=subprocess.PIPE, text=True) for query in queries
    }
    lab.start("h2")
    answers = {query: process.communicate(timeout=30)[0].strip() for query, process in asked.items()}
    assert answers == {"alpha": alpha, "+tcp alpha": alpha, "outside.example": "203.0.113.7", "alpha AAAA": ""}


def pid_of(lab: Lab, name: str) -> int:
    """As its host counts; read without the daemon."""
    said = typed(lab, "h2", f'grep -l \'"name":"{name}"\' /var/lib/vxnet/containers/*/container.json | xargs cat')
    found = re.search(r'"pid":(\d+)', said)
    assert found, said
    return int(found[1])
