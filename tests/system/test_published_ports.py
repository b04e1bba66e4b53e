"""Published ports on three hosts: who has them, who may not, and what every node knows of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.system.operator import Session, eventually
from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

HOSTS = ("h1", "h2", "h3")
SERVER = "python3 -m http.server 8080"


def bind(session: Session, host: str, port: int, protocol: str = "tcp") -> str:
    """Empty, or why a program cannot have a port of a host."""
    kind = "SOCK_STREAM" if protocol == "tcp" else "SOCK_DGRAM"
    code = f"import socket; socket.socket(type=socket.{kind}).bind(('0.0.0.0', {port}))"
    done = session.run(host, f'python3 -c "{code}"')
    return done.stderr.splitlines()[-1] if done.returncode else ""


def published(session: Session, name: str) -> list[dict[str, object]]:
    found = session.json("h1", f"vxnet service inspect {name}")[0]["service"]["spec"]["ports"]
    assert isinstance(found, list)
    return found


def test_each_node_has_the_port_and_a_foot(session: Session) -> None:
    (ingress,) = session.json("h1", "vxnet network inspect ingress")
    assert ingress["network"]["ingress"] and ingress["gateways"] == []
    session.service("web", "-p 8080:8080 -p 53/udp --constraint node.hostname==h2", SERVER)
    first, second = published(session, "web")
    assert (first["published"], second["target"]) == (8080, 53)
    auto = int(str(second["published"]))
    assert 30000 <= auto <= 32767
    (line,) = (row for row in session.say("h1", "vxnet service ls").splitlines() if " web " in row)
    assert line.endswith(f"*:8080->8080/tcp, *:{auto}->53/udp")
    for host in HOSTS:

        def feet(host: str = host) -> bool:
            view = session.json(host, "vxnet network inspect -v ingress")[0]
            assert [one["name"] for one in view["peers"]] == list(HOSTS)
            assert [one["node"] for one in view["endpoints"]] == ["h2"]
            return [one["node"] for one in view["gateways"]] == list(HOSTS)

        eventually(feet)
        assert "Address already in use" in eventually(lambda host=host: bind(session, host, 8080))  # type: ignore[misc]
        assert "Address already in use" in bind(session, host, auto, "udp")
        assert not bind(session, host, auto), "tcp of the same number is nobody's"
    (task,) = session.tasks("web")
    assert "10.0.0." in session.inside("h2", task["name"], "ip -br addr show ingress0").stdout
    assert session.inside("h2", task["name"], "getent hosts tasks.web").returncode, "ingress is no network for names"
    # What is there, and on a host that only gives connections on.
    fdb = session.say("h3", "ip netns exec vxnet bridge fdb show dev vx65536")
    assert fdb.count("dst 192.168.56.11") == fdb.count("dst 192.168.56.12") - 1 == 2, "foot and flood; and a task"
    session.say("h1", "vxnet service rm web")
    for host in HOSTS:
        eventually(lambda host=host: not bind(session, host, 8080))  # type: ignore[misc]
        eventually(lambda host=host: "vx65536" not in session.say(host, "ip -n vxnet link"))  # type: ignore[misc]


def test_a_taken_port_names_its_holder(session: Session) -> None:
    session.service("web", "-p 8080:8080 --constraint node.hostname==h2", SERVER)
    for command in ("vxnet service create -d --name other -p 9090:80 -p 8080:80 -- true",):
        assert "port 8080/tcp is taken by service web" in session.refusal("h1", command)
    assert [row["service"]["spec"]["name"] for row in session.table("h1", "vxnet service ls")] == ["web"]
    eventually(lambda: bind(session, "h3", 8080))
    refused = session.refusal("h3", "vxnet run -d --name local -p 8080:80 -- sleep infinity")
    assert "port 8080/tcp is taken by service web" in refused
    session.adopt("h3", "local")
    session.say("h3", "vxnet run -d --name local -p 9090:80 -p 81 -- sleep infinity")
    (row,) = session.table("h3", "vxnet ps --filter name=local")
    assert [(one["published"], one["target"]) for one in row["ports"]] == [(9090, 80), (30000, 81)]
    assert "*:9090->80/tcp, *:30000->81/tcp" in session.say("h3", "vxnet ps")
    refused = session.refusal("h3", "vxnet run -d -p 9090:80 -- sleep infinity")
    assert "port 9090/tcp is taken by container local" in refused
    assert bind(session, "h3", 9090) and not bind(session, "h2", 9090)
    session.say("h3", "vxnet stop -t 0 local")
    assert not bind(session, "h3", 9090)
    session.say("h3", "vxnet start local")
    assert bind(session, "h3", 9090)
    with session.lab.popen("h3", ["python3", "-m", "http.server", "9191"], stderr=subprocess.DEVNULL) as other:
        try:
            eventually(lambda: bind(session, "h3", 9191))
            refused = session.refusal("h3", "vxnet run --rm -p 9191:80 -- true")
            assert "port 9191/tcp is taken by python3 (process " in refused
            assert "local" in session.say("h3", "vxnet ps -a") and len(session.table("h3", "vxnet ps -a")) == 1
        finally:
            other.kill()


def test_a_port_that_a_program_had_first_stays_with_it(session: Session) -> None:
    session.lab.kill("h3", daemon=True)  # so that it cannot tell the manager of the program
    with session.lab.popen("h3", ["python3", "-m", "http.server", "8088"], stderr=subprocess.DEVNULL) as other:
        try:
            eventually(lambda: bind(session, "h3", 8088))
            session.service("web", "-p 8088:8080 --constraint node.hostname==h2", SERVER)
            session.lab.start("h3")
            eventually(lambda: bind(session, "h2", 8088))
            eventually(lambda: session.json("h1", "vxnet node inspect h3")[0]["node"]["ports"])
            refused = session.refusal("h1", "vxnet service create --name other -p 9999:80 -p 8088:80 -- true")
            assert "8088/tcp is taken by service web" in refused
            warned = eventually(lambda: session.json("h3", "vxnet info --format json")["warnings"])
            assert "8088/tcp is taken by" in warned[0] and "not answered" in warned[0]
        finally:
            other.kill()
    eventually(lambda: not session.json("h3", "vxnet info --format json")["warnings"], 15)
    assert bind(session, "h3", 8088)


def test_update_adds_and_takes_away_without_new_tasks(session: Session) -> None:
    session.network("quiet", "--internal")
    session.service("web", "--network quiet --constraint node.hostname==h2", SERVER)
    (task,) = session.tasks("web")

    def links() -> str:
        return session.inside("h2", task["name"], "ip -br addr").stdout

    assert "ingress0" not in links()
    session.say("h1", "vxnet service update --publish-add 8080:8080 web")
    eventually(lambda: "ingress0" in links())
    assert "eth1" not in links(), "a port is no way out of an internal network"
    refused = session.refusal("h1", "vxnet service update --publish-rm 9 web")
    assert "there is no '9'; published are 8080:8080/tcp" in refused
    session.say("h1", "vxnet service update --publish-rm 8080 web")
    eventually(lambda: "ingress0" not in links())
    assert [one["id"] for one in session.tasks("web")] == [task["id"]]
    # One of mode host is a part of the task.
    assert "taken" in session.refusal("h1", "vxnet service update --publish-add published=2377,target=1,mode=host web")


def test_everything_is_there_again_after_a_restart(session: Session) -> None:
    session.service("web", "-p 8080:8080 --constraint node.hostname==h2", SERVER)
    eventually(lambda: bind(session, "h3", 8080))
    before = session.json("h3", "vxnet network inspect ingress")[0]["gateways"]
    session.lab.kill("h3", daemon=True)
    session.lab.start("h3")
    assert bind(session, "h3", 8080)
    assert session.json("h3", "vxnet network inspect ingress")[0]["gateways"] == before


def test_the_ingress_network_is_made_anew(session: Session) -> None:
    session.say("h1", "vxnet network rm ingress")
    try:
        refused = session.refusal("h1", "vxnet service create --name web -p 8080:8080 -- true")
        assert "`vxnet network create --ingress ingress`" in refused
        session.say("h1", "vxnet network create --ingress --subnet 10.77.0.0/24 mesh")
        session.service("web", "-p 8080:8080 --constraint node.hostname==h2", SERVER)
        for host in HOSTS:
            eventually(lambda host=host: "200 OK" in session.run(host, "curl -sI 127.0.0.1:8080").stdout)  # type: ignore[misc]
            assert " 10.77.0." in session.say(host, "ip -4 addr show vxnet_in")
        assert "published ports of web" in session.refusal("h1", "vxnet network rm mesh")
        session.say("h1", "vxnet service rm web")
        session.say("h1", "vxnet network rm mesh")
    finally:
        session.run("h1", "vxnet network create --ingress ingress")


# The routing mesh, as a client outside the cluster meets it

TELLS_ITS_CLIENT = """
import http.server, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((self.client_address[0] + "\\n").encode())
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", 80), Handler).serve_forever()
"""


@pytest.mark.timeout(180)
def test_each_host_answers_and_the_server_sees_its_client(make_lab: Callable[..., Lab]) -> None:
    """h4 has no part in the cluster. A host is killed: the others still answer."""
    lab = make_lab(hosts=4, join=False)
    session = Session(lab)
    session.say("h1", "vxnet init --advertise-addr eth1")
    token = session.say("h1", "vxnet join-token -q worker").strip()
    for host in ("h2", "h3"):
        session.say(host, f"vxnet join --token {token} --advertise-addr eth1 192.168.56.11")
    session.network("my-overlay-network")
    session.service(
        "my-web",
        "--network my-overlay-network -p 80:80 --replicas 2 --constraint node.hostname!=h1",
        f"python3 -u -c '{TELLS_ITS_CLIENT}'",
    )

    def ask(number: int) -> str:
        done = session.run("h4", f"curl -sS --max-time 3 http://192.168.56.1{number}/")
        assert done.returncode == 0, f"h{number}: {done.stderr}"
        return done.stdout.strip().removeprefix("::ffff:")

    for number in (1, 2, 3):
        for _ in range(20):
            assert eventually(lambda number=number: ask(number)) == "192.168.56.14"  # type: ignore[misc]
    logs = session.say("h1", "vxnet service logs my-web 2>&1")
    assert logs.count("192.168.56.14 - - ") >= 60 and logs.count('"GET / HTTP/1.1" 200') >= 60
    lab.kill("h3")
    for number in (1, 2):
        for _ in range(20):
            assert eventually(lambda number=number: ask(number)) == "192.168.56.14"  # type: ignore[misc]
    # Nothing else of the hosts answers for it once it is gone.
    session.say("h1", "vxnet service rm my-web")
    assert eventually(lambda: session.run("h4", "curl -sS --max-time 3 http://192.168.56.11/").returncode == 7)
