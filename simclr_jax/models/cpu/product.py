"""Products of rows with rows on a CPU, by the compiled loop of `_product.cc` in the caller's threads, or by numpy."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simclr_jax.models.cpu import loops

ROWS = 192      # of a product at a time, for the loop's best speed: they and a block of the others fit a cache
_BLOCK = 64     # rows that are packed together: a multiple of the loop's own


class Rows:
    """Rows [N, K], each times its `scale` [N], ready for products with them; float32, a copy."""

    def __init__(self, rows: np.ndarray, scale: np.ndarray, pool: ThreadPoolExecutor):
        self.shape = count, width = rows.shape
        compiled = loops.library() if os.environ.get(loops.SWITCH) != 'off' else None
        library = compiled if hasattr(compiled, 'product_multiply') else None       # not in an older build
        self._library = library
        if library is None:
            self._packed = (rows * scale[:, None]).astype(np.float32, copy=False)
            return
        self._packed = np.empty((-(-count // _BLOCK), _BLOCK * width), np.float32)

        def pack(block: int) -> None:
            part = slice(block * _BLOCK, (block + 1) * _BLOCK)
            given, factors = (np.ascontiguousarray(array[part], np.float32) for array in (rows, scale))
            library.product_pack(*_addresses(given, factors), *map(ctypes.c_int64, given.shape),
                                 *_addresses(self._packed[block]))

        list(pool.map(pack, range(len(self._packed))))

    def products(self, others: np.ndarray) -> np.ndarray:
        """[M, N], of `others` [M, K] with the rows."""
        if self._library is None:
            return others.astype(np.float32, copy=False) @ self._packed.T
        others = np.ascontiguousarray(others, np.float32)
        out = np.empty((len(others), self.shape[0]), np.float32)
        sizes = map(ctypes.c_int64, (len(others), *self.shape))
        self._library.product_multiply(*_addresses(others, self._packed), *sizes, *_addresses(out))
        return out


def _addresses(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]
