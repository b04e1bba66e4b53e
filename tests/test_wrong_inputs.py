"""Whatever is asked wrongly is answered by one line, and a status that is not 0.

On a real lab, as a person would meet it. h1 and h2 are a cluster; h3 is in none.
"""

from __future__ import annotations

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
    ("h1", "vxnet network create -d macvlan x", r"macvlan.*not built"),
    ("h1", "vxnet network create -d nonsense x", r"nonsense"),
    ("h1", "vxnet network create --opt encrypted x", r"encrypted.*not built"),
    ("h1", "vxnet network create --opt nonsense=1 x", r"nonsense"),
    ("h1", "vxnet network create --opt mtu=12 x", r"mtu|12"),
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
    ("h1", "vxnet service ls", r"not built"),
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
    ("h2", "vxnet run -p 80:80 -- true", r"-p|publish"),
    ("h2", "vxnet run", r"command|COMMAND"),
    ("h2", "vxnet run --rm -- /no/such/program", r"/no/such/program"),
    ("h2", "vxnet exec nobody true", r"nobody"),
    ("h2", "vxnet rm holder", r"--force|-f"),
    ("h2", "vxnet kill -s NOSUCH holder", r"NOSUCH"),
    ("h2", "vxnet nonsense", r"nonsense"),
    ("h3", "vxnet node ls", r"init|join"),
    ("h3", "vxnet network create x", r"init|join"),
    ("h3", "vxnet run --network taken -- true", r"taken"),
    ("h3", "vxnet join --token nonsense 192.168.56.11", r"token"),
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
        say(lab, "h2", "vxnet run -d --name holder --network taken -- sleep infinity")
        yield lab


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
def test_wrong_input(lab: Lab, host: str, command: str, says: str) -> None:
    good = token(lab)
    version, digest, secret = good.rsplit("-", 2)
    other = "".join(reversed(digest))
    command = command.replace("WRONG_SECRET", f"{version}-{digest}-{'x' * len(secret)}")
    command = command.replace("WRONG_AUTHORITY", f"{version}-{other}-{secret}").replace("GOOD", good)
    line = refusal(lab, host, command)
    assert re.search(says, line), f"{host}# {command}\nsaid {line!r}, which does not say {says!r}"


def test_after_all_of_them_nothing_has_changed(lab: Lab) -> None:
    assert say(lab, "h1", "vxnet network ls -q --filter driver=overlay").count("\n") == 2
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
    say(lab, "h3", "vxnet init --default-addr-pool 10.99.0.0/20")
    try:
        say(lab, "h3", "vxnet network create --attachable first")
        assert "10.99.0.0/20" in refusal(lab, "h3", "vxnet network create second")
        # Eight addresses less network, broadcast and gateway.
        say(lab, "h3", "vxnet network create --attachable --subnet 10.98.0.0/29 small")
        for _ in range(5):
            say(lab, "h3", "vxnet run -d --network small -- sleep infinity")
        assert "small" in refusal(lab, "h3", "vxnet run -d --network small -- true")
    finally:
        say(lab, "h3", "vxnet ps -aq | xargs -r vxnet rm -f; vxnet leave --force")


def test_full_disk(lab: Lab) -> None:
    lab.kill("h3", daemon=True)
    say(lab, "h3", "mount -t tmpfs -o size=1m tmpfs /var/lib/vxnet")
    lab.start("h3")
    try:
        say(lab, "h3", "vxnet init && vxnet network create before")
        say(lab, "h3", "dd if=/dev/zero of=/var/lib/vxnet/fill bs=4k 2>/dev/null || true")
        assert re.search("full|space", refusal(lab, "h3", "vxnet network create x"))
        say(lab, "h3", "rm /var/lib/vxnet/fill && vxnet network create after")
        assert "before" in say(lab, "h3", "vxnet network ls")
    finally:
        say(lab, "h3", "rm -f /var/lib/vxnet/fill; vxnet leave --force")
        lab.kill("h3", daemon=True)
        say(lab, "h3", "umount /var/lib/vxnet")
        lab.start("h3")
