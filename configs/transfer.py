"""Transfer of a pretrained encoder to the small natural-image sets of the paper's Table 8, in one table.

    python -m simclr_jax.main --config=configs/transfer.py --config.data.dir=TFDS_DIR --workdir=DIR

DIR is the workdir of the run; `--config.transfer.pretrained` names another one, or a file of weights. The
sets must have been prepared (`tfds build dtd`, ...); others are named as
`--config.transfer.sources="('cifar10', 'folder:PATH')"`. Logistic regression by L-BFGS on features of centre
crops, the l2 chosen among 45 values on a held-out tenth of the training split; Aircraft, Pets, Caltech-101
and Flowers by the mean over classes.

Published, ResNet-50 1x, linear: Food 68.4, CIFAR-10 90.6, CIFAR-100 71.6, SUN397 58.8, Cars 50.3, Aircraft
50.3, DTD 74.5, Pets 83.6, Caltech-101 90.3, Flowers 91.2 (paper Table 8, from memory but for Cars). Not run
here.
Birdsnap is not in TFDS; VOC 2007 has several labels an image, and its 11-point mAP is not computed.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument)
    config = recipes.base_config()
    config.task = 'transfer'
    config.data.update({'source': '', 'train_split': '', 'test_split': ''})
    config.transfer.sources = (
        'food101', 'cifar10', 'cifar100', 'sun397', 'cars196', 'visual_domain_decathlon/aircraft', 'dtd',
        'oxford_iiit_pet', 'caltech101', 'oxford_flowers102')
    if options.smoke:
        config.transfer.sources = ('shapes:512',)
    return config
