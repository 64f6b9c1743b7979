"""The checkpoint folder: one safetensors shard per task, written whole or not at all.

layout.py    what lies where in the folder
folder.py    how a folder changes whole or not at all
write.py     writing one
read.py      reading one: the mirror of `write.py`
card.py      the model card
"""

from .folder import COMMITTED as COMMITTED
from .layout import CONFIG_FILE as CONFIG_FILE
from .layout import CheckpointError as CheckpointError
from .layout import sha256_of as sha256_of
from .layout import shard_file as shard_file
from .read import read_config as read_config
from .read import read_generation_config as read_generation_config
from .read import read_tensors as read_tensors
from .read import reader_of as reader_of
from .write import write_checkpoint as write_checkpoint
