"""Whatever is asked wrongly is answered by one line, and a status that is not 0.

On a real lab, as a person would meet it. h1 and h2 are a cluster; h3 is in none.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator

import pytest

from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

# Who may read the checkout wherever it lies, and nothing else that root may.
READ = "+dac_read_search"
NOBODY = f"setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps {READ} --ambient-caps {READ}"

# host, command, what the line must say
WRONG = [
    ("h1", "vxnet network create --subnet 10.1.2.3/33 x", r"10\.1\.2\.3/33"),
    ("h1", "vxnet network create --subnet 10.1.2.3/24 x", r"10\.1\.2\.0/24|host bits"),
    ("h1", "vxnet network create --subnet 10.77.0.0/24 --gateway 10.78.0.1 x", r"10\.78\.0\.1"),
    ("h1", "vxnet network create --subnet 10.50.1.0/24 x", r"10\.50\.0\.0/16.*taken|10\.50\.0\.0/16"),
    ("h1", "vxnet network create --subnet 192.168.56.0/24 x", r"192\.168\.56\.0/24"),
    ("h1", "vxnet network create taken", r"taken"),
    ("h1", "vxnet network create 'no name'", r"no name"),
    ("h1", "vxnet network create -d macvlan x", r"a macvlan network needs a parent"),
    ("h1", "vxnet network create -d nonsense x", r"nonsense"),
    ("h1", "vxnet network create --opt encrypted x", r"encrypted.*not built"),
    ("h1", "vxnet network create --opt nonsense=1 x", r"nonsense"),
    ("h1", "vxnet network create --opt mtu=12 x", r"mtu|12"),
    ("h1", "vxnet network create --subnet 10.88.0.0/30 x", r"10\.88\.0\.0/30.*/29"),
    ("h1", "vxnet network create --subnet 127.5.0.0/24 x", r"127\.5\.0\.0/24"),
    ("h1", "vxnet network create --subnet 224.5.0.0/24 x", r"224\.5\.0\.0/24"),
    ("h1", "vxnet network create --subnet 10.88.0.0/24 --gateway 10.88.0.255 x", r"10\.88\.0\.255"),
    ("h1", "vxnet network create --subnet 10.88.0.0/24 --subnet 10.88.0.0/25 x", r"overlap"),
    ("h1", "vxnet network create --no-ipv4 x", r"no-ipv4.*--ipv6"),
    ("h1", "vxnet network create --subnet 10.88.0.0/24 --ip-range 10.89.0.0/28 x", r"10\.89\.0\.0/28"),
    ("h1", "vxnet network create --opt peers=here x", r"peers.*here"),
    ("h1", "vxnet network update --subnet-add 10.50.3.0/24 taken", r"overlap"),
    ("h1", "vxnet network update --subnet-add 192.168.56.0/24 taken", r"192\.168\.56"),
    ("h1", "vxnet network peer add taken 192.168.56.12", r"node h2"),
    ("h1", "vxnet network peer add taken fd56::99", r"IP version"),
    ("h1", "vxnet network peer rm taken 192.0.2.7", r"192\.0\.2\.7"),
    ("h2", "vxnet network prune -f", r"h1"),
    ("h1", "vxnet network create bridge", r"bridge"),
    ("h1", "vxnet network create ''", r"name"),
    ("h1", f"vxnet network create {'x' * 65}", r"64"),
    ("h1", "vxnet network rm nowhere", r"nowhere"),
    ("h1", "vxnet network rm bridge", r"bridge"),
    ("h1", "vxnet network rm taken", r"holder"),
    ("h1", "vxnet network inspect nowhere", r"nowhere"),
    ("h1", "vxnet network connect taken nobody", r"nobody"),
    ("h1", "vxnet join-token manager", r"SQLite|etcd|one manager|not built"),
    ("h1", "vxnet init", r"already"),
    ("h1", "vxnet leave", r"--force"),
    ("h1", "vxnet node rm h2", r"--force|leave"),
    ("h1", "vxnet node rm nobody", r"nobody"),
    ("h2", "vxnet network create x", r"h1"),
    ("h2", "vxnet node rm h1", r"h1"),
    ("h2", "vxnet join-token worker", r"h1"),
    ("h2", "vxnet run --network nowhere -- true", r"nowhere"),
    ("h2", "vxnet run --network services -- true", r"attachable"),
    ("h2", "vxnet run --name holder -- true", r"holder"),
    ("h2", "vxnet run --name 'a b' -- true", r"a b"),
    ("h2", "vxnet run --network taken --ip 10.50.0.999 -- true", r"10\.50\.0\.999"),
    ("h2", "vxnet run --network taken --ip 10.51.0.9 -- true", r"10\.51\.0\.9"),
    ("h2", "vxnet run --network taken --ip 10.50.0.1 -- true", r"10\.50\.0\.1"),
    ("h2", "vxnet run --network taken --ip 10.50.255.255 -- true", r"10\.50\.255\.255.*broadcast"),
    ("h2", "vxnet run --network taken --ip 10.50.77.7 -- true", r"10\.50\.77\.7.*holder"),
    ("h1", "vxnet run --network taken --ip 10.50.77.7 -- true", r"10\.50\.77\.7.*h2"),
    ("h2", "vxnet run --network taken --ip fd00::1 -- true", r"fd00::1"),
    ("h2", "vxnet run --ip 10.50.0.9 -- true", r"--network"),
    ("h2", "vxnet run --network taken --network taken -- true", r"taken.*once"),
    ("h2", "vxnet run --network host --network other -- true", r"--network host goes with no other network"),
    ("h2", "vxnet run --network '' -- true", r"--network"),
    ("h2", f"vxnet run --name {'x' * 64} -- true", r"63"),
    ("h2", "vxnet run --network taken --alias 'a b' -- true", r"a b"),
    ("h2", "vxnet run --hostname 'a b' -- true", r"a b"),
    ("h2", "vxnet run -w etc -- true", r"etc.*relative"),
    ("h2", "vxnet run -e =x -- true", r"=x"),
    ("h2", "vxnet run -p 80:http -- true", r"publish.*http"),
    ("h2", "vxnet run", r"command|COMMAND"),
    ("h2", "vxnet run --rm -- /no/such/program", r"/no/such/program"),
    ("h2", "vxnet run -d --rm -- /etc/passwd", r"/etc/passwd.*denied"),
    ("h2", "vxnet exec nobody true", r"nobody"),
    ("h2", "vxnet exec holder nosuchprogram", r"nosuchprogram"),
    ("h2", "vxnet exec -it holder sh", r"terminal"),
    ("h2", "vxnet inspect nobody >/dev/null", r"nobody"),
    ("h2", "vxnet logs nobody", r"nobody"),
    ("h2", "vxnet wait nobody", r"nobody"),
    ("h2", "vxnet attach nobody", r"nobody"),
    ("h2", "vxnet stop -t soon holder", r"soon"),
    ("h2", "vxnet network connect taken holder", r"already"),
    ("h2", "vxnet network disconnect services holder", r"not on"),
    ("h2", "vxnet network connect none holder", r"none"),
    ("h2", "vxnet ps --format yaml", r"yaml"),
    ("h2", "vxnet ps >/dev/full", r"space"),
    ("h2", "VXNET_SOCKET=/nowhere vxnet ps", r"/nowhere.*vxnet daemon"),
    ("h2", "vxnet rm holder", r"--force|-f"),
    ("h2", "vxnet kill -s NOSUCH holder", r"NOSUCH"),
    ("h2", "vxnet nonsense", r"nonsense"),
    ("h3", "vxnet node ls", r"init|join"),
    ("h3", "vxnet network create x", r"init|join"),
    ("h3", "vxnet run --network taken -- true", r"taken"),
    ("h3", "vxnet join --token nonsense 192.168.56.11", r"token"),
    ("h2", "vxnet init", r"already"),
    ("h2", "vxnet join --token GOOD 192.168.56.11", r"already"),
    ("h2", "vxnet leave", r"holder.*--force"),
    ("h3", "vxnet leave", r"no cluster"),
    ("h3", "vxnet join --token FOREIGN 192.168.56.11", r"CA|authority|certificate"),
    ("h3", "vxnet join --token GOOD 192.168.56.11:7946", r"192\.168\.56\.11:7946"),
    ("h3", "vxnet join --token GOOD 192.168.56.11:99999", r"99999"),
    ("h3", "vxnet join --token GOOD nosuchhost", r"nosuchhost"),
    ("h3", "vxnet init --advertise-addr nosuchdevice", r"nosuchdevice"),
    ("h3", "vxnet init --default-addr-pool 10.0.0.0/30", r"10\.0\.0\.0/30"),
    ("h3", "vxnet join --token WRONG_SECRET 192.168.56.11", r"token"),
    ("h3", "vxnet join --token WRONG_AUTHORITY 192.168.56.11", r"CA|authority|certificate"),
    ("h3", "vxnet join --token GOOD 192.168.56.12", r"192\.168\.56\.12"),
    ("h3", "vxnet join --token GOOD 192.168.56.99", r"192\.168\.56\.99"),
    ("h3", "vxnet join --token GOOD --advertise-addr 1.2.3.4 192.168.56.11", r"1\.2\.3\.4"),
    ("h3", "vxnet init --store etcd://nowhere", r"etcd|store"),
    ("h3", "vxnet init --data-path-port 80", r"80"),
    ("h3", f"{NOBODY} vxnet ps", r"root|vxnet\.sock"),
    ("h3", f"{NOBODY} vxnet daemon", r"root"),
    ("h3", f"{NOBODY} vxnet lab up", r"root"),
    ("h3", "vxnet daemon", r"already"),
    ("x1", "vxnet ps", r"daemon"),
    ("x1", "PATH=$(dirname $(command -v vxnet)) vxnet daemon", r"nft"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=3, outside=1, join=False) as lab:
        say(lab, "h1", "vxnet init")
        say(lab, "h2", f"vxnet join --token {token(lab)} 192.168.56.11")
        say(lab, "h1", "vxnet network create --attachable --subnet 10.50.0.0/16 taken")
        say(lab, "h1", "vxnet network create services")
        say(lab, "h2", "vxnet run -d --name holder --network taken --ip 10.50.77.7 -- sleep infinity")
        yield lab


@pytest.fixture(scope="module")
def tokens(lab: Lab) -> dict[str, str]:
    """What stands for them in the commands above, and the tokens."""
    good = token(lab)
    version, digest, secret = good.rsplit("-", 2)
    foreign = say(lab, "h3", "vxnet init >/dev/null && vxnet join-token -q worker && vxnet leave --force").split()[0]
    return {
        "WRONG_SECRET": f"{version}-{digest}-{'x' * len(secret)}",
        "WRONG_AUTHORITY": f"{version}-{digest[::-1]}-{secret}",
        "FOREIGN": foreign,
        "GOOD": good,
    }


@pytest.fixture(scope="module")
def daemons(lab: Lab, tokens: dict[str, str]) -> dict[str, int]:
    """Process ids, before anything was asked."""
    return {host: lab[host].daemon_pid for host in lab.hosts}


def say(lab: Lab, host: str, command: str) -> str:
    return lab.run(host, ["sh", "-c", command], check=True).stdout


def token(lab: Lab) -> str:
    return say(lab, "h1", "vxnet join-token -q worker").strip()


def refusal(lab: Lab, host: str, command: str) -> str:
    """The one line that ``command`` ends with."""
    done = lab.run(host, ["sh", "-c", command], timeout_s=30)
    lines = done.stderr.splitlines()
    assert done.returncode != 0, f"{host}# {command}\nstatus 0, and said {done.stdout!r} {done.stderr!r}"
    assert done.returncode < 128, f"{host}# {command}\nstatus {done.returncode}, and said {done.stderr!r}"
    # The daemon in the foreground may have logged before it gave up; what it says to a person is its last word.
    if "daemon" in command:
        lines = lines[-1:]
    assert len(lines) == 1, f"{host}# {command}\nsaid {len(lines)} lines:\n{done.stderr}{done.stdout}"
    assert lines[0].startswith("vxnet: "), f"{host}# {command}\nsaid {lines[0]!r}"
    # `inspect` prints what it found, as Docker's does.
    assert done.stdout in ("", "[]\n"), f"{host}# {command}\nprinted {done.stdout!r} beside {lines[0]!r}"
    return lines[0]


@pytest.mark.parametrize("host, command, says", WRONG, ids=[f"{host}: {command}" for host, command, _ in WRONG])
def test_wrong_input(
    lab: Lab, tokens: dict[str, str], daemons: dict[str, int], host: str, command: str, says: str
) -> None:
    for word, value in tokens.items():
        command = command.replace(word, value)
    line = refusal(lab, host, command)
    assert re.search(says, line), f"{host}# {command}\nsaid {line!r}, which does not say {says!r}"


def test_after_all_of_them_nothing_has_changed(lab: Lab, daemons: dict[str, int]) -> None:
    assert {host: lab[host].daemon_pid for host in lab.hosts} == daemons, "a daemon died of it"
    assert say(lab, "h1", "vxnet network ls -q --filter driver=overlay").count("\n") == 3
    assert say(lab, "h1", "vxnet node ls -q").count("\n") == 2
    assert say(lab, "h2", "vxnet ps -aq").count("\n") == 1
    assert "none" in say(lab, "h3", "vxnet info")


@pytest.mark.parametrize("port, command", [(2377, "vxnet init"), (7946, "vxnet init")])
def test_port_in_use(lab: Lab, port: int, command: str) -> None:
    with lab.popen(
        "h3", ["python3", "-m", "http.server", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as other:
        try:
            say(lab, "h3", f"until ss -ltn | grep -q ':{port} '; do sleep 0.02; done")
            assert str(port) in refusal(lab, "h3", command)
        finally:
            other.kill()
    assert "none" in say(lab, "h3", "vxnet info"), "a cluster that could not be made has left something"


def test_used_up_pool(lab: Lab) -> None:
    say(lab, "h3", "vxnet init --default-addr-pool 10.99.0.0/19")
    try:
        say(lab, "h3", "vxnet network create --attachable first")
        assert "10.99.0.0/19" in refusal(lab, "h3", "vxnet network create second")
        # Eight addresses less network, broadcast and gateway.
        say(lab, "h3", "vxnet network create --attachable --subnet 10.98.0.0/29 small")
        for _ in range(5):
            say(lab, "h3", "vxnet run -d --network small -- sleep infinity")
        assert "small" in refusal(lab, "h3", "vxnet run -d --network small -- true")
    finally:
        say(lab, "h3", "vxnet ps -aq | xargs -r vxnet rm -f; vxnet leave --force")


def test_used_up_network(lab: Lab) -> None:
    """Of a whole cluster: what one host has, the other has not, and what is given back can be had."""
    say(lab, "h1", "vxnet network create --attachable --subnet 10.98.0.0/29 tiny")
    try:
        wait = "until vxnet network ls | grep -q tiny; do sleep 0.05; done"
        say(lab, "h2", f"{wait}; for i in 1 2 3; do vxnet run -d --name t$i --network tiny -- sleep infinity; done")
        say(lab, "h1", "for i in 4 5; do vxnet run -d --name t$i --network tiny -- sleep infinity; done")
        for host in ("h1", "h2"):
            assert re.search("tiny.*no|no.*tiny", refusal(lab, host, "vxnet run -d --network tiny -- true"))
        assert say(lab, "h1", "vxnet ps -aq").count("\n") == 2
        say(lab, "h2", "vxnet rm -f t1 && vxnet run --rm --network tiny -- true")
    finally:
        say(lab, "h1", "vxnet rm -f t4 t5")
        say(lab, "h2", "vxnet rm -f t1 t2 t3 || true")
        say(lab, "h1", "for i in $(seq 100); do vxnet network rm tiny && break; sleep 0.1; done 2>/dev/null")


@contextlib.contextmanager
def small_disk(lab: Lab, host: str) -> Iterator[None]:
    """The state of a daemon that is in no cluster, on a file system of two megabytes."""
    lab.kill(host, daemon=True)
    say(lab, host, "mount -t tmpfs -o size=2m tmpfs /var/lib/vxnet")
    lab.start(host)
    try:
        yield
    finally:
        say(lab, host, "rm -f /var/lib/vxnet/fill")
        lab.kill(host, daemon=True)
        say(lab, host, "umount --lazy /var/lib/vxnet")
        lab.start(host)


FILL = "dd if=/dev/zero of=/var/lib/vxnet/fill bs=4k 2>/dev/null || true"


def test_full_disk_of_a_manager(lab: Lab) -> None:
    with small_disk(lab, "h3"):
        daemon = lab["h3"].daemon_pid
        say(lab, "h3", f"vxnet init && vxnet network create --attachable before; {FILL}")
        for wrong in ("vxnet network create x", "vxnet network rm before", "vxnet join-token --rotate worker"):
            assert re.search("full|space", refusal(lab, "h3", wrong))
        say(lab, "h3", "vxnet join-token -q worker && vxnet node ls")
        say(lab, "h3", "rm /var/lib/vxnet/fill && vxnet network create after")
        assert {"before", "after"} <= {*say(lab, "h3", "vxnet network ls").split()}
        assert lab["h3"].daemon_pid == daemon, "the daemon died of it"
        say(lab, "h3", "vxnet leave --force")
        say(lab, "h3", FILL)
        assert re.search("full|space", refusal(lab, "h3", "vxnet init"))
        assert "none" in say(lab, "h3", "vxnet info"), "a cluster that could not be made has left something"


def test_full_disk_of_a_worker(lab: Lab) -> None:
    """What runs goes on, is looked at and ended; only what is new is refused, whole."""
    with small_disk(lab, "h3"):
        say(lab, "h3", f"vxnet join --token {token(lab)} 192.168.56.11")
        daemon = lab["h3"].daemon_pid
        for name, flags, command in (
            ("stays", "", "sleep infinity"),
            ("ends", "", "sh -c 'until test -e /go; do sleep 0.02; done; exit 4'"),
            ("goes", "--rm", "sh -c 'until test -e /go; do sleep 0.02; done'"),
        ):
            say(lab, "h3", f"vxnet run -d --name {name} {flags} --network taken -- {command}")
        address = say(lab, "h3", "vxnet exec stays hostname -i").split()[0]
        say(lab, "h3", FILL)
        assert re.search("full|space", refusal(lab, "h3", "vxnet run -d --name x --network taken -- true"))
        say(lab, "h1", "vxnet network create --attachable later")
        say(lab, "h3", "until vxnet network ls | grep -q later; do sleep 0.05; done")
        assert re.search("full|space", refusal(lab, "h3", "vxnet network connect later stays"))
        say(lab, "h3", "for name in ends goes; do vxnet kill -s KILL $name; done; vxnet wait ends")
        assert say(lab, "h3", 'vxnet ps -a --format json | grep -o \'"name":"[a-z]*"\' | sort') == (
            '"name":"ends"\n"name":"stays"\n'
        )
        say(lab, "h2", f"vxnet exec holder ping -c 1 -W 2 {address}")
        say(lab, "h3", "vxnet rm ends && vxnet exec stays true")
        assert lab["h3"].daemon_pid == daemon, "the daemon died of it"
        say(lab, "h3", "rm /var/lib/vxnet/fill && vxnet network connect later stays && vxnet rm -f stays")
        say(lab, "h3", "vxnet leave")
    say(lab, "h1", "for i in $(seq 100); do vxnet network rm later && break; sleep 0.1; done 2>/dev/null")


def test_a_host_that_lacks_a_program(lab: Lab) -> None:
    """Nothing is made before it is found."""
    lab.kill("h3", daemon=True)
    try:
        say(lab, "h3", "mkdir /root/bin; ln -s /usr/sbin/* /usr/bin/* /root/bin; rm /root/bin/nft")
        assert "nft" in refusal(lab, "h3", "PATH=/root/bin:$(dirname $(command -v vxnet)) vxnet daemon")
        assert "vx" not in say(lab, "h3", "ip link; ip netns")
    finally:
        lab.start("h3")


def test_garbage_on_the_local_socket(lab: Lab) -> None:
    """Not from the command line: whoever may open the socket."""
    ask = "curl -s -o /dev/null -w '%{http_code} ' --unix-socket /run/vxnet/vxnet.sock"
    wrong = {
        "-d '{' http://x/v1/networks": "400",
        "-d '{\"name\": 5}' http://x/v1/networks": "400",
        "-d '[]' http://x/v1/containers": "400",
        "-d '{\"argv\": []}' http://x/v1/containers": "400",
        '-d \'{"argv": ["a\\u0000b"]}\' http://x/v1/containers': "400",
        "http://x/v1/nowhere": "404",
        "-X DELETE http://x/v1/networks": "405",
        "'http://x/v1/containers?all=perhaps'": "400",
        "-X POST 'http://x/v1/containers/holder/stop?timeout=-1'": "400",
    }
    script = "; ".join(f"{ask} {words}" for words in wrong)
    assert say(lab, "h2", script).split() == list(wrong.values())
    assert "Up" in say(lab, "h2", "vxnet ps")
