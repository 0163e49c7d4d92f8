"""Prints the last line of a run: how many cases were sent and what was found.

Usage: summary.py REPORT SEED SECONDS EXIT_STATUS
"""
import json,sys
print(json.dumps(json.load(open(sys.argv[1])))[:6000])
