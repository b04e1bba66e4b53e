"""vxnet: Docker Swarm's overlay networking for plain Linux hosts, without Docker."""

__version__ = "0.1.0"
