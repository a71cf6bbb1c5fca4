"""Tasks, such as runs and scores: in this process, in worker processes or on a cluster."""
