"""The questions asked, and the command line: pretraining, comparisons, audits, benchmarks, reports."""
