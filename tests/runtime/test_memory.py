"""What is said of memory that ran out."""

import types

import pytest

from simclr_jax.runtime.memory import is_out_of_memory, naming_needs, out_of_memory

GIB = 2**30


def test_a_full_disk_is_no_lack_of_memory():
    assert is_out_of_memory(RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.'))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(OSError('RESOURCE_EXHAUSTED: no space left on device'))


def test_the_sentence_has_what_the_program_needs():
    sizes = types.SimpleNamespace(argument_size_in_bytes=GIB, output_size_in_bytes=GIB, temp_size_in_bytes=9 * GIB,
                                  alias_size_in_bytes=GIB)
    program = types.SimpleNamespace(memory_analysis=lambda: sizes)
    with pytest.raises(MemoryError) as error, naming_needs(lambda: program):
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.')
    sentence = out_of_memory(error.value, batch_size=64, task='pretrain')
    assert 'a step needs 10.0 GiB of a device' in sentence and 'encoder_chunks' in sentence


def test_other_errors_and_programs_that_do_not_compile_leave_the_error_as_it_is():
    for given in (ValueError('other'), RuntimeError('Out of memory')):
        with pytest.raises(type(given)) as error, naming_needs(lambda: 1 / 0):
            raise given
        assert error.value is given
