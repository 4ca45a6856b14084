"""The wire and the three machines: pure code without sockets, clocks, threads, randomness or logs."""
