"""The regression gate: fresh processes of one or two trees, interleaved, and a verdict for each case."""
