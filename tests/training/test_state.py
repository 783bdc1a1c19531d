"""Where the rest of the program finds the variables of the online network and of the target."""

import pytest

from simclr_jax.training.state import TrainState


def make_state(method_state):
    return TrainState(step=0, params='online', batch_stats='statistics', opt_state=(),
                      method_state=method_state)


@pytest.mark.parametrize('method_state', [(), {'target': {'params': 'other', 'batch_stats': 'others'}}])
def test_the_online_variables_are_those_of_the_state(method_state):
    expected = {'params': 'online', 'batch_stats': 'statistics'}
    assert make_state(method_state).variables() == expected
    assert make_state(method_state).variables('online') == expected


def test_the_target_variables_are_those_of_the_method():
    target = {'params': 'other', 'batch_stats': 'others'}
    assert make_state({'target': target, 'queue': 'keys'}).variables('target') == target


def test_a_method_without_target_says_so():
    with pytest.raises(ValueError, match="eval.encoder is 'target': this method has no target network"):
        make_state(()).variables('target')


def test_another_network_is_refused_by_name():
    with pytest.raises(ValueError, match="eval.encoder is 'teacher': it takes 'online' or 'target'"):
        make_state({'target': {}}).variables('teacher')
