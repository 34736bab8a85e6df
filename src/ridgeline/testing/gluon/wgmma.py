"""Asynchronous matrix products of a warpgroup: they read their operands until waited for."""

from collections import deque
from math import prod
from typing import Any

import numpy as np
import torch

from ridgeline.testing.gluon import dtypes, layouts
from ridgeline.testing.gluon.errors import InFlightError, LayoutError
from ridgeline.testing.gluon.scheduler import Once, current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import Tensor, as_constant, unwrap
from ridgeline.testing.gluon.versions import gl
from ridgeline.testing.gluon.view import View

_K_BITS = 256  # of one instruction


class Product(Once):
    """One issued product."""

    result: np.ndarray | None = None
    a: Any = None
    retired = False  # waited for


class Products:
    """A partition's products in flight, oldest first."""

    def __init__(self, agent: tuple) -> None:
        self.agent, self.issued, self.flying = agent, 0, deque()


def products_of(partition: Any) -> Products:
    return partition.queue("wgmma", lambda: Products(("wgmma", partition.id)))


class Accumulator:
    """The result of an asynchronous product: only a wait or a further product may take it."""

    def __init__(self, product: Product, shape: list[int], dtype: gl.dtype, layout: Any) -> None:
        self.product, self.shape, self.dtype, self.layout = product, shape, dtype, layout

    def use_in_flight(self) -> None:
        raise InFlightError(
            f"the wgmma of {self.product.site} is used before warpgroup_mma_wait, at {site()}"
        )

    def __getattr__(self, name: str) -> Any:
        self.use_in_flight()

    def value(self) -> np.ndarray:
        return self.product.result

    def __add__(self, other: Any) -> Any:
        self.use_in_flight()

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
    __getitem__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __add__


def warpgroup_mma_init(value: Tensor) -> Accumulator:
    product = Product(lambda: None, site(), 0)
    product.result, product.done, product.retired = value.a, True, True
    return Accumulator(product, value.shape, value.dtype, value.layout)


def warpgroup_mma(
    a: Any,
    b: Any,
    acc: Any,
    *,
    use_acc: Any = True,
    precision: Any = None,
    max_num_imprecise_acc: Any = None,
    is_async: Any = False,
) -> Any:
    owner, me = machine(), current()
    owner.switch()
    _check(a, b, acc, me.num_warps)
    products, use = products_of(me), bool(unwrap(use_acc))
    products.issued += 1
    for operand, name in ((a, "A"), (b, "B")):
        if isinstance(operand, View):
            operand.access(
                f"wgmma read of {name}",
                write=False,
                asynchronous=True,
                agent=products.agent,
                epoch=products.issued,
            )
            operand.check_written(f"wgmma read of {name}")
    earlier = list(products.flying)

    def multiply() -> None:
        for before in earlier:  # in order
            before()
        result = _product(_operand(a), _operand(b), acc.dtype)
        if use:
            result += acc.value() if isinstance(acc, Accumulator) else acc.a
        product.result = result

    product = Product(multiply, site(), products.issued)
    product.a = a if isinstance(a, Tensor) else None
    products.flying.append(product)
    owner.later(product)
    pending = Accumulator(product, acc.shape, acc.dtype, acc.layout)
    if unwrap(is_async):
        return pending
    return warpgroup_mma_wait(0, [pending] + ([] if product.a is None else [a]), first=True)


def _operand(x: Any) -> np.ndarray:
    values = x.a if isinstance(x, Tensor) else x.read(asynchronous=True)
    if x.dtype == gl.float32:  # the tensor cores read TF32
        values = (np.ascontiguousarray(values).view(np.uint32) & 0xFFFFE000).view(np.float32)
    return values


def _product(a: np.ndarray, b: np.ndarray, dtype: gl.dtype) -> np.ndarray:
    kind = dtypes.REGISTER[dtype]
    left, right = (torch.from_numpy(x.astype(kind, copy=False)) for x in (a, b))
    return (left @ right).numpy()


def _check(a: Any, b: Any, acc: Any, num_warps: int) -> None:
    if not isinstance(acc, Tensor | Accumulator):
        raise TypeError(f"warpgroup_mma: the accumulator is no tensor: {acc!r}")
    if not isinstance(b, View):
        raise LayoutError("warpgroup_mma: operand B lies in shared memory")
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise LayoutError(f"warpgroup_mma: operands have two dims, not {a.shape} and {b.shape}")
    (m, k), (k_b, n), bits = a.shape, b.shape, dtypes.ITEMSIZE[a.dtype] * 8
    if k != k_b or list(acc.shape) != [m, n] or a.dtype.primitive_bitwidth != bits:
        raise LayoutError(f"warpgroup_mma: {a.shape} @ {b.shape} -> {list(acc.shape)}")
    if a.dtype != b.dtype and not (a.dtype.is_fp8() and b.dtype.is_fp8()):
        raise LayoutError(f"warpgroup_mma: operands of {a.dtype} and {b.dtype}")
    if m % 64 or n % 8 or k * bits % _K_BITS:
        raise LayoutError(f"warpgroup_mma: no instruction for M {m}, N {n}, K {k} of {a.dtype}")
    _check_accumulator(acc.layout, a, n, num_warps)
    for operand, name, contiguous in ((a, "A", 1), (b, "B", 0)):
        if isinstance(operand, Tensor):
            _check_register_operand(operand, acc.layout)
        elif not isinstance(operand.layout, gl.NVMMASharedLayout):
            raise LayoutError(f"warpgroup_mma: operand {name} has layout {operand.layout}")
        elif bits != 16 and operand.strides[contiguous] != bits // 8:
            raise LayoutError(
                f"warpgroup_mma: operand {name} of {operand.dtype} is not contiguous along K"
            )


def _check_accumulator(layout: Any, a: Any, n: int, num_warps: int) -> None:
    if layouts.is_auto(layout):
        return
    if not isinstance(layout, gl.NVMMADistributedLayout) or layout.version[0] != 3:
        raise LayoutError(f"warpgroup_mma: the accumulator's layout is {layout}")
    if prod(layout.warps_per_cta) != num_warps or num_warps % 4:
        raise LayoutError(f"warpgroup_mma: layout {layout} in a partition of {num_warps} warps")
    expected_k = _K_BITS // (dtypes.ITEMSIZE[a.dtype] * 8)
    instr_m, instr_n, instr_k = layout.instr_shape
    if instr_m != 16 or instr_k != expected_k or instr_n > 256 or n % instr_n:
        raise LayoutError(
            f"warpgroup_mma: instr_shape {layout.instr_shape}, expected "
            f"[16, a divisor of {n} up to 256, {expected_k}]"
        )


def _check_register_operand(a: Tensor, accumulator: Any) -> None:
    if layouts.is_auto(a.layout):
        return
    expected = gl.DotOperandLayout(0, accumulator, 32 // (dtypes.ITEMSIZE[a.dtype] * 8))
    if a.layout != expected:
        raise LayoutError(f"warpgroup_mma: operand A has layout {a.layout}, expected {expected}")


def warpgroup_mma_wait(num_outstanding: Any = 0, deps: Any = None, *, first: bool = False) -> Any:
    """Waits until at most so many products fly; what still flies among ``deps`` stays in flight.

    A register operand of a product that ends here must be among ``deps``: nothing else keeps its
    registers.
    """
    if deps is None:
        raise LayoutError("warpgroup_mma_wait: deps must be given")
    machine().switch()
    me, deps = current(), unwrap(deps)
    products, left = products_of(me), as_constant(num_outstanding, "the number of products")
    while len(products.flying) > left:
        product = products.flying.popleft()
        product()
        product.retired = True
        me.clock[products.agent] = product.number
        if product.a is not None and not any(dep is product.a for dep in deps):
            message = f"register operand A of the wgmma at {product.site} is not among the deps"
            machine().report(InFlightError, f"{message} of the wait at {site()}")
    results = tuple(
        Tensor(dep.value(), dep.dtype, dep.layout)
        if isinstance(dep, Accumulator) and dep.product.retired
        else dep
        for dep in deps
    )
    return results[0] if first or len(results) == 1 else results


def fly_on(partition: Any) -> list[Product]:
    """Products that nothing waited for when the partition ends."""
    return list(products_of(partition).flying)
