"""Whom a command runs as."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.shim.conftest import Boxes
from tests.shim.test_isolation import run
from vxnet.host import tasks
from vxnet.model.container import Mount
from vxnet.model.errors import CallerError

pytestmark = pytest.mark.host

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
torn line
wrong:x:many:0::/:/bin/sh
anna:x:1000:1001:Anna:/home/anna:/bin/sh
"""
GROUP = "root:x:0:\nanna:x:1001:\nstaff:x:50:berta,anna,carla\nother:x:51:annabel\ndocker:x:52:anna\n"


@pytest.fixture
def people(tmp_path: Path) -> tuple[Mount, ...]:
    """A container's own /etc/passwd and /etc/group."""
    for name, text in (("passwd", PASSWD), ("group", GROUP)):
        (tmp_path / name).write_text(text)
    return tuple(
        Mount(kind="bind", source=str(tmp_path / name), target=f"/etc/{name}", read_only=True)
        for name in ("passwd", "group")
    )


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        ("", "0 0 0 /root"),
        ("anna", "1000 1001 1001 50 52 /home/anna"),
        ("1000", "1000 1001 1001 50 52 /home/anna"),
        ("anna:staff", "1000 50 50 /home/anna"),
        ("anna:7", "1000 7 7 /home/anna"),
        ("4711", "4711 0 0 /"),
        ("4711:4712", "4711 4712 4712 /"),
        ("0:staff", "0 50 50 /root"),
    ],
)
async def test_names_and_numbers(boxes: Boxes, people: tuple[Mount, ...], user: str, wanted: str) -> None:
    assert await run(boxes, "echo $(id -u) $(id -g) $(id -G) $HOME", user=user, mounts=people) == wanted + "\n"


async def test_a_user_has_no_powers(boxes: Boxes) -> None:
    script = """
    grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status | cut -f 2 | sort -u; cat /etc/shadow || echo no secrets
    touch /x || echo not root; echo said >/dev/stdout; echo "$(id -u)" >/proc/self/fd/1
    ping -c 1 -W 5 127.0.0.1 >/dev/null && echo pong
    """
    output = await run(boxes, script, user="4711:4711")
    assert output == "0000000000000000\nno secrets\nnot root\nsaid\n4711\npong\n"


@pytest.mark.parametrize("user", ["nobody-of-this-name", "root:no-such-group"])
async def test_user_that_is_none(boxes: Boxes, user: str) -> None:
    box = boxes("true", user=user)
    task = await box.start()
    with pytest.raises(CallerError, match=r"^no (user|group) [a-z-]+ in the container's /etc/(passwd|group)$"):
        await task.start_main()
    assert (await task.wait()).status == 125


async def test_exec_has_the_containers_user_or_its_own(boxes: Boxes, people: tuple[Mount, ...]) -> None:
    box = boxes("sleep", "1000", user="anna", mounts=people)
    task = await box.start()
    await task.start_main()
    for option, wanted in (("", b"1000\n"), (", user='root'", b"0\n"), (", user='5:staff'", b"5\n")):
        assert await box.run_client(f"terminal.execute(S, ['id', '-u']{option})") == (0, wanted, b"")
    status, _, said = await box.run_client("terminal.execute(S, ['id'], user='nobody-of-this-name')")
    assert status == 126 and b"no user nobody-of-this-name" in said


async def test_terminal_is_the_users(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "echo again >$(tty); stat -c %u $(tty)", user="4711", terminal=True)
    task = await box.start()
    await task.start_main()
    await task.wait()
    assert box.output == "again\r\n4711\r\n"


async def test_sysctls(boxes: Boxes) -> None:
    sysctls = {"net.ipv4.ip_forward": "1", "net.ipv4.tcp_keepalive_time": "60"}
    before = Path("/proc/sys/net/ipv4/tcp_keepalive_time").read_text()
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/tcp_keepalive_time"
    assert await run(boxes, script, sysctls=sysctls) == "1\n60\n"
    assert Path("/proc/sys/net/ipv4/tcp_keepalive_time").read_text() == before
    with pytest.raises(Exception, match=r"cannot set sysctl net\.nowhere"):
        await boxes("true", sysctls={"net.nowhere": "1"}).start()


def test_shim_is_static_and_small() -> None:
    """Names are looked up without the C library's name services, which would load libraries of the container."""
    symbols = subprocess.run(["nm", tasks.shim_path()], capture_output=True, text=True, check=False).stdout
    assert "getpwnam" not in symbols
