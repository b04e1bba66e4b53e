"""Builds what Python calls in C (cffi, API mode, stable ABI): ``vxnet.host._syscalls``, ``_dnsfast`` and ``_vxlan``.

setuptools calls it by ``cffi_modules`` in setup.py. Paths are relative to the project's root, because that is what
setuptools and the sdist keep.
"""

from cffi import FFI

# Not -Wconversion -Werror: cffi's own glue does not pass them. `make lint` compiles the sources with both.
WARNINGS = [
    *("-std=gnu11", "-D_GNU_SOURCE=", "-O2"),
    *("-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"),
]
VXLAN = ("vxlan", "command", "cut", "fdb", "join", "outbox", "packet", "table", "toobig", "worker")

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
    extra_compile_args=WARNINGS,
    py_limited_api=True,
)

dnsfast = FFI()
dnsfast.cdef(
    """
    struct dnsfast;
    struct dnsfast_counts { uint64_t answered; uint64_t missed; uint64_t lost; uint64_t failed; };
    int dnsfast_new(struct dnsfast **made, int epoll, int control, uint64_t seed);
    void dnsfast_free(struct dnsfast *server);
    int dnsfast_run(struct dnsfast *server);
    int dnsfast_add(struct dnsfast *server, int udp, int misses, const uint32_t *networks, size_t count);
    int dnsfast_update(struct dnsfast *server, int number, const uint32_t *networks, size_t count);
    void dnsfast_remove(struct dnsfast *server, int number);
    int dnsfast_put(struct dnsfast *server, uint32_t network, const uint8_t *name, size_t name_size,
                    const uint8_t *answers, size_t answers_size);
    void dnsfast_drop(struct dnsfast *server, uint32_t network, const uint8_t *name, size_t name_size);
    size_t dnsfast_answer(struct dnsfast *server, const uint32_t *networks, size_t count, const uint8_t *data,
                          size_t size, uint32_t turn, uint8_t *reply);
    void dnsfast_count(struct dnsfast *server, struct dnsfast_counts *counts);
    """
)
dnsfast.set_source(
    "vxnet.host._dnsfast",
    '#include "dnsfast.h"',
    sources=["csrc/dnsfast/dnsfast.c", "csrc/dnsfast/table.c", "csrc/dnsfast/message.c"],
    include_dirs=["csrc/dnsfast"],
    depends=["csrc/dnsfast/dnsfast.h", "csrc/dnsfast/table.h", "csrc/dnsfast/message.h"],
    extra_compile_args=WARNINGS,
    py_limited_api=True,
)

vxlan = FFI()
vxlan.cdef(
    """
    struct vxlan_options {
        int control; int family; int port; int queues;
        int receive[8]; int send[32]; int loose[8];
        int spin_us; int virtual_underlay;
    };
    int vxlan_run(const struct vxlan_options *options);
    """
)
vxlan.set_source(
    "vxnet.host._vxlan",
    '#include "vxlan.h"',
    sources=[f"csrc/vxlan/{name}.c" for name in VXLAN],
    include_dirs=["csrc/vxlan"],
    depends=[f"csrc/vxlan/{name}.h" for name in VXLAN],
    extra_compile_args=WARNINGS,
    py_limited_api=True,
)
