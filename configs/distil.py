"""Distillation of a fine-tuned encoder on unlabelled images, the third step of SimCLRv2 (Chen et al. 2020b, sec. 2).

    python -m simclr_jax.main --config=configs/finetune.py:share=0.01 --config.finetune.layer=0 --workdir=DIR
    python -m simclr_jax.main --config=configs/distil.py --workdir=DIR                 # self-distillation
    python -m simclr_jax.main --config=configs/distil.py:depth=50 --workdir=DIR        # into a ResNet-50

The first leaves DIR/finetuned.safetensors, the teacher. Data, image size and normalisation are the teacher's.
`:share=0.01` uses the true labels of that share too (eq. 3), and trains a student on them alone beside it.

Published, ResNet-50 on ImageNet, top-1 at 1 % / 10 % of the labels: fine-tuned 57.9 / 68.4 (google-research/simclr
README), distilled from a ResNet-152 (3x+SK) 73.9 / 77.5 (paper, abstract). Not run here on ImageNet. On Fashion-MNIST,
600 labels, by benchmarks/distil_fashion.py, mean of three seeds: supervised 77.2, teacher 79.0, student 78.3.

Numbers: LARS, crops and flips, the teacher's probabilities as in the paper; its epochs, batch, rate, temperature and
alpha were not at hand, those of simclr_jax/config/tasks.py are this project's.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, share=0.0, depth=0)
    config = recipes.base_config()
    config.task = 'distil'
    # Empty: what the teacher's run has.
    config.data.update({'source': '', 'train_split': '', 'test_split': ''})
    config.distil.label_share = options.share
    if options.depth:
        config.distil.student = 'config'
        config.encoder.depth = options.depth
    if options.smoke:
        config.distil.update({'num_epochs': 2.0, 'batch_size': 32})
        config.log.every_steps = 4
    return config
