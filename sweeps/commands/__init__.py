"""What `run_sweep.py` can do, a module for each group; heavy libraries are imported inside the commands."""
