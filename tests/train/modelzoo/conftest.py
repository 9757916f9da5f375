import sys
from pathlib import Path

# The trainer files of these tests are written by one module beside them.
sys.path.insert(0, str(Path(__file__).parent))
