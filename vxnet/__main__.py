"""``python -m vxnet`` is the command ``vxnet``."""

from vxnet.cli import main

if __name__ == "__main__":
    main()
