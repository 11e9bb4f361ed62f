"""Double precision where the code asks for single: results that must be equal are then equal to ten digits.

In float32 no bound holds on every machine and still says something. The order of a sum, and with it its rounding, is
that of the CPU's vector instructions; a sum of n terms may be wrong by n / 2^24 of their sizes, and batch-norm over
four samples multiplies that a thousandfold. In float64 the same errors are 2^29 times smaller, so that a bound of 1e-10
leaves room for any order and none for a sample that is counted twice.
"""

from contextlib import contextmanager

from torch import Tensor


@contextmanager
def double_precision():
    """What the code makes float32 becomes float64; the weights of a model are for the caller to convert."""
    single, Tensor.float = Tensor.float, Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.float = single  # type: ignore[method-assign]
