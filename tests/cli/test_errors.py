"""Wrong inputs, a line each, and how they end."""

# ruff: noqa: E501 (the table has one wrong input a row, with the whole line that it gives)

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon
from vxnet.cli.root import root

DAEMON = "; start it with `systemctl start vxnetd` or `vxnet daemon`"

# words → exit status, the line without "vxnet: "
TABLE: list[tuple[str, int, str]] = [
    ("bogus", 2, "no such command 'bogus'; see `vxnet --help`"),
    ("swarm init", 2, "no such command 'swarm': `vxnet init`, `join`, `leave`, `join-token` and `ca` are its commands here"),
    ("container ls", 2, "no such command 'container': its commands stand alone here, such as `vxnet ps` and `vxnet rm`"),
    ("images", 2, "no such command 'images': there are no images; a container sees its host's files, or `vxnet run --rootfs DIRECTORY`"),
    ("network bogus", 2, "no such command 'bogus'; see `vxnet network --help`"),
    ("ps --bogus", 2, "no such option '--bogus'; see `vxnet ps --help`"),
    ("ps --format yaml", 2, "invalid value for '--format': 'yaml' is none of table, json and a template such as '{{.Name}}'; see `vxnet ps --help`"),
    ("ps -f colour=red", 2, "invalid value for '-f' / '--filter': takes KEY=VALUE with KEY one of exited, id, label, name, network, status; found 'colour=red'; see `vxnet ps --help`"),
    ("ps -f name", 2, "invalid value for '-f' / '--filter': takes KEY=VALUE with KEY one of exited, id, label, name, network, status; found 'name'; see `vxnet ps --help`"),
    ("ps -f status=gone", 2, "invalid value for '-f' / '--filter': status is one of created, running, restarting, exited, dead; found 'gone'; see `vxnet ps --help`"),
    ("ps -f exited=x", 2, "invalid value for '-f' / '--filter': exited is a number; found 'x'; see `vxnet ps --help`"),
    ("ps -n -1", 2, "invalid value for '-n' / '--last': -1 is not in the range x>=1; see `vxnet ps --help`"),
    ("node ls -f role=boss", 2, "invalid value for '-f' / '--filter': role is one of worker, manager; found 'boss'; see `vxnet node ls --help`"),
    ("service ls -f mode=many", 2, "invalid value for '-f' / '--filter': mode is one of replicated, global; found 'many'; see `vxnet service ls --help`"),
    ("events -f type=image", 2, "invalid value for '-f' / '--filter': type is one of container, network, service, node, daemon; found 'image'; see `vxnet events --help`"),
    ("bench --plot /nowhere/x.svg", 1, "cannot write /nowhere/x.svg: there is no directory /nowhere"),
    ("init --default-addr-pool-mask-length 24", 1, "`vxnet init --default-addr-pool-mask-length` is not built yet"),
    ("init --availability drain", 1, "`vxnet init --availability` is not built yet"),
    ("rm", 2, "missing argument 'CONTAINER...'; see `vxnet rm --help`"),
    ("stop -t -1 web", 2, "invalid value for '-t' / '--time' / '--timeout': expected a duration such as 10s or 1m30s, found '-1'; see `vxnet stop --help`"),
    ("stop -t nan web", 2, "invalid value for '-t' / '--time' / '--timeout': expected a duration such as 10s or 1m30s, found 'nan'; see `vxnet stop --help`"),
    ("stop -t 9999999999999 web", 2, "invalid value for '-t' / '--time' / '--timeout': '9999999999999' is longer than 100 years; see `vxnet stop --help`"),
    ("capture -t inf", 2, "invalid value for '-t' / '--time': expected a duration such as 10s or 1m30s, found 'inf'; see `vxnet capture --help`"),
    ("service create --restart-delay 999999999999h true", 2, "invalid value for '--restart-delay': '999999999999h' is longer than 100 years; see `vxnet service create --help`"),
    ("join 192.168.56.11", 2, "missing option '--token'; see `vxnet join --help`"),
    ("join --token x", 2, "missing argument 'HOST[:PORT]'; see `vxnet join --help`"),
    ("join-token boss", 2, "invalid value for '{worker|manager}': 'boss' is not one of 'worker', 'manager'; see `vxnet join-token --help`"),
    ("init --data-path-port 80", 2, "invalid value for '--data-path-port': 80 is not in the range 1024<=x<=49151; see `vxnet init --help`"),
    ("init --default-addr-pool 10.0.0.0/33", 2, "invalid value for '--default-addr-pool': expected a prefix such as 10.0.16.0/20, found '10.0.0.0/33'; see `vxnet init --help`"),
    ("init --autolock", 1, "`vxnet init --autolock` is not built yet"),
    ("network create --subnet 10.0.0.0/99 n", 2, "invalid value for '--subnet': expected a prefix such as 10.0.16.0/20, found '10.0.0.0/99'; see `vxnet network create --help`"),
    ("network create --subnet 10.0.0.1/24 n", 2, "invalid value for '--subnet': expected a prefix without host bits, such as 10.0.0.0/24, found '10.0.0.1/24'; see `vxnet network create --help`"),
    ("network create --gateway router n", 2, "invalid value for '--gateway': expected an address such as 10.0.16.5, found 'router'; see `vxnet network create --help`"),
    ("network create --opt =1 n", 2, "invalid value for '-o' / '--opt': takes KEY=VALUE, found '=1'; see `vxnet network create --help`"),
    ("network create --opt encrypted n", 1, "`--opt encrypted` is not built yet; the network was not made"),
    ("network create -d ipvlan n", 1, "the driver ipvlan is not built; `--driver macvlan` is"),
    ("network create -d weave n", 1, "no such driver: 'weave'; there are overlay, bridge and macvlan"),
    ("network create --aux-address printer n", 1, "--aux-address: expected an address such as 10.0.16.5, found ''"),
    ("network connect taken", 1, "a container, a process or a namespace is wanted; give CONTAINER, --pid or --netns"),
    ("network connect --pid 5 taken web", 1, "a container, a process or a namespace is wanted; give CONTAINER, --pid or --netns"),
    ("network connect --name a taken web", 1, "--name and --ifname are for guests; a container has its name already"),
    ("network disconnect --pid 5 taken", 1, "it is on no network"),
    ("network update taken", 1, "nothing to change; give --subnet-add, --label-add or --label-rm"),
    ("network update --subnet-add 10.0.16.0/24 taken", 1, "the subnets 10.0.16.0/20 and 10.0.16.0/24 overlap"),
    ("network peer add taken 224.0.0.1", 1, "224.0.0.1 cannot be the address of a VXLAN endpoint"),
    ("network peer rm taken x1", 1, "network taken has no peer 'x1'; there are: none"),
    ("network create taken", 1, "network taken exists already"),
    ("network inspect nobody", 1, "no such network: nobody"),
    ("network rm ..", 1, "no such network: '..'"),
    ("network connect taken nobody", 1, "no such container: nobody"),
    ("kill -s NOPE web", 1, "no such signal: 'NOPE'; `kill -l` lists them"),
    ("exec web", 1, "no command given to run"),
    ("exec -dt web ls", 1, "-d goes without -i and -t: nobody reads and types there"),
    ("exec --privileged web ls", 1, "`vxnet exec --privileged` is not built yet"),
    ("exec nobody ls", 1, "no such container: nobody"),
    ("exec -it web ls", 1, "-t with -i needs a terminal as standard input; leave -t out when piping"),
    ("exec -e =x web ls", 1, "an environment variable is KEY=VALUE or KEY, found '=x'"),
    ("attach nobody", 1, "no such container: nobody"),
    ("logs nobody", 1, "no such container: nobody"),
    ("logs --until never web", 2, "invalid value for '--until': expected a time such as 2026-01-31T12:00:00Z or 10m, found 'never'; see `vxnet logs --help`"),
    ("leave", 1, "containers run on this host; `--force` ends them"),
    ("node inspect self", 1, "this host is in no cluster; `vxnet init` makes one, `vxnet join` joins one"),
    ("join --token wrong h1", 1, "the manager refused the join token"),
    ("completion tcsh", 2, "invalid value for '{bash|zsh|fish}': 'tcsh' is not one of 'bash', 'zsh', 'fish'; see `vxnet completion --help`"),
    ("lab up --hosts 0", 2, "invalid value for '--hosts': 0 is not in the range x>=1; see `vxnet lab up --help`"),
    ("lab exec h1", 1, "no command given to run"),
    # run: vxnet's own failures are 125
    ("inspect nobody", 1, "no such container, guest, network, node or service: 'nobody'"),
    ("run", 125, "no command given to run"),
    ("run --stop-timeout inf true", 125, "invalid value for '--stop-timeout': expected a duration such as 10s or 1m30s, found 'inf'; see `vxnet run --help`"),
    ("run --not-there true", 125, "no such option '--not-there'; see `vxnet run --help`"),
    ("run --ip 10.0.0.300 true", 125, "invalid value for '--ip': expected an address such as 10.0.16.5, found '10.0.0.300'; see `vxnet run --help`"),
    ("run --ip 10.0.0.3 true", 125, "--ip, --ip6 and --alias need a --network that they are for"),
    ("run --network nobody true", 125, "no such network: nobody"),
    ("run --network taken --network taken true", 125, "--network taken is given more than once"),
    ("run --network ip=10.0.0.1 true", 125, "--network ip=10.0.0.1: name= is missing"),
    ("run --network name=taken,ip=x true", 125, "--network name=taken,ip=x: expected an address such as 10.0.16.5, found 'x'"),
    ("run --network name=taken,mtu=5 true", 125, "--network takes name=, ip=, ip6= and alias=, found 'mtu=5'"),
    ("run --network name=taken,ip6=x true", 125, "--network name=taken,ip6=x: expected an address such as 10.0.16.5, found 'x'"),
    ("run --network name=taken,alias=a --alias b true", 125, "address or alias on taken is given twice, within --network and beside it"),
    ("run --name web true", 125, "the name web is taken by another container of this host"),
    ("run -p 8080:http true", 125, "--publish '8080:http': 'http' is no port; a port is a number from 1 to 65535, or a range such as 80-83"),
    ("run -p published=80,target=80,mode=ingress true", 125, "mode=ingress is for services: a container's port is one of its host alone; leave mode= out, or make a service"),
    ("run --mount type=bind true", 125, "`vxnet run --mount` is not built yet"),
    ("run --group-add nobody true", 125, "`vxnet run --group-add` is not built yet"),
    ("run --ulimit 1 true", 125, "`vxnet run --ulimit` is not built yet"),
    ("run --privileged true", 125, "`vxnet run --privileged` is not built yet"),
    ("run --device /x true", 125, "`vxnet run --device` is not built yet"),
    ("run -it true", 125, "-t with -i needs a terminal as standard input; leave -t out when piping"),
    ("run --detach-keys ctrl-ä true", 125, "\"ctrl-ä\" is no detach key; write letters and ctrl-LETTER with commas between"),
    ("run -e a\udcffb=c true", 125, "expected text in UTF-8, found 'a\\udcffb=c'"),
    ("run -d no-such-command", 127, "cannot run 'no-such-command': not found; there are no images: the first word is the command"),
    ("run -d broken", 125, "cannot make the namespaces: no memory"),
]  # fmt: skip


@pytest.mark.parametrize("words, status, line", TABLE, ids=[ascii(words) for words, _, _ in TABLE])
def test_wrong_input(vxnet_: Vxnet, words: str, status: int, line: str) -> None:
    assert vxnet_("network", "create", "taken").exit_code == 0
    assert vxnet_("run", "-d", "--name", "web", "sleep", "9").exit_code == 0
    result = vxnet_(*words.split())
    assert result.stderr == f"vxnet: {line}\n"
    assert result.exit_code == status
    assert result.stdout in ("", "[]\n")


# In a cluster of h1 with the services app and everywhere, which is global
IN_A_CLUSTER: list[tuple[str, str]] = [
    ("service update --args sleep'x app", "--args \"sleep'x\" is no command line: no closing quotation"),
    ("service scale app=999999999999", "a service has from 0 to 100000 replicas, not 999999999999"),
    ("service update --replicas 2 everywhere", "service everywhere is global: it has a task on every node, and no number of replicas"),
    ("service scale everywhere=2", "service everywhere is global: it has a task on every node, and no number of replicas"),
    ("service scale app=0x", "expected SERVICE=REPLICAS, found 'app=0x'"),
    ("service ps nobody", "there is no service 'nobody'; there are: app, everywhere"),
    ("node ps nobody", "there is no node 'nobody'; there are: h1"),
]  # fmt: skip


@pytest.mark.parametrize("words, line", IN_A_CLUSTER)
def test_wrong_input_in_a_cluster(vxnet_: Vxnet, words: str, line: str) -> None:
    vxnet_("init")
    assert vxnet_("service", "create", "-d", "--name", "app", "true").exit_code == 0
    assert vxnet_("service", "create", "-d", "--name", "everywhere", "--mode", "global", "true").exit_code == 0
    result = vxnet_(*words.split())
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"vxnet: {line}\n")


def test_an_empty_target(vxnet_: Vxnet) -> None:
    result = vxnet_("trace", "web", "")
    assert (result.exit_code, result.stderr) == (1, "vxnet: a target is a name or an address, found nothing\n")


def test_nothing_is_made_by_a_wrong_run(server: Daemon, vxnet_: Vxnet) -> None:
    for words in ("run --detach-keys ctrl-ä true", "run -it true", "run -p 80:http true", "run --ip 10.0.0.1 true"):
        assert vxnet_(*words.split()).exit_code == 125
    assert not server.agent.container_table


@pytest.mark.parametrize(
    "words", ["ps", "info", "init", "network ls", "node ls", "inspect x", "logs x", "wait x", "rm x"]
)
def test_no_daemon(words: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(root, words.split(), prog_name="vxnet", env={"VXNET_SOCKET": f"{tmp_path}/s"})
    assert result.exit_code == 1
    assert result.stderr == f"vxnet: cannot reach the vxnet daemon at {tmp_path}/s: No such file or directory{DAEMON}\n"


def test_run_without_a_daemon_is_125(tmp_path: Path) -> None:
    result = CliRunner().invoke(root, ["--socket", f"{tmp_path}/s", "run", "true"], prog_name="vxnet")
    assert (result.exit_code, result.stderr.count("\n")) == (125, 1)


def test_interrupted(vxnet_: Vxnet, server: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vxnet.cluster.client.Client.containers", interrupted)
    result = vxnet_("ps")
    assert (result.exit_code, result.output.strip()) == (130, "")


@pytest.mark.root
def test_not_in_the_group(vxnet_: Vxnet, server: Daemon) -> None:
    os.seteuid(65534)
    try:
        result = vxnet_("ps")
    finally:
        os.seteuid(0)
    assert result.exit_code == 1
    assert result.stderr.endswith("; be root or a member of the group vxnet\n") and result.stderr.count("\n") == 1


def test_several_lines_of_a_daemon_become_one(vxnet_: Vxnet, server: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    async def networks() -> None:
        raise OSError("one\n  two")

    monkeypatch.setattr(server.agent, "networks", networks)
    assert vxnet_("network", "ls").stderr == "vxnet: this host refused: one two\n"
