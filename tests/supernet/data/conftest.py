import sys
from pathlib import Path

# The builders of small data sets live beside the contract suite, which needs them wherever it runs.
sys.path.append(str(Path(__file__).parents[2] / "contracts"))
