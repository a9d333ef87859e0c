"""Asks a tree what it is, from inside: run as a script in its interpreter, it prints one line of JSON.

Another revision runs it too, so it takes nothing of attnbench for granted but the worker's own imports: a tree on
which it fails does not build.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import attnbench
from attnbench.case import Case, Protocol, Workload
from attnbench.measure import worker
from attnbench.measure.environment import collect, pick_device
from attnbench.registry import mechanisms
from attnbench.store import SCHEMA_VERSION

if __name__ == "__main__":
    facts = {
        "file": attnbench.__file__,
        "environment": collect(pick_device(sys.argv[1])),
        "schema_version": SCHEMA_VERSION,
        "case_fields": [each.name for each in dataclasses.fields(Case)],
        "protocol_fields": [each.name for each in dataclasses.fields(Protocol)],
        "mechanisms": sorted(mechanisms()),
        "workloads": [str(each) for each in Workload],
        "options": list(getattr(worker, "OPTIONS", ())),
    }
    print(json.dumps(facts))
