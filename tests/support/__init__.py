"""What the tests share: memory, peers in other processes, deadlines."""
