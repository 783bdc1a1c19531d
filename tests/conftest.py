"""Eight simulated CPU devices for every test, set before jax is first imported."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
