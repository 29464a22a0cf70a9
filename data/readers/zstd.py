"""zstd, as Python has it from 3.14 on: the one place that says where it comes from before."""

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdError, ZstdFile, compress
else:
    from backports.zstd import DecompressionParameter, ZstdError, ZstdFile, compress

__all__ = ["DecompressionParameter", "ZstdError", "ZstdFile", "compress"]
