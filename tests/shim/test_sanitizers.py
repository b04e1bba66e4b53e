"""The shim under ASan and UBSan: its parsers with torn messages, the whole of it with a container's life."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path

import pytest

from tests.shim.conftest import Boxes, eventually
from vxnet.host import tasks

SOURCES = Path(__file__).parents[2] / "csrc" / "shim"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(target: Path, *sources: Path) -> None:
    subprocess.run(["gcc", *FLAGS, f"-I{SOURCES}", "-o", target, *sources], check=True)


@pytest.mark.slow
def test_parsers_with_torn_messages(tmp_path: Path, seed: int) -> None:
    target = tmp_path / "fuzz"
    parsers = [SOURCES / name for name in ("config.c", "protocol.c", "mounts.c", "root.c", "user.c")]
    build(target, Path(__file__).parent / "parse_fuzz.c", *parsers)
    done = subprocess.run([target, str(seed), "100000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100, "some messages must be whole, or nothing behind the first check is tried"


@pytest.mark.slow
@pytest.mark.host
async def test_life_of_a_container(boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The sealed shim has no environment and no standard error: its options are built in. Leaks cannot be looked for in
    # a process that forbids ptrace.
    options = tmp_path / "options.c"
    reports = tmp_path / "report"
    options.write_text(
        f"""const char *__asan_default_options(void);
const char *__asan_default_options(void) {{ return "detect_leaks=0:log_path={reports}"; }}
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) {{ return "print_stacktrace=1:log_path={reports}"; }}
"""
    )
    shim = tmp_path / "vxnet-shim"
    build(shim, options, *SOURCES.glob("*.c"))
    monkeypatch.setattr(tasks, "shim_path", lambda: shim)

    box = boxes("sh", "-c", "echo out; echo err >&2; cat; sleep 1000", stdin=True, env=("A=1",), workdir="/w")
    task = await box.start()
    watcher = box.client("terminal.attach(S, stdin=False, sig_proxy=False)", stdout=subprocess.PIPE)
    await task.start_main()
    for call in ("['echo', 'x']", "['no-such-program']", "['sh', '-c', 'exit 3'], env=['B=2'], workdir='/usr'"):
        await box.run_client(f"terminal.execute(S, {call})")
    await box.run_client("terminal.execute(S, ['sh'], stdin=True)", b"seq 1 50000; exit 4\n")
    await box.run_client("terminal.execute(S, ['tty'], terminal=True)")
    await eventually(lambda: "err" in box.log, "the log")
    task.close()
    task_again = box.task = await box.adopt()
    assert task_again is not None
    with pytest.raises(Exception, match="running already"):
        await task_again.start_main()
    await task_again.signal(signal.SIGTERM)
    assert (await task_again.wait()).status == 143
    await asyncio.to_thread(watcher.communicate, None, 20)

    screen = boxes("sh", "-c", "seq 1 5000; exit 5", terminal=True)
    task = await screen.start()
    await task.start_main()
    assert (await task.wait()).status == 5
    broken = boxes("no-such-program")
    task = await broken.start()
    with pytest.raises(Exception, match="cannot run"):
        await task.start_main()
    assert (await task.wait()).status == 127

    found = [path.read_text() for path in tmp_path.glob("report.*")]
    assert found == []
