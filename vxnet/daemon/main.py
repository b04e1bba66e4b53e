"""``vxnet daemon``: the agent in the foreground.

Everything long-lived runs in one :class:`asyncio.TaskGroup`. What escapes from any of its tasks is a bug and ends the
daemon with a traceback, a refusal ends it with a line; systemd starts it again, and containers and their networks live
on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from vxnet import __version__
from vxnet.cluster.api import serve_unix
from vxnet.daemon import config as configuration
from vxnet.daemon import diagnosis, history, metrics
from vxnet.daemon.agent import Agent
from vxnet.daemon.local_api import build_app
from vxnet.daemon.state import RUN_DIRECTORY, STATE_DIRECTORY
from vxnet.host import systemd
from vxnet.model import codec
from vxnet.model.errors import CallerError, ConflictError, HostError, VxnetError

log = structlog.get_logger()

THREADS = min(32, (os.cpu_count() or 1) + 4)
"""For what blocks: as many as Python would make."""
GARBAGE = (20_000, 4, 100)
"""Objects (net), collections of the young, of the middle-aged: how seldom the collector looks for cycles. Rows come by
the ten thousand and are no garbage: with Python's 700 objects, half the time of their arrival went into looking. A look
at the middle-aged, which nothing interrupts, takes 20 ms with four of the young, and 80 with twenty."""


def main(
    *,
    config_path: Path = configuration.CONFIG_PATH,
    socket_path: Path = RUN_DIRECTORY / "vxnet.sock",
    datapath: configuration.Datapath | None = None,
) -> int:
    """Run until SIGTERM or SIGINT. ``datapath``: whatever the file says. Returns the exit status."""
    try:
        if os.geteuid() != 0:
            raise CallerError("the daemon needs root: it builds network devices and namespaces", hint="use sudo")
        config = configuration.load(config_path)
        if datapath is not None:
            config = replace(config, datapath=datapath)
        _set_up_logging(config.log_level)
        _raise_descriptor_limit()
        with _only_one(RUN_DIRECTORY):
            gc.set_threshold(*GARBAGE)
            codec.get_ready()
            asyncio.run(_serve(config, socket_path))
    except VxnetError as error:
        print(f"vxnet: {error}", file=sys.stderr)
        return 1
    except BaseExceptionGroup as group:
        errors = _leaves(group)
        if not all(isinstance(error, VxnetError) for error in errors):
            raise
        for text in dict.fromkeys(str(error) for error in errors):
            print(f"vxnet: {text}", file=sys.stderr)
        return 1
    return 0


def _raise_descriptor_limit() -> None:
    """As high as may be: the daemon has some eight descriptors a container, and a shell gives it 1024 as a rule."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = systemd.FILES if most == resource.RLIM_INFINITY else min(most, systemd.FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """What the task groups, one in the other, wrapped up."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


async def _make_threads() -> None:
    """Those of :func:`asyncio.to_thread`, all of them now: on a machine that a container has filled with processes
    there are none to be had, and what needs one then would end the daemon.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="blocking"))
    all_here = threading.Barrier(THREADS)
    await asyncio.gather(*(asyncio.to_thread(all_here.wait) for _ in range(THREADS)))


async def _serve(config: configuration.Config, socket_path: Path) -> None:
    await _make_threads()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log.info("vxnetd starts", version=__version__, pid=os.getpid())
    async with Agent.open(config, STATE_DIRECTORY, RUN_DIRECTORY) as agent:
        async with contextlib.AsyncExitStack() as servers:
            app = build_app(agent)
            app.router.add_routes(metrics.routes(agent.measured, agent.health))
            app.router.add_routes(history.routes(agent.history))
            app.router.add_routes(diagnosis.routes(agent.doctor))
            app.router.add_routes(agent.bench_routes())
            await servers.enter_async_context(serve_unix(app, socket_path, systemd.activated()))
            if config.metrics_addr:
                await servers.enter_async_context(metrics.serve(config.metrics_addr, agent.measured, agent.health))
            tasks = await servers.enter_async_context(asyncio.TaskGroup())
            alive = tasks.create_task(_say_alive())
            log.info("vxnetd is ready", api=str(socket_path))
            systemd.notify("READY=1")
            await stop.wait()
            alive.cancel()
            systemd.notify("STOPPING=1")
        log.info("vxnetd stops; containers and networks stay")


async def _say_alive() -> None:
    """To systemd's watchdog, as long as the event loop turns."""
    while (period_s := systemd.watchdog_s()) is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(period_s)


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Two daemons on one host would undo each other's work."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(directory / "vxnetd.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HostError(f"cannot write in {directory}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(fd, 32).decode(errors="replace").strip()
            raise ConflictError(f"a daemon already runs on this host (pid {other})") from None
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _set_up_logging(level: str) -> None:
    """One line an event on standard error: ``time level event key=value``. Libraries and modules that use
    :mod:`logging` come out in the same form. For the journal, which has its own time, a line begins with its priority
    instead (sd-daemon(3)): ``journalctl -p warning`` finds what it should.
    """
    number = logging.getLevelName(level.upper())
    journal = "JOURNAL_STREAM" in os.environ
    common: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        *([] if journal else [structlog.processors.TimeStamper(fmt="iso", utc=True)]),
        structlog.processors.format_exc_info,
    ]
    plain = structlog.processors.LogfmtRenderer(key_order=("timestamp", "level", "event"), drop_missing=True)

    def with_priority(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
        priority = _PRIORITIES.get(event.pop("level", "info"), 6)
        return f"<{priority}>{plain(logger, method, event)}"

    renderer: structlog.typing.Processor = with_priority if journal else plain
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=number, handlers=[handler])
    structlog.configure(
        processors=[*common, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's."""
