"""A small pretraining run, whose programs are the same in every file: compiled once."""

from simclr_jax.config import base_config, smoke, use_method


def small_config(method='simclr', **overrides):
    """Two steps on 64 shapes with an encoder of one block, and views by few operations: quickly compiled."""
    config = smoke(base_config())
    if method != 'simclr':
        use_method(config, method, num_layers=2, hidden_width=16, out_dim=8)
    config.update({'batch_size': 16, 'num_train_steps': 2})
    config.data.update({'train_split': 'train[:64]', 'test_split': 'test[:40]'})
    config.encoder.name = 'tests.encoders:OneBlock'
    config.augment.image_size = 16
    for name in ('jitter', 'grey', 'blur'):
        config.augment[name].probability = 0.0
    config.schedule.warmup_epochs = 0.0
    config.optimizer.learning_rate = 0.1
    config.eval.linear_at_end = False
    config.linear.update({'batch_size': 16, 'num_epochs': 1.0, 'pixel_floor': False})
    config.update_from_flattened_dict(overrides)
    return config
