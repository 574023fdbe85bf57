"""What happens to kbert's programs when things go wrong: python -m tests.chaos --help"""

import os

# Before numpy is imported: its threads would be lost in forks.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
