"""Tar shards: writing them atomically, reading any record at random, and naming what is wrong with them.

A dataset is a folder of plain WebDataset tars (every WebDataset tool reads them), an index beside each tar, and a
manifest::

    shard-000000.tar  shard-000000.idx.npz  shard-000001.tar  ...  manifest.json

Decided here, and why:

* The manifest is written last and is the commit marker: a shard that it does not name does not exist. Handlers of a
  streaming reader cannot notice a tar that was cut at a sample boundary; the counts, sizes and hashes of a manifest
  can.
* A shard appears under its final name only when it is complete, synced and re-read (``.tmp`` file, fsync, rename, fsync
  of the folder). An exception in the producer finalises nothing.
* The same records give the same bytes (mtime 0, a fixed zip date in the index), so two runs can be compared by hash.
* Records are read with ``pread`` at indexed offsets: random order costs no more than sequential order, and no file
  position is shared between worker processes.
"""

from dslight.data.shards.check import Problem, verify, verify_shard
from dslight.data.shards.foreign import index_tars
from dslight.data.shards.format import MANIFEST, Index, Manifest, ShardError, ShardInfo, index_name
from dslight.data.shards.reader import Check, ShardReader, name_of_record
from dslight.data.shards.remote import Cache, Remote, is_remote
from dslight.data.shards.writer import ShardWriter, image_extension, record_members

__all__ = [
    "MANIFEST",
    "Cache",
    "Check",
    "Index",
    "Manifest",
    "Problem",
    "Remote",
    "ShardError",
    "ShardInfo",
    "ShardReader",
    "ShardWriter",
    "image_extension",
    "index_name",
    "index_tars",
    "is_remote",
    "name_of_record",
    "record_members",
    "verify",
    "verify_shard",
]
