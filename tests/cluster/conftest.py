"""What the store's tests share."""

from __future__ import annotations

from tests.cluster.etcd_cluster import etcd_cluster  # noqa: F401  fixtures are found by their names here
