"""torch, timm and torchvision for tests, or a skip where they are not installed: import this first.

Where torchvision's compiled operations do not fit torch (none of them is needed) their names are
declared, without which it cannot be imported.
"""

import importlib.util

import pytest

torch = pytest.importorskip('torch')        # of the extra [export]
for _package in ('torchvision', 'timm'):
    if not importlib.util.find_spec(_package):
        pytest.skip(f'{_package} is not installed', allow_module_level=True)

try:
    import torchvision  # noqa: F401
except RuntimeError:
    _operations = torch.library.Library('torchvision', 'DEF')
    for _name in ('nms', 'qnms'):
        _operations.define(f'{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

torch.set_num_threads(1)        # the networks of the tests are tiny
