"""Builds ``vxnet.host._syscalls`` (cffi, API mode, stable ABI) from ``syscalls.h`` and ``syscalls.c``.

setuptools calls it by ``cffi_modules`` in setup.py. Paths are relative to the project's root, because that is what
setuptools and the sdist keep.
"""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef(
    """
    int vxnet_setns(int fd, int kind);
    int vxnet_unshare(int flags);
    int vxnet_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data);
    int vxnet_umount(const char *target, int flags);
    int vxnet_fsopen(const char *type);
    """
)
ffibuilder.set_source(
    "vxnet.host._syscalls",
    '#include "syscalls.h"',
    sources=["csrc/syscalls.c"],
    include_dirs=["csrc"],
    depends=["csrc/syscalls.h"],
    # Not -Wconversion -Werror: cffi's own glue does not pass them. `make lint` compiles syscalls.c with both.
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"],
    py_limited_api=True,
)
