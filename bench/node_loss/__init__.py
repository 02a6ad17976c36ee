"""What the death of one of two nodes costs a fleet of thousands of agents."""
