"""Workers: their registration by this process, and the registry of all of them."""
