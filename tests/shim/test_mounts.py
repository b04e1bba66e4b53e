"""What of the host, and what else, a container has in its file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.shim.conftest import Boxes
from tests.shim.test_isolation import place, run  # noqa: F401 - a fixture
from vxnet.core.containers import check_spec
from vxnet.host import creation
from vxnet.model.container import ContainerSpec, Mount
from vxnet.model.errors import CallerError, HostError


def bind(source: Path, target: str, **options: bool) -> Mount:
    return Mount(kind="bind", source=str(source), target=target, **options)


@pytest.mark.host
async def test_bound_directory_is_the_hosts(boxes: Boxes, place: Path) -> None:  # noqa: F811
    (place / "file").write_text("here\n")
    mounts = (bind(place, "/a/new place"), bind(place, "/fixed", read_only=True))
    script = "cd '/a/new place'; cat file; echo there >new; cat /fixed/new; touch /fixed/x || echo refused"
    assert await run(boxes, script, mounts=mounts) == "here\nthere\nrefused\n"
    assert (place / "new").read_text() == "there\n"


@pytest.mark.host
async def test_bound_file_and_missing_directory(boxes: Boxes, place: Path) -> None:  # noqa: F811
    (place / "file").write_text("bound\n")
    mounts = (bind(place / "file", "/etc/hosts"), bind(place / "made" / "here", "/made"))
    assert await run(boxes, "cat /etc/hosts; echo x >/made/file", mounts=mounts) == "bound\n"
    assert (place / "made" / "here" / "file").read_text() == "x\n"


@pytest.mark.host
async def test_nothing_to_bind(boxes: Boxes, place: Path) -> None:  # noqa: F811
    (place / "link").symlink_to("nowhere")
    with pytest.raises(HostError, match=r"cannot bind .*/link: No such file"):
        await boxes("true", mounts=(bind(place / "link", "/x"),)).start()
    (place / "file").write_text("")
    with pytest.raises(HostError, match=r"cannot make .*/file/below"):
        await boxes("true", mounts=(bind(place / "file" / "below", "/x"),)).start()


@pytest.mark.host
async def test_secrets_stay_hidden_below_a_bind(
    boxes: Boxes,
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (place / "lib" / "vxnet").mkdir(parents=True)
    (place / "lib" / "vxnet" / "node.key").write_text("secret")
    monkeypatch.setattr(creation, "MASKS", (*creation.MASKS, str(place / "lib" / "vxnet")))
    script = "ls -A /up/lib/vxnet /same/vxnet; cat /up/lib/vxnet/* || echo hidden"
    seen = await run(boxes, script, mounts=(bind(place, "/up"), bind(place / "lib", "/same")))
    assert seen == "/same/vxnet:\n\n/up/lib/vxnet:\nhidden\n"


@pytest.mark.host
async def test_devices_of_a_bind_do_not_open(boxes: Boxes, place: Path) -> None:  # noqa: F811
    os.mknod(place / "null", 0o600 | 0o020000, os.makedev(1, 3))
    script = f"true </b/null && echo opened; true <{place}/null && echo opened; ls /b"
    assert await run(boxes, script, mounts=(bind(place, "/b"),)) == "null\n"


@pytest.mark.host
async def test_tmpfs(boxes: Boxes) -> None:
    mounts = (
        Mount(kind="tmpfs", target="/small", options="size=64k,mode=750"),
        Mount(kind="tmpfs", target="/programs", executable=True),
        Mount(kind="tmpfs", target="/fixed", read_only=True),
    )
    script = """
    stat -c %a /small; head -c 100000 /dev/zero >/small/x || echo full; cp /bin/true /small/true 2>/dev/null
    rm /small/x; cp /bin/true /small/ && /small/true || echo no programs
    cp /bin/true /programs/ && /programs/true && echo programs; touch /fixed/x || echo fixed
    """
    assert await run(boxes, script, mounts=mounts) == "750\nfull\nno programs\nprograms\nfixed\n"


@pytest.mark.host
async def test_read_only_root(boxes: Boxes, place: Path) -> None:  # noqa: F811
    script = """
    pwd; for place in / /etc /root /job; do touch $place/x && echo wrote in $place; done
    for place in /tmp /run /dev/shm /bound /memory; do touch $place/x || echo no $place; done; echo x >/dev/null
    """
    mounts = (bind(place, "/bound"), Mount(kind="tmpfs", target="/memory"))
    assert await run(boxes, script, read_only=True, workdir="/job/here", mounts=mounts) == "/job/here\n"
    assert (place / "x").exists()


@pytest.mark.host
async def test_another_root(boxes: Boxes, place: Path) -> None:  # noqa: F811
    """A directory that is a root: here one program, with the characters that overlayfs' options cannot hold."""
    rootfs = place / "a,root:of\\its own"
    (rootfs / "bin").mkdir(parents=True)
    source = place / "hello.c"
    source.write_text(
        '#include <stdio.h>\n#include <sys/stat.h>\nint main(void) { struct stat s; mkdir("/made", 0755); '
        'return printf("%d %d\\n", stat("/usr", &s), stat("/proc/self", &s)) < 0; }\n'
    )
    subprocess.run(["cc", "-static", "-o", rootfs / "bin" / "hello", source], check=True)
    box = boxes("hello", rootfs=str(rootfs))
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 0
    assert box.output == "-1 0\n"
    assert sorted(path.name for path in rootfs.iterdir()) == ["bin"], "what it writes stays out of it"
    with pytest.raises(HostError, match=r"cannot enter .*nowhere"):
        await boxes("true", rootfs=str(place / "nowhere")).start()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"mounts": (Mount(kind="bind", source="/a", target="b"),)}, '"b"'),
        ({"mounts": (Mount(kind="bind", source="/a", target="/"),)}, 'cannot mount on "/"'),
        ({"mounts": (Mount(kind="bind", source="/a", target="/proc/1"),)}, "kernel's"),
        ({"mounts": (Mount(kind="bind", source="/a", target="/x/../sys"),)}, "kernel's"),
        ({"mounts": (Mount(kind="bind", source="a", target="/b"),)}, '"a"'),
        ({"mounts": (Mount(kind="tmpfs", target="/b"), Mount(kind="tmpfs", target="/b/"))}, "twice"),
        ({"mounts": (Mount(kind="tmpfs", target="/b", options="size=1m,huge=always"),)}, "huge=always"),
        ({"rootfs": "here"}, '"here"'),
    ],
)
def test_wrong_mounts(spec: dict[str, object], words: str) -> None:
    with pytest.raises(CallerError, match=words):
        check_spec(ContainerSpec(argv=("true",), **spec))  # type: ignore[arg-type]
