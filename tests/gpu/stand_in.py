"""A stand-in for CuPy on a machine without a GPU: arrays that refuse what CuPy's refuse, and
kernels that run on the CPU.

It is stricter than CuPy, so that what passes here has not crossed over by chance: no array of the
host takes part in anything, nothing is converted unasked, fresh memory holds NaN. What crosses on
purpose is counted.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
THREADS = 4  # of a block: few, so that rows are longer than a block, and quick

#: what went from one side to the other on purpose, and what was launched: our kernels and CuPy's
crossed: Counter[str] = Counter()


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def _refuse(what: str, a: Any) -> None:
    raise TypeError(f"{what}: an array of the host ({type(a).__name__} {a.shape}) met the GPU's")


def _in(a: Any, what: str) -> Any:
    """What NumPy is to compute with in the place of `a`."""
    if isinstance(a, Array):
        return a._a
    if isinstance(a, np.ndarray):
        _refuse(what, a)
    if isinstance(a, tuple | list):
        return type(a)(_in(each, what) for each in a)
    return a


def _out(a: Any) -> Any:
    if isinstance(a, tuple | list):
        return type(a)(_out(each) for each in a)
    return Array(np.asarray(a)) if isinstance(a, np.ndarray | np.generic) else a


class Array:
    """cupy.ndarray."""

    __array_priority__ = 100

    def __init__(self, a: np.ndarray) -> None:
        assert type(a) is np.ndarray
        self._a = a

    # ---- what it is ----
    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: self._a.flags)
    T = property(lambda self: Array(self._a.T))
    real = property(lambda self: Array(self._a.real))
    data = property(lambda self: _Pointer(self._a.ctypes.data))
    device = property(lambda self: cuda.Device())

    def __len__(self) -> int:
        return len(self._a)

    def __repr__(self) -> str:
        return f"standin({self._a!r})"

    # ---- to the host: only where it is asked for ----
    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def get(self) -> np.ndarray:
        crossed["to host"] += 1
        crossed["bytes to host"] += self._a.nbytes
        return self._a.copy()

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    # ---- computing ----
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            raise TypeError(f"CuPy has no {ufunc.__name__}.{method}")
        crossed["launches"] += 1
        given = [_in(a, ufunc.__name__) for a in inputs]
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = tuple(_in(a, ufunc.__name__) for a in out)
        result = getattr(ufunc, method)(*given, **kwargs)
        return out[0] if out is not None else _out(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func.__name__ not in DISPATCHED:
            raise TypeError(f"np.{func.__name__} was called on the GPU: not known to the stand-in")
        crossed["launches"] += 1
        given = {name: _in(a, func.__name__) for name, a in kwargs.items()}
        result = func(*(_in(a, func.__name__) for a in args), **given)
        return _out(result)

    def __getitem__(self, index: Any) -> Any:
        return _out(self._a[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        crossed["launches"] += 1
        self._a[_index(index)] = _in(value, "assignment")


#: functions of NumPy that CuPy answers for its own arrays
DISPATCHED = {
    "stack", "concatenate", "zeros_like", "empty_like", "ones_like", "argmax", "isfinite", "repeat",
    "sum", "vdot", "result_type", "swapaxes", "argwhere", "where", "pad",
}  # fmt: skip


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    if isinstance(index, Array) and index.dtype.kind == "b":
        crossed["to host"] += 1  # how many are true decides the shape
    return _in(index, "an index")


def _operator(name: str) -> Any:
    def method(self: Array, *others: Any) -> Any:
        crossed["launches"] += 1
        given = [_in(a, name) for a in others]
        if any(isinstance(a, types.EllipsisType) for a in given):
            return NotImplemented
        result = getattr(self._a, name)(*given)
        if result is NotImplemented:
            return result
        return self if name.startswith("__i") else _out(result)

    return method


for _name in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"]:
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        setattr(Array, _form, _operator(_form))
for _name in ["neg", "abs", "eq", "ne", "lt", "le", "gt", "ge"]:
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))


METHODS = (
    "sum", "mean", "max", "min", "argmax", "any", "all", "astype", "reshape", "swapaxes",
    "transpose", "ravel", "copy",
)  # fmt: skip
VIEWS = ("astype", "reshape", "swapaxes", "transpose")  # most often


def _method(name: str) -> Any:
    def method(self: Array, *args: Any, **kwargs: Any) -> Any:
        crossed["launches"] += name not in VIEWS
        given = [_in(a, name) for a in args]
        return _out(getattr(self._a, name)(*given, **{n: _in(a, name) for n, a in kwargs.items()}))

    return method


for _name in METHODS:
    setattr(Array, _name, _method(_name))


def fill(self: Array, value: Any) -> None:
    self._a.fill(_in(value, "fill"))


Array.fill = fill  # type: ignore[attr-defined]


# ---- the module -------------------------------------------------------------------------------


def _empty(shape: Any, dtype: Any = float) -> Array:
    a = np.empty(shape, dtype)
    a.fill(np.nan if a.dtype.kind in "fc" else np.iinfo(a.dtype).min // 2)
    return Array(a)


def _asarray(a: Any, dtype: Any = None) -> Array:
    if isinstance(a, Array):
        return a if dtype is None else a.astype(dtype, copy=False)
    host = np.array(a, dtype, order="C")  # a copy, in rows as CuPy makes it
    crossed["to GPU"] += 1
    crossed["bytes to GPU"] += host.nbytes
    return Array(host)


def _asnumpy(a: Any) -> np.ndarray:
    return a.get() if isinstance(a, Array) else np.asarray(a)


class OutOfMemoryError(MemoryError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


class _Device:
    id = 0
    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        self.id = number


class RawModule:
    """Kernels compiled for the CPU."""

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        threads = f"-DTHREADS={THREADS}"
        self._options = tuple(threads if o.startswith("-DTHREADS") else o for o in options)
        self._real = next(o for o in options if o.startswith("-DREAL=")).removeprefix("-DREAL=")
        self._signatures = signatures(code)
        self._library = _compiled(code, self._options)

    def get_function(self, name: str) -> Any:
        signature, launch = self._signatures[name], getattr(self._library, f"launch_{name}")

        def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
            assert len(grid) == len(block) == 1
            assert 0 < grid[0] < 2**31
            assert len(args) == len(signature), f"{name}: {len(args)} of {len(signature)} arguments"
            crossed["launches"] += 1
            launch(
                ctypes.c_uint(grid[0]),
                *(self._argument(name, *p) for p in zip(signature, args, strict=True)),
            )

        return kernel

    def _argument(self, kernel: str, wanted: tuple[str, str], given: Any) -> Any:
        kind, name = wanted
        where = f"{kernel}: argument {name} ({kind}) got a {type(given).__name__}"
        if kind == "Int":
            assert type(given) is int, where
            return ctypes.c_longlong(given)
        if kind == "double":
            assert type(given) is float, where
            return ctypes.c_double(given)
        if type(given) is int:
            assert given == 0, where
            return ctypes.c_void_p(None)
        assert isinstance(given, Array), where
        wanted_dtype = (
            {"float": "float32", "double": "float64"}[self._real] if kind == "REAL*" else "int64"
        )
        assert given.dtype == wanted_dtype, where
        return ctypes.c_void_p(given.data.ptr)


def signatures(code: str) -> dict[str, list[tuple[str, str]]]:
    """kernel -> its parameters: REAL*, Int*, Slots*, Int or double, and their names."""
    found = {}
    for name, parameters in re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', code):
        each = [
            re.fullmatch(r"(?:const )?(\w+\*?) (\w+)", " ".join(p.split()))
            for p in parameters.split(",")
        ]
        found[name] = [(m[1], m[2]) for m in each if m]
        assert len(found[name]) == len(each), parameters
    return found


def _compiled(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    launchers = []
    for name, signature in signatures(code).items():
        parameters = "".join(f", {kind} {p}" for kind, p in signature)
        call = ", ".join(p for _, p in signature)
        launchers.append(
            f'extern "C" void launch_{name}(unsigned grid{parameters}) '
            f"{{ run(grid, [=] {{ {name}({call}); }}); }}"
        )
    source = f'#include "{HERE / "cuda_on_cpu.h"}"\n{code}\n' + "\n".join(launchers)
    key = hashlib.sha256((source + repr(options)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"minprefix-kernels-{key}"
    library = folder / "kernels.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        (folder / "kernels.cpp").write_text(source)
        fresh = folder / f"fresh-{id(source)}.so"
        run = [
            "g++",
            "-O1",
            "-g",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-Wno-unused-function",
        ]
        subprocess.run([*run, *options, str(folder / "kernels.cpp"), "-o", str(fresh)], check=True)
        fresh.replace(library)
    return ctypes.CDLL(str(library))


def available() -> bool:
    return shutil.which("g++") is not None


class _Cublas:
    mode = 0

    @classmethod
    def setMathMode(cls, handle: int, mode: int) -> None:
        assert handle == 7
        cls.mode = mode


class _Pool:
    held = 0

    @classmethod
    def total_bytes(cls) -> int:
        return cls.held


def _waited() -> None:
    crossed["waits"] += 1


cuda = types.SimpleNamespace(
    Device=_Device,
    cublas=_Cublas,
    device=types.SimpleNamespace(get_cublas_handle=lambda: 7),
    nvrtc=types.SimpleNamespace(getVersion=lambda: (12, 9)),
    get_current_stream=lambda: types.SimpleNamespace(synchronize=_waited),
    runtime=types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        CUDARuntimeError=CUDARuntimeError,
        memGetInfo=lambda: (1 << 30, 1 << 34),
        getDeviceProperties=lambda _: {"name": b"no GPU at all", "totalGlobalMem": 2**31},
        driverGetVersion=lambda: 12080,
        runtimeGetVersion=lambda: 12090,
    ),
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
)


def module() -> types.ModuleType:
    """To stand in sys.modules as `cupy`."""
    cupy: Any = types.ModuleType("cupy")
    Array.__module__ = "cupy"
    cupy.__version__ = "stand-in"
    cupy.ndarray, cupy.RawModule, cupy.cuda = Array, RawModule, cuda
    cupy.get_default_memory_pool = lambda: _Pool
    cupy.asarray, cupy.asnumpy, cupy.empty = _asarray, _asnumpy, _empty
    cupy.zeros = lambda shape, dtype=float: Array(np.zeros(shape, dtype))
    cupy.empty_like = lambda a: _empty(a.shape, a.dtype)
    cupy.zeros_like = lambda a: Array(np.zeros_like(a._a))
    cupy.ascontiguousarray = lambda a: a if a.flags.c_contiguous else a.copy()
    return cupy
