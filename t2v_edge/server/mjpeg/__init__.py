"""Motion JPEG over plain HTTP, for players that know nothing else."""
