"""Checkpoints on s3://: orbax 0.12 asks tensorstore for files and for Google's buckets alone.

tensorstore has a driver for S3, and orbax's own code treats it as remote where it meets it; what is missing is
the place where a path becomes a driver, which has no public form.
"""

import functools
import os

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils


@functools.cache
def teach_orbax() -> None:
    """Has orbax write `s3://` paths by tensorstore's driver for S3, at AWS_ENDPOINT_URL where there is one."""
    normalized, of_gcs = tensorstore_utils._normalize_path, gcs_utils.get_kvstore_for_gcs
    tensorstore_utils._normalize_path = lambda path: normalized(path).replace('s3:/', 's3://')
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(('gs://', 's3://'))
    gcs_utils.get_kvstore_for_gcs = lambda path: _spec(path) if path.startswith('s3://') else of_gcs(path)


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
