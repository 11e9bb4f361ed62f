"""The Python API, for type checkers."""

from align.python.datasets import Dataset as Dataset
from align.python.datasets import Pair as Pair
from align.python.datasets import open_dataset as open_dataset
from align.python.models import Model as Model
from align.python.models import load as load
