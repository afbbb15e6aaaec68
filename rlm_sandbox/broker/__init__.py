"""The only way out: policy, budget, cache, fairness and the providers. The entry point is :class:`.core.Broker`."""
