"""SimCLR on the embedded data set `shapes`: the first run, minutes on two CPU cores.

    python -m simclr_jax.main --config=configs/smoke.py --workdir=/tmp/smoke

`configs/smoke.py:no_colour` leaves crop and flip alone (no jitter, no grey): the shortcut of sec. 3.1
of the paper, by which crops of one image are told apart by their colour histogram.
"""

from simclr_jax import config as recipes


def get_config(argument: str = ''):
    argument = recipes.parse_argument(argument, no_colour=False)
    config = recipes.base_config()
    config.data.source = 'shapes'
    return config
