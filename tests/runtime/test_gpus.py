"""What a run says of a GPU, and how its step is compiled for one. tests/test_launch.py has the launch scripts."""

from types import SimpleNamespace

import pytest

from simclr_jax.runtime import gpus


def say(device, **changes):
    return gpus.notes(device, **{'deterministic': True, 'keeps_programs': True, 'dtype': 'bfloat16',
                                 'best_dtype': 'bfloat16', **changes})


H100 = SimpleNamespace(platform='gpu', device_kind='NVIDIA H100', compute_capability='9.0')
T4 = SimpleNamespace(platform='gpu', device_kind='Tesla T4', compute_capability='7.5')


@pytest.mark.parametrize('device, changes, sentence', [
    (H100, {'deterministic': False}, 'deterministic is False: on a GPU'),
    (H100, {'keeps_programs': False}, 'Compiled programs are not kept'),
    (T4, {'best_dtype': 'float32'}, 'Tesla T4 (compute capability 7.5; 8.0 or more is needed)')])
def test_what_keeps_a_gpu_from_the_same_digits_or_from_its_speed_is_said_once(device, changes, sentence):
    note, = say(device, **changes)
    assert sentence in note


def test_nothing_is_said_where_all_is_well_or_there_is_no_gpu():
    assert not say(H100) and not say(T4, dtype='float32', best_dtype='float32')
    assert not say(SimpleNamespace(platform='cpu'), deterministic=False, keeps_programs=False)


@pytest.mark.parametrize('deterministic', [True, False])
def test_only_a_gpu_has_compiler_options(deterministic):
    options = gpus.compiler_options('gpu', deterministic=deterministic)
    assert options == {'xla_allow_excess_precision': False, 'xla_gpu_exclude_nondeterministic_ops': deterministic}
    assert gpus.compiler_options('cpu', deterministic=deterministic) is None
    assert gpus.compiler_options('tpu', deterministic=deterministic) is None
