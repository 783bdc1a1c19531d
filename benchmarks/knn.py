"""kNN over 50,000 x 10,000 features of width 2048: this project, scikit-learn and plain PyTorch.

    python benchmarks/knn.py [--queries=10000] [--bank=50000] [--width=2048] [--k=200] [--rounds=5] [--tree=PATH]

Each takes the same float32 features in memory to the cosines and rows of the k nearest, normalisation
included, in a process of its own; they take turns. Medians of wall time and of processor time are told, because
other jobs may share a machine. torch: two normalisations, one matmul, one topk. --tree: a checkout of another
commit of this project, as one more contender. Prints a table and writes benchmarks/knn.json.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
CONTENDERS = {'simclr_jax': 'ours', 'before': 'ours', 'scikit-learn': 'with_sklearn', 'torch': 'with_torch'}
SIZES = {'queries': 10_000, 'bank': 50_000, 'width': 2048, 'k': 200}


def make_features(bank, queries, width, classes=10):
    """Clusters of unequal directions, rectified as pooled activations are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width)).astype(np.float32)
    labels = rng.integers(0, classes, bank + queries)
    rows = rng.standard_normal((bank + queries, width), np.float32)
    rows *= 4
    rows += centres[labels]
    np.maximum(rows, 0, out=rows)
    return (rows[:bank], labels[:bank].astype(np.int32)), (rows[bank:], labels[bank:].astype(np.int32))


def ours(bank, labels, queries, k):
    from simclr_jax.evaluate.features import Features
    from simclr_jax.evaluate.knn import nearest_neighbours
    return nearest_neighbours(Features(bank, labels), queries, k=k)


def with_sklearn(bank, labels, queries, k):
    from sklearn.neighbors import NearestNeighbors
    search = NearestNeighbors(n_neighbors=k, metric='cosine', algorithm='brute')
    distance, row = search.fit(bank).kneighbors(queries)
    return 1 - distance, row


def with_torch(bank, labels, queries, k):
    import torch
    from torch.nn.functional import normalize
    similarity, row = (normalize(torch.from_numpy(queries)) @ normalize(torch.from_numpy(bank)).T).topk(k)
    return similarity.numpy(), row.numpy()


def vote(similarity, row, labels, temperature=0.07):
    votes = np.zeros((len(row), labels.max() + 1))
    np.add.at(votes, (np.arange(len(row))[:, None], labels[row]), np.exp((similarity - 1) / temperature))
    return votes.argmax(1)


def contender(name, sizes):
    """Serves requests for one search over all queries; the answer has its times, votes and rows in a file."""
    import turns
    (bank, labels), (queries, _) = make_features(sizes['bank'], sizes['queries'], sizes['width'])
    search = globals()[CONTENDERS[name]]
    search(bank, labels, queries[:1024], sizes['k'])        # imports and compilation

    def run(keep):
        answer = turns.timed(lambda: search(bank, labels, queries, sizes['k']))
        similarity, row = answer.pop('result')
        np.savez(keep, rows=np.sort(row, axis=1), votes=vote(similarity, row, labels))
        return answer

    package = {'scikit-learn': 'sklearn', 'torch': 'torch'}.get(name)
    turns.serve({'version': __import__(package).__version__ if package else ''}, {'run': run})


def measure(names, sizes, rounds, tree):
    """{contender: its times}, {contender: its rows and votes}, {contender: version}."""
    import turns
    arguments = [f'--{name}={value}' for name, value in sizes.items()]
    running = {name: turns.Contender([sys.executable, __file__, f'--contender={name}', *arguments],
                                     {'PYTHONPATH': str(tree if name == 'before' else ROOT)}) for name in names}
    times, found = {name: {'seconds': [], 'cpu_seconds': []} for name in names}, {}
    with tempfile.TemporaryDirectory() as folder:
        versions = {name: one.start()['version'] for name, one in running.items()}
        for _ in range(rounds):
            for name, one in running.items():
                for what, value in one.ask('run', keep=f'{folder}/{name}.npz').items():
                    times[name][what].append(round(value, 3))
        for name, one in running.items():
            one.close()
            with np.load(f'{folder}/{name}.npz') as kept:
                found[name] = kept['rows'], kept['votes']
    return times, found, versions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in {**SIZES, 'rounds': 5}.items():
        parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--tree', help='a checkout of another commit')
    parser.add_argument('--contender', choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in SIZES}
    if arguments.contender:
        return contender(arguments.contender, sizes)
    import runs
    names = [name for name in CONTENDERS if name != 'before' or arguments.tree]
    rows, found, versions = measure(names, sizes, arguments.rounds, arguments.tree)
    expected = make_features(sizes['bank'], sizes['queries'], sizes['width'])[1][1]
    reference = found['scikit-learn']
    size = '{queries:,} x {bank:,}, width {width}, k = {k}'.format(**sizes)
    print(f'{size}; {len(os.sched_getaffinity(0))} cores')
    print(f'{"":<14}{"wall s":>10}{"CPU s":>10}{"top-1 %":>10}{"other rows":>12}{"other votes":>13}')
    for name, times in rows.items():
        neighbours, votes = found[name]
        times |= {'top1': float((votes == expected).mean()),
                  'rows_unlike_sklearn': int((neighbours != reference[0]).any(1).sum()),
                  'votes_unlike_sklearn': int((votes != reference[1]).sum())}
        wall, cpu = (statistics.median(times[what]) for what in ('seconds', 'cpu_seconds'))
        print(f'{name:<14}{wall:>10.2f}{cpu:>10.2f}{100 * times["top1"]:>10.2f}{times["rows_unlike_sklearn"]:>12}'
              f'{times["votes_unlike_sklearn"]:>13}')
    runs.keep('knn', f'{size}, scikit-learn {versions["scikit-learn"]}, torch {versions["torch"]}', rows)


if __name__ == '__main__':
    main()
