"""Every convolution of a network alone, ours beside XLA's and PyTorch's, for train_step.py --layers."""

import json
import statistics
import tempfile

from contenders import contender, said

KINDS = ('forward', 'kernel gradient', 'input gradient')


def out_size(size, kernel, stride):
    """Pixels along a side of what a convolution makes, padded by half its kernel."""
    return (size + 2 * (kernel // 2) - kernel) // stride + 1


def layer_flops(images, kernel, stride):
    """FLOPs of a convolution of images [N, H, W, C] with a kernel [k, k, C, F], or of either gradient."""
    n, height, width, channels = images
    k, _, _, features = kernel
    return 2 * n * out_size(height, k, stride) * out_size(width, k, stride) * k * k * channels * features


def layers(spec, names, options):
    """A row for each distinct convolution of a cell's network and each kind: GFLOP/s of every side."""
    found = said('ours', spec | {'task': 'trace', 'dtype': 'float32'}, options)['convolutions']
    times = {}
    for convolution in found:
        key = json.dumps(convolution)
        times[key] = times.get(key, 0) + 1
    rows = []
    with tempfile.TemporaryDirectory() as caches:
        sides = {name: contender(name, {'task': 'layers'}, options, caches)
                 for name in ('ours', 'plain', 'channels-last') if name in names}
        for side in sides.values():
            side.start()
        for key, count in times.items():
            images, kernel, stride = json.loads(key)
            for kind in KINDS[:2] if kernel[2] == 3 else KINDS:     # no gradient of the images themselves
                arguments = {'kind': kind, 'images': images, 'kernel': kernel, 'stride': stride,
                             'dtype': spec['dtype']}
                seconds = time_layer(sides, arguments, options.rounds)
                flops = layer_flops(images, kernel, stride)
                rows.append({**arguments, 'count': count, 'flops': flops, 'seconds': seconds})
        for side in sides.values():
            side.close()
    return rows


def time_layer(sides, arguments, rounds):
    """{name: median seconds}, in turns; the first call of each, which compiles, does not count."""
    seconds = {name: [] for name in sides}
    for turn in range(1 + rounds):
        for name in list(sides)[::-1] if turn % 2 else sides:
            answer = sides[name].ask('layer', budget=0.1 if turn else 0.0, **arguments)
            seconds[name] += [answer['seconds']] if turn else []
    return {name: statistics.median(values) for name, values in seconds.items()}


def layer_table(rows):
    """(columns, rows): GFLOP/s, and by how much ours is behind (or ahead, below 0) in a step, in ms."""
    names = list(rows[0]['seconds'])
    text = []
    for row in rows:
        (_, height, width, channels), (k, _, _, features) = row['images'], row['kernel']
        seconds = row['seconds']
        behind = ''
        if 'ours' in names and 'channels-last' in names:
            behind = f'{1e3 * row["count"] * (seconds["ours"] - seconds["channels-last"]):+.1f}'
        text.append([f'{k}x{k}/{row["stride"]} {channels} to {features}, {height}x{width}', f'{row["count"]}',
                     row['kind'], *(f'{row["flops"] / seconds[name] / 1e9:,.0f}' for name in names), behind])
    return ['convolution', 'in the net', 'kind', *(f'{name}, GFLOP/s' for name in names),
            'ours - PyTorch, ms a step'], text
