"""From ``vxnet run`` on one host until a container on another resolves the name and pings it; and until it is gone."""

from __future__ import annotations

import subprocess

from tests.perf.measure import ms, python, sh, table
from vxnet.lab import Lab

RUNS = 15

# In container A. Asks every 2 ms; says when the name was first there, when its address first answered an ICMP echo,
# and, once told to, when the name was first gone.
PROBE = r"""
import os, socket, struct, sys, time
name = sys.argv[1]
query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + bytes([len(name)]) + name.encode() + b"\0\0\1\0\1"
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dns.connect(("127.0.0.11", 53))
dns.settimeout(0.05)
def resolve():
    try:
        dns.send(query)
        answer = dns.recv(512)
    except OSError:
        return None
    return socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else None
def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
def pings(address):
    icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    icmp.settimeout(0.01)
    echo = struct.pack(">BBHHH", 8, 0, 0, os.getpid() & 0xffff, 1)
    echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
    icmp.sendto(echo, (address, 0))
    try:
        while True:
            packet, (source, _) = icmp.recvfrom(256)
            if source == address and packet[20] == 0:
                return True
    except OSError:
        return False
print("asking", flush=True)
while not (address := resolve()):
    time.sleep(0.002)
print(time.monotonic(), flush=True)
while not pings(address):
    pass
print(time.monotonic(), flush=True)
sys.stdin.readline()
while resolve():
    time.sleep(0.002)
print(time.monotonic(), flush=True)
"""

TIMED = """
import subprocess, sys, time
print(time.monotonic())
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
"""


def once(lab: Lab, network: str) -> tuple[float, float, float]:
    """Seconds from the start of the command to: resolves, pings; and from ``kill`` to: gone."""
    argv = ["vxnet", "exec", "-i", "a", "--", "python3", "-c", PROBE, "b"]
    with lab.popen("h3", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdin
        assert probe.stdout
        try:
            assert probe.stdout.readline() == "asking\n"
            run = ["vxnet", "run", "-d", "--name", "b", "--network", network, "--", "sleep", "infinity"]
            started = float(python(lab, "h2", TIMED, *run))
            resolved, pinged = float(probe.stdout.readline()), float(probe.stdout.readline())
            probe.stdin.write("\n")
            probe.stdin.flush()
            killed = float(python(lab, "h2", TIMED, "vxnet", "kill", "b"))
            gone = float(probe.stdout.readline())
        finally:
            probe.kill()
            sh(lab, "h2", "vxnet rm -f b")
    return resolved - started, pinged - started, gone - killed


def main() -> None:
    with Lab(hosts=3) as lab:
        sh(lab, "h1", "vxnet network create -d overlay --attachable names")
        sh(lab, "h3", "vxnet run -d --name a --network names -- sleep infinity")
        sh(lab, "h2", "vxnet run -d --name keeper --network names -- sleep infinity")
        resolved, pinged, gone = zip(*(once(lab, "names") for _ in range(RUNS)), strict=True)
    table(
        "Names and paths, from one host to another",
        ["", "bound, ms", "Docker 20.10, ms", "median [range], ms"],
        [
            ["`run` on B → A resolves it", "250", "392", ms(resolved)],
            ["`run` on B → A pings it", "250", "675", ms(pinged)],
            ["`kill` on B → A's DNS stops answering", "250", "169–263", ms(gone)],
        ],
    )
