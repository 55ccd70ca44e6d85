"""To be imported before PyTorch, by scripts that train.

PyTorch's OpenMP threads wait for each other by spinning. Where something else runs, one of them is
not scheduled while the others spin for it, and training falls to a tenth (docs/speed.md). With a
bounded number of spins a quiet machine is as fast, and a busy one gives way. The variable is read
when libgomp is loaded, so it must be there before `import torch`; one that the user has set wins.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "30000")
