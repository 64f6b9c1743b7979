"""The checkpoint folder: one safetensors shard per task, written whole or not at all.

layout.py    what lies where in the folder
folder.py    how a folder changes whole or not at all
write.py     writing one
source.py    where its files are: in a folder, or in a commit on the Hub
shard.py     one safetensors file, held against its SHA-256 as it is read
read.py      reading one: the mirror of `write.py`
card.py      the model card
metadata.py  what stands at its top, for the Hub
"""

from .folder import COMMITTED as COMMITTED
from .layout import CONFIG_FILE as CONFIG_FILE
from .layout import CheckpointError as CheckpointError
from .layout import sha256_of as sha256_of
from .layout import shard_file as shard_file
from .read import finder_of as finder_of
from .read import read_config as read_config
from .read import read_generation_config as read_generation_config
from .read import read_into as read_into
from .read import shards_of_all as shards_of_all
from .shard import Shard as Shard
from .source import Source as Source
from .source import source_of as source_of
from .source import steadily as steadily
from .write import write_checkpoint as write_checkpoint
