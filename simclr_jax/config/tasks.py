"""What the tasks beside pretraining read from a config: one block each, with its defaults."""

from simclr_jax.config.config_dict import ConfigDict

_ENCODER = {
    'pretrained': '',                   # the encoder: a workdir, a file of weights or hf:OWNER/NAME; '' = --workdir
    'checkpoint': 'last',               # last, best (by kNN), or a step
    'encoder': '',                      # online, or target; '' = as the run's own eval.encoder
    'layer': 0,                         # as eval.layer; SimCLRv2 fine-tunes from 1
}
_TASKS = {
    # The offline linear evaluation (README of the official code, 'linear evaluation' on ImageNet).
    'linear': {
        **_ENCODER,
        'solver': 'sgd',                # sgd: the paper's, with crops; lbfgs: to convergence on centre crops
        'l2': 'sweep',                  # of lbfgs: 45 values, the best on a held-out tenth; or a number, 1/C
        'pixel_floor': True,            # L-BFGS on the raw pixels beside it, where they fit in memory
        'augment': True,                # sgd: crops and flips in training; False: centre crops, encoded once
        'num_epochs': 90.0,
        'batch_size': 4096,
        'learning_rate': 0.1,           # momentum SGD, linear scaling, cosine, no warm-up
        'momentum': 0.9,
        'nesterov': True,               # tf2/model.py builds momentum SGD with nesterov=True
        'weight_decay': 1e-6,
    },
    # kNN alone (Wu et al. 2018, sec. 3.4).
    'knn': {
        **_ENCODER,
        'k': (1, 20, 200),
        'temperature': 0.07,
        'pixel_floor': True,            # the raw pixels beside it, where they fit in memory
    },
    # Fine-tuning as the README of the official code does on 1 % of ImageNet's labels.
    'finetune': {
        **_ENCODER,                     # layer: the classifier sits on h, or on head layer k (ft_proj_selector)
        'from_block': -1,               # -1: all is trained; k: what lies after stage k (0: after the stem);
                                        # 4: the classifier alone (fine_tune_after_block)
        'init': 'both',                 # pretrained; scratch: supervised training from random weights; both
        'label_share': 1.0,             # of the training split, class-balanced, by the seed; 0.1, 0.01
        'subset_file': '',              # or a list of file names, one a line (simclr's ImageNet lists)
        'num_epochs': 60.0,
        'batch_size': 1024,
        'optimizer': 'lars',            # lars, sgd, adamw
        'learning_rate': 0.005,         # cosine, no warm-up
        'scaling': 'sqrt',              # as optimizer.scaling
        'momentum': 0.9,
        'nesterov': False,              # the paper's SGD has it (App. B.5), the official LARS has not
        'weight_decay': 0.0,
        'zero_init': False,             # the classifier starts at zero instead of N(0, 0.01)
    },
    # The third step of SimCLRv2: a student learns from a fine-tuned teacher (Chen et al. 2020b, sec. 2).
    'distil': {
        'teacher': '',                  # a file with a classifier, as finetune writes; '' = --workdir's
        'student': 'self',              # self: the teacher's architecture; config: config.encoder; both from random
                                        # weights; or a workdir or file of weights to start from
        'temperature': 1.0,             # tau of eq. 2, of both softmaxes
        'label_share': 0.0,             # of the training split, whose labels are used too (eq. 3); 0: none
        'alpha': 0.5,                   # of eq. 3: the weight of the teacher beside these labels
        'without': True,                # also a student of the same steps on the labels alone, where there are any
        'num_epochs': 400.0,            # over the training split
        'batch_size': 1024,
        'optimizer': 'lars',
        'learning_rate': 0.1,           # cosine, no warm-up
        'scaling': 'linear',
        'momentum': 0.9,
        'nesterov': False,
        'weight_decay': 1e-6,
    },
    # Logistic regression on several data sets (Chen et al. 2020, App. B.8).
    'transfer': {
        **_ENCODER,
        'sources': (),                  # as data.source: ('cifar10', 'folder:PATH')
        'l2': 'sweep',                  # as linear.l2
        'pixel_floor': True,            # the raw pixels beside it, where they fit in memory
    },
    # Ahead-of-time compilation for devices at hand or not.
    'plan': {
        'topology': '',                 # '' = the devices at hand; TPU slices: v4:4x4x2, 2xv5e:4x8; GPUs: h100:2x8
        'memory_gib': 0.0,              # of a device; 0 = what it says, or the published figure
        'search': True,                 # for the largest batch that fits: several compiles
        'max_batch': 0,                 # where the search ends; 0 = 64 times where it starts
        'chunks': 8,                    # also searched with, where encoder_chunks is 1
        'num_classes': 1000,            # of the online probe: no data set is read
        'num_images': 1_281_167,        # of the training split: the rows of a memory bank
    },
    # The input path of a data set, taken apart.
    'bench_input': {
        'num_images': 256,              # for each part that is measured
        'images_per_second': 0.0,       # of the accelerator to feed; 0 = measured, where one is at hand
    },
    # Features of `data.source` to a file.
    'embed': {
        **_ENCODER,
        'split': '',                    # '' = data.train_split
        'file': '',                     # .npz, .npy or .parquet; '' = features.npz and .parquet in --workdir
    },
    # The nearest images to given ones, from a file of features.
    'search': {
        'query': (),                    # image files: FILE, or ('a.png', 'b.png')
        'features': '',                 # of --config.task=embed; '' = features.npz in --workdir
        'k': 10,
        'pretrained': '',               # '' = the encoder that the file of features names, at its step
        'checkpoint': 'last',           # of `pretrained`
        'encoder': '',
    },
    # A run on one page.
    'report': {
        **_ENCODER,
        'max_images': 2000,             # of each split, for neighbours, maps and the confusion matrix
        'num_queries': 10,              # on the sheet of neighbours
        'tsne': True,                   # beside the principal components
    },
    # The encoder as files for other programs, see weights/write/export.py.
    'export': {
        **_ENCODER,                     # layer: of the last three formats; the others hold encoder and head
        'formats': (),                  # of torch, flax, onnx, savedmodel, stablehlo; () = all installed ones
        'dir': '',                      # where to; '' = export/ in --workdir
        'normalize_inside': True,       # the last three take images in [0, 1]; False: normalised ones
        'license': '',                  # for the model card: of the weights, as the Hugging Face Hub names it
        'push_to_hub': '',              # OWNER/NAME: upload the files to this repository of the Hub
    },
    # A grid of runs, see simclr_jax/studies/grid.py; configs/studies/ has the grids.
    'study': {
        'grid': None,                   # what is run; from a file of configs/studies/
        'only': '',                     # names of cells, with commas between; '' = all
        'num_seeds': 1,                 # runs of each cell, from config.seed on
    },
}


def task_configs() -> dict[str, ConfigDict]:
    """{task: its block}, for `config.base_config`."""
    return {name: ConfigDict(block) for name, block in _TASKS.items()}
