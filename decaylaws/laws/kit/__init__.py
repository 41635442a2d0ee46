"""What every law shares: the contract, solver, draws, hold-outs, comparison."""
