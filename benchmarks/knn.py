"""kNN over 50,000 x 10,000 features of width 2048: this project, scikit-learn and plain PyTorch.

    python benchmarks/knn.py [--queries=10000] [--bank=50000] [--width=2048] [--k=200] [--rounds=2]

Each takes the same float32 features in memory to the cosines and rows of the k nearest, normalisation
included. The three alternate; of each the least wall time and the least processor time are told, because
other jobs share a machine. torch: two normalisations, one matmul, one topk. Prints a table and writes
benchmarks/knn.json.
"""

import argparse
import os
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (('queries', 10_000), ('bank', 50_000), ('width', 2048), ('k', 200), ('rounds', 2)):
        parser.add_argument(f'--{name}', type=int, default=value)
    arguments = parser.parse_args()
    (bank, labels), (queries, expected) = make_features(arguments.bank, arguments.queries, arguments.width)
    methods = {'simclr_jax': ours, 'scikit-learn': with_sklearn, 'torch': with_torch}
    rows = {name: {'seconds': [], 'cpu_seconds': []} for name in methods}
    for method in methods.values():                         # imports and compilation
        method(bank, labels, queries[:1024], arguments.k)
    found = {}
    for _ in range(arguments.rounds):
        for name, method in methods.items():
            wall, cpu = time.perf_counter(), time.process_time()
            similarity, row = method(bank, labels, queries, arguments.k)
            rows[name]['seconds'].append(time.perf_counter() - wall)
            rows[name]['cpu_seconds'].append(time.process_time() - cpu)
            found[name] = np.sort(row, axis=1), vote(similarity, row, labels)
            del similarity, row
    import runs
    import sklearn
    import torch
    reference = found['scikit-learn']
    size = f'{arguments.queries:,} x {arguments.bank:,}, width {arguments.width}, k = {arguments.k}'
    print(f'{size}; {os.cpu_count()} cores')
    print(f'{"":<14}{"wall s":>10}{"CPU s":>10}{"top-1 %":>10}{"other rows":>12}{"other votes":>13}')
    for name, times in rows.items():
        neighbours, votes = found[name]
        times |= {'top1': float((votes == expected).mean()),
                  'rows_unlike_sklearn': int((neighbours != reference[0]).any(1).sum()),
                  'votes_unlike_sklearn': int((votes != reference[1]).sum())}
        print(f'{name:<14}{min(times["seconds"]):>10.1f}{min(times["cpu_seconds"]):>10.1f}'
              f'{100 * times["top1"]:>10.2f}{times["rows_unlike_sklearn"]:>12}'
              f'{times["votes_unlike_sklearn"]:>13}')
    runs.keep('knn', f'{size}, scikit-learn {sklearn.__version__}, torch {torch.__version__}', rows)


if __name__ == '__main__':
    main()
