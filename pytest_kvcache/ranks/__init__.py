"""The rank program: what runs under mpirun."""
