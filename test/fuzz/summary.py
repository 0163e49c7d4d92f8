"""Prints the last line of a run: how many cases were sent, what was found, and how to repeat it.

Usage: summary.py REPORT SEED SECONDS EXIT_STATUS
"""

import json
import os
import sys

path, seed, seconds, code = sys.argv[1:]
if not os.path.exists(path):
    sys.exit(f"fuzz: schemathesis did not run to its end (status {code}); seed {seed}")
with open(path, encoding="utf-8") as f:
    report = json.load(f)
cases, operations = report["test_cases"], report["operations"]
never = [name for name, of in report["valid_rates"].items() if not any(phase["accepted"] for phase in of.values())]
if never:
    print(f"· none of the allowed requests was accepted: {', '.join(sorted(never))}")
accepted = sum(phase["accepted"] for of in report["valid_rates"].values() for phase in of.values())
print(
    f"fuzz: {cases['generated']} cases over {operations['tested']} operations in {seconds} s, {accepted} of the allowed ones accepted, "
    f"{cases['unique_failures']} failures, {len(report['errors'])} errors; {'ok' if code == '0' else 'FAILED'}; seed {seed}")
if not operations["tested"] or not accepted:
    sys.exit("fuzz: no allowed request was accepted")
