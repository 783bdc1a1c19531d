"""Distillation: the loss of the paper, what it leaves, and what it refuses."""

import json

import jax
import numpy as np
import pytest

from simclr_jax.config import base_config
from simclr_jax.evaluate.distil import distil, distillation_loss
from simclr_jax.evaluate.pretrained import as_imported, load_pretrained
from simclr_jax.weights.tensors import write_flax

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def tuned(workdir, tmp_path_factory):
    """A directory with a teacher, finetuned.safetensors, that is sure of itself."""
    path, pretrained = tmp_path_factory.mktemp('tuned'), load_pretrained(workdir)
    kernel = np.random.default_rng(0).normal(size=(32, 10)).astype(np.float32)
    write_flax(path / 'finetuned.safetensors', as_imported(pretrained, classifier={
        'kernel': 20 * kernel, 'bias': np.zeros(10, np.float32)}, card={'recipe': pretrained.config.to_dict()}))
    return str(path)


def distil_config(**settings):
    config = base_config()
    config.task, config.data.source, config.data.train_split, config.data.test_split = 'distil', '', '', ''
    config.log.every_steps = 4
    config.distil.update({'batch_size': 32, 'num_epochs': 1.0, 'optimizer': 'sgd', 'learning_rate': 0.05,
                          'scaling': 'none', **settings})
    return config


@pytest.mark.parametrize('temperature', [0.1, 1.0, 4.0])
def test_the_loss_is_the_papers_eq_2(temperature):
    """-sum over images and classes of P_teacher log P_student, both softmaxes at tau, in float64."""
    logits, goal = 3 * np.random.default_rng(0).normal(size=(2, 5, 4))
    softmax = lambda x: np.exp(x / temperature) / np.exp(x / temperature).sum(1, keepdims=True)
    expected = -np.mean([sum(p * np.log(q) for p, q in zip(*rows)) for rows in zip(softmax(goal), softmax(logits))])
    np.testing.assert_allclose(jax.jit(distillation_loss)(logits.astype(np.float32), goal.astype(np.float32),
                                                          temperature), expected, rtol=1e-5)


def test_a_student_learns_to_answer_as_its_teacher_and_is_read_as_pretrained(tuned):
    """Self-distillation without any label; the table has the teacher beside it."""
    results = distil(distil_config(num_epochs=12.0, learning_rate=0.3), tuned)
    assert list(results) == ['teacher', 'student']
    with open(f'{tuned}/distil/metrics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    losses = [row['distil_teacher_loss'] for row in rows if 'distil_teacher_loss' in row]
    assert losses[-1] < losses[0] - 0.3
    student, teacher = (load_pretrained(f'{tuned}/{name}.safetensors') for name in ('distilled', 'finetuned'))
    assert student.classifier['kernel'].shape == teacher.classifier['kernel'].shape
    assert student.config.head.mode == 'none' and tuple(student.config.augment.mean) == (0.4, 0.5, 0.6)
    kernels = [each.variables['params']['encoder']['stem_conv']['kernel'] for each in (student, teacher)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3          # it began elsewhere
    with open(f'{tuned}/results.jsonl') as file:
        lines = [json.loads(line) for line in file]
    assert [line['encoder'] for line in lines if line['evaluation'] == 'distil'] == ['teacher', 'student']


def test_another_architecture_with_some_labels_and_the_student_without_a_teacher_beside_it(tuned, tmp_path):
    config = distil_config(teacher=f'{tuned}/finetuned.safetensors', student='config', label_share=0.25)
    config.encoder.update({'name': 'vit', 'arguments': {'width': 16, 'depth': 1, 'heads': 2, 'patch': 8}})
    results = distil(config, str(tmp_path))
    assert list(results) == ['teacher', 'student on the labels alone', 'student']
    assert load_pretrained(f'{tmp_path}/distilled.safetensors').config.encoder.name == 'vit'
    with open(tmp_path / 'results.jsonl') as file:
        assert {json.loads(line)['num_labels'] for line in file} == {30}        # a quarter of 128, balanced


def test_a_student_may_start_from_weights(tuned, workdir, tmp_path):
    distil(distil_config(teacher=f'{tuned}/finetuned.safetensors', student=workdir, learning_rate=0.0), str(tmp_path))
    start, end = (load_pretrained(path).variables['params']['encoder']
                  for path in (workdir, f'{tmp_path}/distilled.safetensors'))
    jax.tree.map(np.testing.assert_array_equal, start, end)


@pytest.mark.parametrize('settings, problem', [
    ({'temperature': 0.0}, 'distil.temperature is 0.0: it must be more than 0'),
    ({'alpha': 1.5}, 'distil.alpha is 1.5: it must be from 0 to 1'),
    ({'label_share': -0.1}, 'distil.label_share is -0.1'),
])
def test_settings_that_make_no_sense_are_refused_before_anything_is_read(settings, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        distil(distil_config(**settings), str(tmp_path))


def test_a_teacher_without_a_classifier_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match='has no classifier, which a teacher needs'):
        distil(distil_config(teacher=workdir), str(tmp_path))
    assert not list(tmp_path.iterdir())
