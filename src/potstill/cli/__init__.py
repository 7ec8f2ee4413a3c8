"""The command line: parse, load, call one function, render. The only place that prints."""
