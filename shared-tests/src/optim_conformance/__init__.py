"""The conformance suites every optimizer package runs."""
