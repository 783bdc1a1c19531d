"""How fast this project is beside the best peer of each benchmark, and was before: one table and one figure.

    python benchmarks/ratios.py         # draws docs/ratios.svg from the JSON of the benchmarks

A ratio is the peer's time over ours, or our rate over the peer's: above 1 ours is faster. The peer is the fastest of
those that were measured in the same run; its name stands beside the line.
"""

import statistics

from table_cells import ROOT, read

INPUTS = {'ours crops': 'decode and crop on the host, 224 px', 'ours views': 'all views on the host, 224 px',
          'ours device': 'all views on the device, 32 px'}


def lines():
    """[(what, ours now / best peer, ours before / the same or None, the peer)], in the order of the figure."""
    return [*_steps(), *_inputs(), *_nt_xent(), *_knn(), *_encoder(), *_learning()]


def _best(rates, peers):
    """The fastest of `peers`, a dict of name: name in words, and its rate."""
    name = max((name for name in peers if name in rates), key=rates.get)
    return peers[name], rates[name]


def _steps():
    peers = {'eager': 'PyTorch', 'channels-last': 'PyTorch, channels last', 'compiled': 'torch.compile',
             'lightly': 'Lightly'}
    everything = read('train_step')

    def rates(cell):
        return {row['contender']: row['views_per_second'] for title, entry in everything.items()
                if title.startswith(f'{cell}:') for row in entry['rows']}

    for cell, name in (('resnet18-16', 'ResNet-18, 16 channels, 32 px'),
                       ('resnet18-64', 'ResNet-18, 64 channels, 32 px'),
                       ('resnet50', 'ResNet-50, 224 px')):
        for vectors, prefix in (('AVX-512', ''), ('AVX2', 'AVX2 ')):
            now = rates(prefix + cell)
            peer, best = _best(now, peers)
            yield f'training step: {name}, {vectors}', now['ours'] / best, None, peer


def _inputs():
    peers = {'OpenCV': 'OpenCV', 'albumentations': 'albumentations', 'OpenCV crops': 'OpenCV'}
    everything = read('input_path')['rows']
    for setting, ours in (('224', 'ours crops'), ('blur', 'ours views'), ('32', 'ours device')):
        now = {row['contender']: row['images_per_cpu_second'] for row in everything if row['setting'] == setting}
        peer, best = _best(now, {name: words for name, words in peers.items()
                                 if name.endswith('crops') == ours.endswith('crops')})
        yield f'input: {INPUTS[ours]}', now[ours] / best, now[ours.replace('ours', 'before')] / best, peer


def _nt_xent():
    for size in (1024, 4096, 8192):
        rates = {row['contender']: 1 / row['median_cpu_seconds'] for row in read('nt_xent')['rows']
                 if row['n'] == size and 'median_cpu_seconds' in row}
        peer, best = _best(rates, {'lightly': 'Lightly', 'optax': 'optax', 'dense': 'the whole matrix in JAX'})
        yield f'NT-Xent of {size:,} images, both passes', rates['ours'] / best, None, peer


def _knn():
    (entry,) = read('knn').values()
    rates = {name: 1 / statistics.median(row['seconds']) for name, row in entry['rows'].items()}
    peer, best = _best(rates, {'torch': 'PyTorch', 'scikit-learn': 'scikit-learn'})
    yield 'kNN of 10,000 in 50,000', rates['simclr_jax'] / best, rates.get('before', 0) / best or None, peer


def _encoder():
    (entry,) = read('encoder_throughput').values()
    rates = {row['contender']: row['images_per_second'] for row in entry['rows']}
    peer, best = _best(rates, {'torch, channels-last': 'PyTorch, channels last', 'torch, compiled': 'torch.compile'})
    yield 'features of ResNet-50, 224 px', rates['ours, encoder(images)'] / best, None, peer
    for state, words in (('warm', ''), ('cold', ', nothing compiled')):
        row = {name: statistics.median(seconds) for name, seconds in
               read('start')['seconds'][f'`load_encoder` and first features, {state}'].items()}
        peer = 'PyTorch and timm'
        yield f'import, load, first features{words}', row[peer] / row['now'], row[peer] / row['d4a3294'], peer


def _learning():
    """Processor seconds of a run without its first step, which compiles, of the same seeds on both sides."""
    rows = read('learning')['curves']['rows']
    for method, title in (('simclr', 'SimCLR'), ('moco_v2', 'MoCo v2'), ('byol', 'BYOL')):
        spent = {side: statistics.median(row['processor_seconds'][-1] - row['first_step_seconds'] for row in rows
                                         if (row['data'], row['method'], row['side']) == ('5,000', method, side))
                 for side in ('ours', 'lightly')}
        yield f'run of {title} with views, 28 px', spent['lightly'] / spent['ours'], None, 'Lightly'


def draw(path):
    import matplotlib
    matplotlib.use('svg')
    import matplotlib.pyplot as plt
    matplotlib.rcParams.update({'svg.hashsalt': 'ratios', 'font.size': 8})
    found = lines()[::-1]
    figure, axis = plt.subplots(figsize=(7.5, 0.26 * len(found) + 0.9), layout='constrained')
    for row, (_, now, before, peer) in enumerate(found):
        axis.plot([1, now], [row, row], color='#bbbbbb', linewidth=1, zorder=1)
        axis.scatter(now, row, color='#1f6fb4' if now >= 1 else '#c8553d', s=28, zorder=3)
        if before:
            axis.scatter(before, row, facecolor='white', edgecolor='#666666', s=22, zorder=2)
        axis.annotate(f'{now:.2f}', (max(now, before or 0, 1), row), (6, 0), textcoords='offset points', va='center')
        axis.annotate(peer, (1, row), (1.01, row), xycoords=('axes fraction', 'data'), va='center',
                      textcoords=('axes fraction', 'data'), color='#666666', annotation_clip=False)
    axis.axvline(1, color='black', linewidth=0.8)
    axis.set(xscale='log', yticks=range(len(found)), yticklabels=[what for what, *_ in found],
             xlabel='times as fast as the best peer (named at the right); blue: faster, red: slower, '
                    'ring: before')
    axis.set_xticks([0.5, 1, 2, 4], ['0.5', '1', '2', '4'])
    axis.minorticks_off()
    axis.set_xlim(0.5, 1.5 * max(now for _, now, *_ in found))
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.tick_params(axis='y', length=0)
    figure.savefig(path, metadata={'Date': None})


if __name__ == '__main__':
    draw(ROOT / 'docs' / 'ratios.svg')
    for what, now, before, peer in lines():
        print(f'{what:45} {now:6.2f} {f"{before:6.2f}" if before else "":8} {peer}')
