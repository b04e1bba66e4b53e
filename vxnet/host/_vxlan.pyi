class _Array:
    def __getitem__(self, index: int) -> int: ...
    def __setitem__(self, index: int, value: int) -> None: ...

class _Options:
    control: int
    family: int
    port: int
    queues: int
    receive: _Array
    send: _Array
    loose: _Array
    spin_us: int
    virtual_underlay: int

class _Ffi:
    def new(self, declaration: str) -> _Options: ...

class _Lib:
    def vxlan_run(self, options: _Options) -> int: ...

ffi: _Ffi
lib: _Lib
