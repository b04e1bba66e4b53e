"""Services on three hosts: from create to rm, and through everything that happens to hosts, tasks and managers."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from typing import Any

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SERVER = "python3 -m http.server 8080"
ASKING = """
while :; do
    curl -s -o /dev/null --max-time 1 http://web:8080/ && echo answered || echo lost
    sleep 0.1
done
"""


def places(session: Session, name: str) -> Counter[str]:
    return Counter(task["node"] for task in session.tasks(name))


def whole(session: Session, name: str, number: int, without: str) -> bool:
    """Whether ``number`` tasks run, at one and the same moment, and ``without`` is none of them."""
    ids = {task["id"] for task in session.tasks(name)}
    return len(ids) == number and without not in ids


def resolved(session: Session, host: str, client: str, name: str) -> set[str]:
    return set(session.inside(host, client, f"dig +short {name}").stdout.split())


def test_from_create_to_rm(session: Session) -> None:
    session.network("svc", "")  # not attachable: services may use it all the same
    id = session.service(
        "web",
        "--network name=svc,alias=www --replicas 3 --label team=a -e 'SLOT={{.Task.Slot}}' --expose http:8080 "
        "--hostname '{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Hostname}}'",
        SERVER,
    )
    assert places(session, "web") == {"h1": 1, "h2": 1, "h3": 1}
    (line,) = session.table("h1", "vxnet service ls --filter label=team=a")
    assert (line["service"]["id"], line["running"], line["wanted"]) == (id, 3, 3)
    assert session.refusal("h2", "vxnet service ls").startswith("vxnet: this node is a worker")
    task = next(task for task in session.tasks("web") if task["node"] == "h2")
    slot = task["name"].split(".")[1]
    assert session.inside("h2", task["name"], "hostname; echo $SLOT").stdout.split() == [f"web-{slot}-h2", slot]
    # Names, as a task sees them.
    for name in ("tasks.web", "tasks.www", "tasks.web.svc"):
        eventually(lambda name=name: len(resolved(session, "h2", task["name"], name)) == 3)  # type: ignore[misc]
    vip = resolved(session, "h2", task["name"], "web")
    assert len(vip) == 1 and vip == resolved(session, "h2", task["name"], "www")
    assert not vip & resolved(session, "h2", task["name"], "tasks.web")
    srv = session.inside("h2", task["name"], "dig +short SRV _http._tcp.web").stdout.splitlines()
    assert len(srv) == 3 and all(" 8080 web." in line for line in srv)
    assert session.say("h1", "vxnet service scale web=5") == "web scaled to 5\n"
    assert len(session.tasks("web")) == 5
    assert "still in use by service web" in session.refusal("h1", "vxnet network rm svc")
    session.say("h1", "vxnet service rm web")
    assert "there is no service 'web'" in session.refusal("h1", "vxnet service ps web")
    for host in session.lab.hosts:
        eventually(lambda host=host: not session.table(host, "vxnet ps -a --filter name=web"))  # type: ignore[misc]


def test_networks_are_worlds_of_their_own(session: Session) -> None:
    session.network("net-a")
    session.network("net-b")
    session.service("service-a", "--network net-a")
    session.service("service-b", "--network net-b")
    session.service("service-c", "--network net-a --network net-b")
    sees: dict[str, set[str]] = {}
    for name in ("service-a", "service-b", "service-c"):
        (task,) = session.tasks(name)
        eventually(lambda task=task: resolved(session, task["node"], task["name"], "service-c"))  # type: ignore[misc]
        sees[name] = {
            other
            for other in ("service-a", "service-b", "service-c")
            if resolved(session, task["node"], task["name"], f"tasks.{other}")
        }
    assert sees == {
        "service-a": {"service-a", "service-c"},
        "service-b": {"service-b", "service-c"},
        "service-c": {"service-a", "service-b", "service-c"},
    }


def test_a_dead_task_is_replaced_in_its_slot(session: Session) -> None:
    session.service("web", "--replicas 2 --restart-delay 0s")
    task = session.tasks("web")[0]
    session.say(task["node"], f"vxnet kill {task['name']}")
    eventually(lambda: whole(session, "web", 2, task["id"]))
    old = next(one for one in session.tasks("web", running=False) if one["id"] == task["id"])
    assert (old["state"], old["exit_status"], old["superseded"]) == ("failed", 137, True)
    # Taken away by hand is as good as dead.
    other = next(one for one in session.tasks("web") if one["id"] != task["id"])
    session.say(other["node"], f"vxnet rm -f {other['name']}")
    eventually(lambda: whole(session, "web", 2, other["id"]))
    assert not session.table(other["node"], f"vxnet ps --filter name={other['name']}")


def test_a_host_that_is_cut_off_is_replaced_and_gives_up_what_was(session: Session) -> None:
    session.network("svc")
    session.service("web", "--network svc --replicas 3", SERVER)
    session.container("h2", "client", "svc")
    eventually(lambda: len(resolved(session, "h2", "client", "tasks.web")) == 3)
    asking = session.popen_inside("h2", "client", ["sh", "-c", ASKING], stdout=subprocess.PIPE)
    assert asking.stdout is not None
    answers: list[str] = []
    listening = threading.Thread(target=lambda said: answers.extend(map(str.strip, said)), args=(asking.stdout,))
    listening.start()
    lost = next(task for task in session.tasks("web") if task["node"] == "h3")
    before = {task["id"] for task in session.tasks("web")} - {lost["id"]}
    eventually(lambda: answers[-3:] == ["answered"] * 3)  # all have begun to listen
    begun = len(answers)
    session.lab.cut("h3")
    try:
        eventually(lambda: places(session, "web")["h3"] == 0 and sum(places(session, "web").values()) == 3, 20)
        after = {task["id"] for task in session.tasks("web")}
        assert before < after, "the others were left alone"
        given_up = next(one for one in session.tasks("web", running=False) if one["id"] == lost["id"])
        assert (given_up["state"], given_up["message"]) == ("orphaned", "node h3 is down")
        eventually(lambda: len(resolved(session, "h2", "client", "tasks.web")) == 3)
        # Who asks by name loses what went to the lost host until gossip called it dead, each after a second, and
        # nothing after that: 2.4 s as measured, and several times that on a machine with other work.
        settled = len(answers)
        eventually(lambda: len(answers) >= settled + 30)
        assert answers[begun:].count("lost") <= 15
        assert answers[settled + 1 : settled + 30] == ["answered"] * 29
        assert session.table("h3", f"vxnet ps --filter name={lost['name']}"), "cut off, it goes on"
    finally:
        asking.terminate()
        asking.wait()
        listening.join()
        asking.stdout.close()
        session.lab.heal()
    eventually(lambda: not session.table("h3", f"vxnet ps --filter name={lost['name']}"), 30)
    assert {task["id"] for task in session.tasks("web")} == after, "nothing else moves"


def test_a_manager_that_is_away_restarts_nothing_and_hears_it_later(session: Session) -> None:
    session.service("web", "--replicas 3 --restart-delay 0s")
    before = {task["id"]: task["container"] for task in session.tasks("web")}
    victim = next(task for task in session.tasks("web") if task["node"] == "h2")
    session.lab.kill("h1", daemon=True)
    time.sleep(2)  # the silence that must not matter
    session.say("h2", f"vxnet kill {victim['name']}")
    session.lab.start("h1")
    eventually(lambda: whole(session, "web", 3, victim["id"]), 30)
    after = {task["id"]: task["container"] for task in session.tasks("web")}
    assert {id: one for id, one in before.items() if id != victim["id"]}.items() < after.items()


def test_a_workers_daemon_that_comes_back_keeps_its_tasks(session: Session) -> None:
    session.service("web", "--replicas 3 --health-cmd true")
    before = {task["id"] for task in session.tasks("web")}
    pids = session.say("h2", "vxnet ps -q | xargs vxnet inspect | grep '\"pid\"'")
    session.lab.kill("h2", daemon=True)
    session.lab.start("h2")
    eventually(lambda: session.say("h2", "vxnet ps -q | xargs vxnet inspect | grep '\"pid\"'") == pids)
    time.sleep(0.5)
    assert {task["id"] for task in session.tasks("web")} == before


def test_a_finished_task_never_runs_again(session: Session) -> None:
    """Not even when its container was taken away, and the daemon knows of it only what it kept."""
    session.network("svc")
    done = "--restart-condition none --constraint node.hostname==h2"
    session.say("h2", "rm -f /tmp/runs")
    session.say("h1", f"vxnet service create -d --name once {done} -v /tmp:/tmp -- sh -c 'echo run >>/tmp/runs'")
    session._services.append("once")
    eventually(lambda: [task["state"] for task in session.tasks("once", running=False)] == ["complete"])
    session.say("h2", "vxnet prune -f")
    assert not session.table("h2", "vxnet ps -a --filter name=once")
    session.lab.kill("h2", daemon=True)
    session.lab.start("h2")
    session.service("later", "--constraint node.hostname==h2")  # looked after at the same time, or later
    assert session.say("h2", "cat /tmp/runs") == "run\n"
    assert [task["state"] for task in session.tasks("once", running=False)] == ["complete"]


def test_only_healthy_tasks_have_names_and_sick_ones_are_replaced(session: Session) -> None:
    session.network("svc")
    session.container("h1", "client", "svc")
    session.say("h1", "vxnet service create -d --name web --network svc --replicas 2 --restart-delay 0s "
                "--health-cmd 'test -e /tmp/well' --health-interval 200ms --health-retries 2 --health-start-period 1h "
                "-- sleep infinity")  # fmt: skip
    session._services.append("web")

    def starting() -> list[dict[str, Any]]:
        return [task for task in session.tasks("web", running=False) if task["state"] == "starting"]

    eventually(lambda: len(starting()) == 2)
    assert not resolved(session, "h1", "client", "tasks.web")
    first = starting()[0]
    session.inside(first["node"], first["name"], "touch /tmp/well", check=True)
    eventually(lambda: len(resolved(session, "h1", "client", "tasks.web")) == 1)
    eventually(lambda: [task["id"] for task in session.tasks("web")] == [first["id"]])
    session.inside(first["node"], first["name"], "rm /tmp/well", check=True)
    eventually(lambda: not resolved(session, "h1", "client", "tasks.web"))
    sick = eventually(
        lambda: [
            one for one in session.tasks("web", running=False) if (one["id"], one["state"]) == (first["id"], "failed")
        ]
    )
    assert sick[0]["message"] == "unhealthy: the check ended with 1"
    eventually(lambda: len(starting()) == 2)


def test_an_update_that_fails_goes_back_and_says_so(session: Session) -> None:
    session.service("web", "--replicas 3 --restart-delay 0s --update-monitor 300ms --update-failure-action rollback")
    before = {task["id"] for task in session.tasks("web")}
    done = session.run("h1", "vxnet service update --args false web")
    assert done.returncode == 1 and "rolled back because task web." in done.stderr
    eventually(lambda: len(session.tasks("web")) == 3)
    assert {task["id"] for task in session.tasks("web")} & before, "not all were touched"
    assert session.say("h1", "vxnet service update --env-add A=1 --update-order start-first web") == "web\n"
    assert not {task["id"] for task in session.tasks("web")} & before
    session.say("h1", "vxnet service rollback web")
    assert "A=1" not in session.say("h1", "vxnet service inspect web").split('"previous"')[0]


def test_drain_moves_everything_and_global_follows(session: Session) -> None:
    session.service("everywhere", "--mode global")
    session.service("web", "--replicas 3")
    try:
        session.say("h1", "vxnet node update --availability drain h2")
        eventually(lambda: not session.table("h2", "vxnet ps"))
        eventually(lambda: places(session, "web") == {"h1": 2, "h3": 1} or places(session, "web") == {"h1": 1, "h3": 2})
        assert places(session, "everywhere") == {"h1": 1, "h3": 1}
        assert not session.table("h1", "vxnet node ps h2 --filter desired-state=running")
    finally:
        session.say("h1", "vxnet node update --availability active h2")
    eventually(lambda: places(session, "everywhere") == {"h1": 1, "h2": 1, "h3": 1})
    session.say("h1", "vxnet service update --rebalance web")
    assert places(session, "web") == {"h1": 1, "h2": 1, "h3": 1}


def test_a_task_ends_when_all_have_let_go_of_it_or_a_bound_has_passed(session: Session) -> None:
    """A host with a client on its network is waited for. While its daemon stands still it says nothing."""
    session.network("svc")
    session.container("h3", "client", "svc")

    def cut_short() -> int:
        return int(session.json("h2", "vxnet info --format json")["drain_timeouts"])

    before = cut_short()
    for frozen in (False, True):
        drain = "1s" if frozen else "30s"  # short only where it is to pass
        session.service("web", f"--network svc --constraint node.hostname==h2 --drain-timeout {drain}")
        eventually(lambda: resolved(session, "h3", "client", "tasks.web"))
        if frozen:
            os.kill(session.lab["h3"].daemon_pid, signal.SIGSTOP)
        try:
            session.say("h1", "vxnet service rm web")
        finally:
            os.kill(session.lab["h3"].daemon_pid, signal.SIGCONT)
        assert cut_short() == before + frozen


def test_what_cannot_be_placed_says_why_and_is_placed_later(session: Session) -> None:
    create = "vxnet service create --name picky --constraint node.labels.zone==a --reserve-memory 1000g -- sleep 9999"
    session._services.append("picky")
    with session.lab.popen(
        "h1", ["sh", "-c", create], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waits:
        assert waits.stderr
        why = "no suitable node (3 nodes: 3 not node.labels.zone==a)"
        assert waits.stderr.readline() == f"waiting: {why}\n"
        assert session.tasks("picky", running=False)[0]["message"] == why
        session.say("h1", "vxnet node update --label-add zone=a h3")
        try:
            assert "1 short of memory (of 1024000 MiB to be reserved)" in waits.stderr.readline()
            session.say("h1", "vxnet service update -d --reserve-memory 1m picky")
            assert waits.wait(20) == 0
            assert places(session, "picky") == {"h3": 1}
        finally:
            waits.kill()
            session.say("h1", "vxnet node update --label-rm zone h3")
