"""Trains runs one after the other in one process; run by test_distribution.py."""

import json
import sys

from kbert.settings import PretrainConfig
from kbert.train import pretrain

for folder, settings in json.loads(sys.argv[1]).items():
    pretrain(PretrainConfig(**settings), folder)
