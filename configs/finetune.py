"""Fine-tuning of a pretrained network at 1 %, 10 % or all of the labels (paper sec. 4.3, SimCLRv2).

    python -m simclr_jax.main --config=configs/finetune.py:share=0.01 --workdir=DIR    # DIR: that of the run

Data, image size and normalisation are those of the run in DIR; `--config.finetune.pretrained` names another
workdir or a file of weights. Beside it stands the same network trained from scratch on the same labels
(`--config.finetune.init=pretrained` leaves that out). The official ImageNet subsets: their lists of file
names with a folder, `--config.finetune.subset_file=1percent.txt`, or TFDS's,
`--config.data.source=imagenet2012_subset/1pct --config.data.test_split=validation`.

Published, ResNet-50, ImageNet, top-1 at 1 % / 10 % / 100 %: SimCLR 48.3 / 65.6 / 75.6 (paper Table 7 from
memory; 100 %: the notebook tf2/colabs/imagenet_results.ipynb), SimCLRv2 57.9 / 68.4 / 76.3 (README).
Not run here.

Numbers: google-research/simclr README, the command for 1 % (LARS, 0.005 x sqrt(B), 60 epochs, batch 1024,
no decay, no warm-up), from head layer 1; `:paper` is App. B.5 of the 2020 paper from memory: Nesterov SGD,
0.05 x B/256, batch 4096, from h; 60 epochs at 1 % and 30 beyond.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, share=1.0, paper=False)
    config = recipes.base_config()
    config.task = 'finetune'
    # Empty: what the pretraining run has.
    config.data.update({'source': '', 'train_split': '', 'test_split': ''})
    config.finetune.label_share = options.share
    config.finetune.num_epochs = 60.0 if options.share <= 0.01 else 30.0
    if options.paper:
        config.finetune.update({'layer': 0, 'batch_size': 4096, 'optimizer': 'sgd', 'nesterov': True,
                                'learning_rate': 0.05, 'scaling': 'linear'})
    else:
        config.finetune.layer = 1                       # README: ft_proj_selector 1
    if options.smoke:
        config.finetune.update({'num_epochs': 2.0, 'batch_size': 64})
        config.log.every_steps = 4
    return config
