"""What orbax 0.12 has no public form for: checkpoints on `s3://`, and how long tensorstore tries.

tensorstore has a driver for S3, and orbax's own code treats it as remote where it meets it; what is missing is
the place where a path becomes a driver.
"""

import functools
import os

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_LONGEST_PAUSE = 32         # seconds between two tries, tensorstore's own


@functools.cache
def teach_orbax(seconds: float) -> None:
    """Has orbax write `s3://` by tensorstore's driver, at AWS_ENDPOINT_URL if there is one, and try for `seconds`."""
    normalized, of_gcs = tensorstore_utils._normalize_path, gcs_utils.get_kvstore_for_gcs
    tensorstore_utils._normalize_path = lambda path: normalized(path).replace('s3:/', 's3://')
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(('gs://', 's3://'))
    gcs_utils.get_kvstore_for_gcs = lambda path: _spec(path) if path.startswith('s3://') else of_gcs(path)
    retries = {'max_retries': _retries(seconds), 'initial_delay': '1s', 'max_delay': f'{_LONGEST_PAUSE}s'}
    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        context.update({'gcs_request_retries': retries, 's3_request_retries': retries})


def _retries(seconds: float) -> int:
    """How many tries take so long, after pauses of 1, 2, 4, ... seconds."""
    count, pause = 0, 1
    while seconds > 0:
        seconds, pause, count = seconds - pause, min(2 * pause, _LONGEST_PAUSE), count + 1
    return count


def _spec(path: str) -> dict[str, str]:
    bucket, _, key = path.removeprefix('s3://').partition('/')
    spec = {'driver': 's3', 'bucket': bucket, 'path': key}
    endpoint = os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
    region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
    if endpoint:
        spec |= {'endpoint': endpoint, 'aws_region': region or 'us-east-1'}
    elif region:
        spec['aws_region'] = region
    return spec
