"""Three real members of etcd on loopback, with mTLS from a CA of their own, that a test can kill, freeze and refill."""

from __future__ import annotations

import gc
import ipaddress
import itertools
import os
import signal
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from vxnet.core import etcd_trust, trust
from vxnet.host import etcd
from vxnet.model.store import CLIENT_PORT, PEER_PORT, StoreAccess, etcd_url

READY_S = 60
_numbers = itertools.count(1)


class Member:
    def __init__(self, name, directory, address, members):
        self.name, self.directory, self.address = name, directory, address
        self.endpoint = etcd_url(address, CLIENT_PORT)
        self._argv = etcd.argv(directory, name, address, members, new=True, token="test", listed=True)
        self._process = None

    def start(self):
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)

    def signal(self, number):
        self._process.send_signal(number)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def dead(self):
        return self._process.poll() is not None


class EtcdCluster:
    def __init__(self, path, count=3):
        number = next(_numbers)
        pid = os.getpid()
        base = f"127.{pid % 200 + 20}.{pid // 200 % 250}"
        self.authority = ca = etcd_trust.make_etcd_ca(os.urandom(48), "test", time.time())
        nobody = etcd_trust.make_crl(ca, (), time.time())
        addresses = [f"{base}.{100 + 3 * (number % 50) + index}" for index in range(count)]
        peers = {f"m{index}": etcd_url(one, PEER_PORT) for index, one in enumerate(addresses)}
        self.members = []
        self.ca = trust.certificate_to_pem(ca.certificate)
        for index, address in enumerate(addresses):
            directory = path / f"m{index}"
            certificate, key = self.credentials(ca, address)
            etcd.EtcdProcess(directory).prepare(self.ca, certificate, key, nobody)
            self.members.append(Member(f"m{index}", directory, address, peers))
        self.certificate, self.key = self.credentials(ca, addresses[0])

    @staticmethod
    def credentials(ca, address):
        key = etcd_trust.member_key(os.urandom(40))
        csr = etcd_trust.member_csr(key)
        # etcd looks at where a member comes from, too.
        addresses = [ipaddress.ip_address(address), ipaddress.ip_address("127.0.0.1")]
        der = etcd_trust.issue_member(ca, csr, "m", addresses, os.urandom(8), time.time())
        return trust.certificate_to_pem(der), etcd_trust.member_key_to_pem(key)

    def access(self, prefix="vxnet", order=None):
        chosen = [self.members[index] for index in order or range(len(self.members))]
        return StoreAccess(
            endpoints=tuple(member.endpoint for member in chosen),
            names={member.endpoint: member.name for member in chosen},
            prefix=prefix,
            ca=self.ca,
            certificate=self.certificate,
            key=self.key,
        )

    def start(self):
        for member in self.members:
            member.start()
        self.wait_healthy()

    def wait_healthy(self, count=None):
        """All of them, or so many, and a leader."""
        deadline = time.monotonic() + READY_S
        while sum(self.is_healthy(member) for member in self.members) < (count or len(self.members)):
            assert time.monotonic() < deadline, "etcd is not healthy"
            time.sleep(0.2)

    def is_healthy(self, member):
        return b"true" in self._get(member, "/health")

    def leader(self):
        for member in self.members:
            if b"etcd_server_is_leader 1" in self._get(member, "/metrics"):
                return member
        raise AssertionError("etcd has no leader")

    def _get(self, member, path):
        context = ssl.create_default_context(cadata=self.ca.decode())
        files = self.members[0].directory
        context.load_cert_chain(files / "member.crt", files / "member.key")
        try:
            with urllib.request.urlopen(member.endpoint + path, timeout=1, context=context) as response:
                return response.read()
        except OSError:
            return b""

    def mend(self):
        """As a test should find it."""
        for member in self.members:
            if member.dead:
                member.start()
            else:
                member.thaw()
        self.wait_healthy()

    def close(self):
        for member in self.members:
            member.kill()


@pytest.fixture(scope="module")
def etcd_cluster(tmp_path_factory):
    """Not for longer: three members have work also when nobody asks."""
    cluster = EtcdCluster(Path(tmp_path_factory.mktemp("etcd")))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
        gc.collect()
