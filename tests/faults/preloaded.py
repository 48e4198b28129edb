"""Is imported by the server of `tests.faults.confinement`, and imports all programs."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as the programs set it, before torch is loaded

from tests.faults.confinement import preload

preload()
