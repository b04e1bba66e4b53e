"""The C parts of the build; everything else stands in pyproject.toml.

cffi builds ``vxnet.host._syscalls`` and its neighbours as extensions of the limited API, so that one wheel serves
Python 3.11 and later.
The shim is not a module but a program. setuptools has no word for that, so it is an extension whose file name is the
program's and whose linking makes an executable; as an extension it goes into wheels, ``-e`` installs and ``build_ext
--inplace`` by itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import LinkError

# Python's own flags bring -DNDEBUG, which would take the assertions out of a program that must not go on after one.
CFLAGS = ["-std=c11", "-D_GNU_SOURCE=", "-O2", "-Wall", "-Wextra", "-Wconversion", "-UNDEBUG"]


class Program(Extension):
    """An executable that lies in a package's directory."""


class BuildExtensionsAndPrograms(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        if isinstance(self.ext_map.get(fullname), Program):
            return fullname.replace(".", "/")
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        if not isinstance(ext, Program):
            super().build_extension(ext)
            return
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # copy_extensions_to_source (-e, --inplace) does not make it.
        Path(*ext.name.split(".")[:-1]).mkdir(parents=True, exist_ok=True)
        objects = self.compiler.compile(
            ext.sources,
            output_dir=self.build_temp,
            macros=ext.define_macros,
            include_dirs=ext.include_dirs,
            extra_postargs=ext.extra_compile_args,
            depends=ext.depends,
        )
        # A process per container: without the dynamic linker each is a third smaller and starts a millisecond earlier.
        try:
            self.compiler.link_executable(objects, str(target), extra_postargs=["-static"])
        except LinkError:  # a C library without its archive, as on Fedora
            self.compiler.link_executable(objects, str(target))


def version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', Path("vxnet/__init__.py").read_text(), re.MULTILINE)
    assert found
    return found[1]


def shim() -> list[Extension]:
    sources = sorted(str(path) for path in Path("csrc/shim").glob("*.c"))
    headers = sorted(str(path) for path in Path("csrc/shim").glob("*.h"))
    if not sources:
        return []
    return [
        Program(
            "vxnet.bin.vxnet-shim",
            sources=sources,
            depends=headers,
            include_dirs=["csrc/shim"],
            define_macros=[("VXNET_VERSION", f'"{version()}"')],
            extra_compile_args=CFLAGS,
            py_limited_api=True,
        )
    ]


setup(
    cffi_modules=[f"csrc/ffi_build.py:{name}" for name in ("ffibuilder", "dnsfast", "vxlan")],
    ext_modules=shim(),
    cmdclass={"build_ext": BuildExtensionsAndPrograms},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
