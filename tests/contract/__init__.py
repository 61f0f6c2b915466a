"""What every queue promises: the same tests for each implementation of `IQueue`."""
