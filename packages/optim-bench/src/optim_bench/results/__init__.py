"""What follows from stored runs: the store, the statistics, and the verdicts of a comparison."""
